"""The virtual adversarial perturbation as Efficient Defenses' code calls it: probabilities taken for logits, and a mean over all images.

Source: the authors' code (ART, 2017, src/attackers/virtual_adversarial.py), which gives CleverHans' vatm (attacks_tf.py; utils_tf.py:
kl_with_logits, l2_batch_normalize) a Keras model whose output is the softmax, and all images in one call.
What becomes of it: vatm takes the softmax once more, so that an image of which the network is sure has next to no curvature; the mean
over all images makes its gradient smaller still; and vatm's guard against division by zero, 1e-12, is then larger than that gradient, so
that the perturbation is not scaled to eps but stays near zero.
Where we differ: `averaged_over` says how many images the mean is over, whatever the batch; rounding is PyTorch's, and with xi = 1e-6 it
bends the directions. Limits: this is here to see what the paper measured. To attack, use attack=vat.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.knobs import Count, Positive
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

GUARD = 1e-12  # CleverHans' epsilon in l2_batch_normalize


@dataclass(frozen=True, kw_only=True)
class VATAsPublished(Attack):
    """x + d, where |d| is eps at most and often far less; no label is looked at.

    steps: power iterations. xi: where the gradient is taken, as an l2 length. averaged_over: images that were fed at once.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs_labels: ClassVar[bool] = False
    batchwise: ClassVar[bool] = True  # xi magnifies the last bits, and those depend on the batch's size
    steps: Count
    xi: Positive
    averaged_over: Count

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        with torch.no_grad():
            clean = model(x).softmax(dim=1).softmax(dim=1)
        direction = rng.normal(*x.shape[1:]).to(x.dtype)
        for _ in range(self.steps):
            near = (x + self.xi * nearly_unit(direction)).requires_grad_()
            divergence = kl_divergence(model(near).softmax(dim=1), clean).sum() / self.averaged_over
            direction = torch.autograd.grad(divergence, near)[0]
        return budget.project(x + budget.eps * nearly_unit(direction), x)


def nearly_unit(direction: Tensor) -> Tensor:
    """[B, C, H, W] to an l2 length just below 1, or towards 0 where the largest value is not far above the guard."""
    flat = direction.flatten(1)
    flat = flat / (GUARD + flat.abs().amax(dim=1, keepdim=True))
    return (flat * (GUARD**0.5 + flat.square().sum(dim=1, keepdim=True)).rsqrt()).view_as(direction)
