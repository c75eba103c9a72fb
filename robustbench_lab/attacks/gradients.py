"""What the attacks share: the contract, the losses they raise, and the gradient with respect to the image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, Loss, own_loss, passes_of
from robustbench_lab.knobs import Count, one_of, require
from robustbench_lab.models.defended import cross_entropy


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best other logit minus the true one, [B]: above zero where the image is misclassified (Carlini and Wagner 2017, f6)."""
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(dim=1) - true[:, 0]


def half_margin(logits: Tensor, y: Tensor) -> Tensor:
    """The best other logit minus half of the true one, [B].

    For classifiers by the nearest of several points, whose logits are minus distances (FM). There the true logit's gradient is a unit
    vector away from the label's point, in whatever direction the features happen to lie, as long as that towards the nearest other point:
    in the margin it drowns the way to another class. Half of it is enough to leave: PGD-7 leaves 10.7 % with the margin and 3.5 % so (table
    quick/fm_readings, root over everything, 30 epochs). Cross-entropy at a temperature where the softmax rounds to 1 in float32, and the
    true logit's part of the gradient to 0, does the same by chance, and no longer in float64.
    Other classifiers have logits that may be shifted as a whole, which this loss minds: it is no loss for them.
    """
    true = logits.gather(1, y[:, None])
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(dim=1) - 0.5 * true[:, 0]


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio, [B]: the margin over the distance from the largest to the third largest logit.

    Source: Croce and Hein 2020, arXiv:2003.01690, eq. 6. It does not change when the logits are scaled or shifted.
    With two classes there is no third logit: the plain margin, which shifts but does not scale.
    """
    if logits.shape[1] == 2:
        return margin(logits, y)
    largest = logits.topk(3, dim=1).values
    return margin(logits, y) / (largest[:, 0] - largest[:, 2] + 1e-12)


def scaled_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy per image, [B], of logits over their own standard deviation over the K classes (that of the K values, divisor K).

    The deviation counts as a constant: the gradient is that of cross-entropy at a temperature of the image's own, so that logits of any
    size neither saturate the softmax nor leave it flat. `y` is int64 [B] or probabilities [B, K].
    """
    deviation = logits.detach().std(dim=1, correction=0, keepdim=True)
    return cross_entropy(logits / deviation.clamp(min=1e-12), y)


def kl_divergence(logits: Tensor, y: Tensor) -> Tensor:
    """KL(y || softmax(logits)) per image, [B]; `y` holds probabilities [B, K] (TRADES' inner loss)."""
    return F.kl_div(F.log_softmax(logits, dim=1), y, reduction="none").sum(dim=1)


LOSSES: dict[str, Loss] = {
    "ce": cross_entropy,
    "ce_scaled": scaled_cross_entropy,
    "margin": margin,
    "half_margin": half_margin,
    "dlr": dlr,
}


def rivals(logits: Tensor, y: Tensor, most: int) -> Tensor:
    """The `most` likeliest classes beside y (all of them, if there are fewer), the likeliest first: int64 [B, min(most, K - 1)]."""
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.argsort(dim=1, descending=True, stable=True)[:, : min(most, logits.shape[1] - 1)]


def each_logit_gradient(model: nn.Module, x: Tensor, classes: Tensor) -> tuple[Tensor, Iterator[Tensor]]:
    """The logits [B, K] and, one after the other, for each image the gradient of the logit of its class classes[:, j]: [B, C, H, W].

    One forward pass, M backward passes for `classes` [B, M], each when its gradient is asked for: memory is that of one. A model that
    averages takes as many times of both, and holds the gradients of all classes meanwhile, because its draws do not come again.
    """
    x, count, passes = x.detach().requires_grad_(), classes.shape[1], passes_of(model)

    def differentiated(one_pass: Callable[[Tensor], Tensor]) -> tuple[Tensor, Iterator[Tensor]]:
        logits = one_pass(x)
        chosen = logits.gather(1, classes)
        return logits.detach(), (torch.autograd.grad(chosen[:, j].sum(), x, retain_graph=j + 1 < count)[0] for j in range(count))

    if len(passes) == 1:
        return differentiated(passes[0])
    total_logits, total = torch.zeros((), device=x.device), x.new_zeros((count, *x.shape))
    for one_pass in passes:
        logits, gradients = differentiated(one_pass)
        total_logits = total_logits + logits
        for sum_so_far, gradient in zip(total, gradients, strict=True):
            sum_so_far += gradient
    return total_logits / len(passes), iter(total.div_(len(passes)))


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """An attack that climbs a loss.

    loss: ce, ce_scaled, margin, half_margin, dlr, own (the loss that the defense was trained with), or a function (logits, y) -> [B].
    labels: ground_truth, or predicted (the model's own predictions: no label leaking).
    eot_samples: forward passes whose gradients are averaged, for models with random output (EOT, Athalye et al. 2018).
    """

    loss: Annotated[str, one_of((*LOSSES, "own"))] | Loss
    labels: Literal["ground_truth", "predicted"]
    eot_samples: Count

    def loss_of(self, model: nn.Module) -> Loss:
        if callable(self.loss):
            return self.loss
        return own_loss(model) if self.loss == "own" else LOSSES[self.loss]

    def labels_for(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if self.labels == "ground_truth":
            return y
        with torch.no_grad():
            return model(x).argmax(dim=1)

    def gradient(self, model: nn.Module, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The loss's gradient at x, its value [B] and the logits [B, K], each averaged over `eot_samples` passes, or that many times the
        passes that an averaged model's answer takes."""
        x = x.detach().requires_grad_()
        total_gradient, total_value, total_logits = (torch.zeros((), device=x.device),) * 3
        passes = passes_of(model) * self.eot_samples
        for one_pass in passes:
            logits = one_pass(x)
            value = loss(logits, y)
            total_gradient = total_gradient + torch.autograd.grad(value.sum(), x)[0]
            total_value = total_value + value.detach()
            total_logits = total_logits + logits.detach()
        return total_gradient / len(passes), total_value / len(passes), total_logits / len(passes)


def require_step_size(step_size: float | None, relative_step_size: float | None) -> None:
    """One of the two is null."""
    given = [size for size in (step_size, relative_step_size) if size is not None]
    require(len(given) == 1, "step_size", "either step_size or relative_step_size, the other null", given)
