"""Empirical robustness: the size of the perturbation that changes the prediction, relative to the image. Larger is more robust.

Source: Efficient Defenses 2017, arXiv:1707.06728, section 4.1, eq. 2; the authors' code (Trusted-AI/adversarial-robustness-toolbox, 2017,
src/metrics.py, empirical_robustness). Both attack every image, also those that are misclassified, until the *prediction* changes: an attack
with labels=predicted. Formula and code differ in norm and in what is averaged; their figures do not compare. The authors' notebook
(notebooks/metric-for-MNIST.ipynb) gave attack and metric the network without the squeezer, so that feature squeezing was not measured.
Limits: an attack's perturbation bounds the smallest one from above; where the attack failed, it bounds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lab.metrics.base import OfBroken, Seen, check_attacked, check_flipped

TINY = 1e-12  # eq. 2's "extremely small constant allowing for the division to be defined"; the paper gives no figure


class EmpiricalRobustness(OfBroken):
    """|x_adv - x| / |x| in l2 (eq. 2), or in linf as published."""

    @property
    def minimal(self) -> bool:
        return True

    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        if self.as_published:
            return empirical_robustness_as_published(x, x_adv, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return empirical_robustness(x, x_adv)


def empirical_robustness(x: Tensor, x_adv: Tensor) -> Tensor:
    """Eq. 2 per image, float64 [N]: |x_adv - x| / (|x| + tiny), both in l2, for images [N, C, H, W]; the metric is the mean over all.

    An image whose prediction stands counts with what the attack tried last. Raises LabError, naming what is missing, without images.
    """
    check_attacked(x, x_adv)
    return (x_adv.double() - x.double()).flatten(1).norm(dim=1) / (x.double().flatten(1).norm(dim=1) + TINY)


def empirical_robustness_as_published(x: Tensor, x_adv: Tensor, flipped: Tensor) -> Tensor:
    """The code's, for the M flipped images alone, float64 [M]: |x_adv - x| / |x|, both in linf, its FGSM's norm; the metric is the mean.

    flipped: where the predictions on x and x_adv differ, bool [N]. Most images have |x| = 1, so that the metric is about the mean eps of
    the flipped. Raises LabError, naming what is missing, without images or flipped ones: there the code returns 0, the least robust.
    """
    check_attacked(x, x_adv)
    check_flipped(flipped, x)
    x, x_adv = x[flipped].double().flatten(1), x_adv[flipped].double().flatten(1)
    return (x_adv - x).abs().amax(dim=1) / x.abs().amax(dim=1)
