"""The virtual adversarial perturbation as an attack: the direction in which the model's output changes fastest, found without a label.

Source: Miyato et al. 2016, arXiv:1507.00677, sections 3.2 and 3.3: r = eps * d with d the dominant eigenvector of the Hessian H at r = 0 of
KL(f(x) || f(x + r)), by power iteration from a random start, d <- H d / |H d|, where H d is the gradient at r = xi * d, over xi.
Where we differ: with xi: null, H d is exact. The divergence has no slope at r = 0, so that H = J' F J with J the Jacobian of the logits and
F the Fisher matrix of the softmax: two backward passes for each product, and one forward pass in all.
Limits: of the two ends of d the paper takes the one that the start happens to point to, and the model may grow surer there; both_signs
compares them. The published xi, 1e-6, is at the edge of float32: on 8x8 digits a third of the directions had a cosine below .9 with the
exact one, at 1e-3 one in a hundred; more pixels make it worse. A model with random output needs xi: null: one draw for all products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.knobs import Count, Positive
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image


@dataclass(frozen=True, kw_only=True)
class VAT(Attack):
    """x + eps * d; no label is looked at.

    steps: power iterations.
    xi: where the gradient is taken, as an l2 length; null: the exact product with the Hessian.
    both_signs: the one of x + eps * d and x - eps * d that changes the output more, for two more passes; false: x + eps * d, as published.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs_labels: ClassVar[bool] = False
    steps: Count
    xi: Annotated[Positive | None, "for the exact product"]
    both_signs: bool

    @property
    def batchwise(self) -> bool:  # type: ignore[override]
        """Whether an image's result depends on its batch: a small xi magnifies the last bits, and those depend on the batch's size."""
        return self.xi is not None

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        product, clean = exact_product(model, x) if self.xi is None else finite_difference(model, x, self.xi)
        direction = power_iteration(product, rng.normal(*x.shape[1:]).to(x.dtype), self.steps)
        x_adv = budget.project(x + budget.eps * direction, x)
        if not self.both_signs:
            return x_adv
        other = budget.project(x - budget.eps * direction, x)
        with torch.no_grad():
            change, other_change = kl_divergence(model(torch.cat([x_adv, other])), clean.repeat(2, 1)).chunk(2)
        return other.where(per_image(other_change > change, x), x_adv)


Product = Callable[[Tensor], Tensor]  # a direction [B, C, H, W] to what the Hessian makes of it, up to a factor


def power_iteration(product: Product, start: Tensor, steps: int) -> Tensor:
    """Towards the dominant eigenvector, from `start` [B, C, H, W]: directions of l2 length 1."""
    unit = Budget("l2", 1)
    direction = unit.steepest(start)
    for _ in range(steps):
        image = product(direction)
        still = (image == 0).flatten(1).all(dim=1)  # rounded away, or no curvature: the last direction is as good as any
        direction = direction.where(per_image(still, image), unit.steepest(image))
    return direction


def finite_difference(model: nn.Module, x: Tensor, xi: float) -> tuple[Product, Tensor]:
    """The gradient of the divergence at x + xi * d, and the clean probabilities [B, K]; a forward and a backward pass for each product."""
    with torch.no_grad():
        clean = model(x).softmax(dim=1)

    def product(direction: Tensor) -> Tensor:
        near = (x + xi * direction).requires_grad_()
        return torch.autograd.grad(kl_divergence(model(near), clean).sum(), near)[0]

    return product, clean


def exact_product(model: nn.Module, x: Tensor) -> tuple[Product, Tensor]:
    """J' F J d, and the clean probabilities [B, K]."""
    x = x.detach().requires_grad_()
    logits = model(x)
    clean = logits.detach().softmax(dim=1)
    likeliest = clean.argmax(dim=1, keepdim=True)
    weights = torch.zeros_like(clean).requires_grad_()
    pulled = torch.autograd.grad(logits, x, weights, create_graph=True)[0]  # J' weights: linear in the weights, with J as its slope

    def product(direction: Tensor) -> Tensor:
        pushed = torch.autograd.grad(pulled, weights, direction, retain_graph=True)[0]
        pushed = pushed - pushed.gather(1, likeliest)  # F does not see a shift, but float32 does where one probability is nearly 1
        pushed = clean * (pushed - (clean * pushed).sum(dim=1, keepdim=True))
        return torch.autograd.grad(logits, x, pushed, retain_graph=True)[0]

    return product, clean
