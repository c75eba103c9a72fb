"""Loss sensitivity: the length of the loss's gradient at the clean images. Smaller is smoother.

Source: Efficient Defenses 2017, arXiv:1707.06728, section 4.1 (last equation), after Arpit et al. 2017, arXiv:1706.05394; the authors' code
(Trusted-AI/adversarial-robustness-toolbox, 2017, src/metrics.py, loss_sensitivity). Units: loss, or probability, per l2 length in pixels
of range 1. Fronts are passed by their surrogate's gradient (BPDA); the authors' model had no squeezer: give
`Defended.without_fixed_fronts()` for their figure. Random output: one draw.
Limits: a small gradient may be a hidden one; a model that is sure of its training images has small gradients, robust or not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from robustbench_lab.metrics.base import Measure, Seen, check_images
from robustbench_lab.models.defended import cross_entropy, frozen, full_precision


class LossSensitivity(Measure):
    """The length of the loss's gradient at x, or of the predicted class's probability as published."""

    def __call__(self, seen: Seen) -> Tensor:
        return loss_sensitivity_as_published(seen.model, seen.x) if self.as_published else loss_sensitivity(seen.model, seen.x, seen.y)


def loss_sensitivity(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The l2 norm of the gradient of the cross-entropy at x [B, C, H, W] with labels y, float64 [B]; the metric is the mean.

    The model is in eval mode meanwhile, and is left as it was. Raises LabError, naming what is missing, without images.
    """
    return gradient_lengths(model, x, lambda logits: cross_entropy(logits, y))


def loss_sensitivity_as_published(model: nn.Module, x: Tensor) -> Tensor:
    """As the code has it: of the gradient not of the loss, but of the softmax output of the predicted class; no label is looked at."""
    return gradient_lengths(model, x, lambda logits: logits.softmax(dim=1).max(dim=1).values)  # of a tie the first: amax would average


def gradient_lengths(model: nn.Module, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The l2 norm of the gradient at x of a function of the logits, [B, K] to [B]: float64 [B]."""
    check_images(x=x)
    with frozen(model, fast=False) as target, full_precision():
        x = x.detach().requires_grad_()
        gradient = torch.autograd.grad(function(target(x)).sum(), x)[0]
    return gradient.double().flatten(1).norm(dim=1)
