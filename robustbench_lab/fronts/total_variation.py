"""Pixels dropped at random, and the image of least total variation that agrees with those that are left, as a front.

Source: Guo, Rana, Cisse and van der Maaten 2018 (Countering Adversarial Images using Input Transformations), arXiv:1711.00117, section 4.2,
and their code (transforms/total_variation.py says where it differs from their text): each pixel of each channel goes by itself.
Where we differ: a black pixel that goes is missing; their code, which looks for pixels that have changed, takes it as there.
Limits: the minimum has a gradient, which is ours: an attacker who takes it, over several draws (eot_samples), goes through the front.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lab.knobs import ShareBelowOne, check
from robustbench_lab.models.front import Front, straight
from robustbench_lab.transforms.total_variation import TotalVariation


class TotalVariationMinimisation(Front):
    """Each value goes with probability `dropped`, drawn anew in each pass; the others are what TotalVariation's minimum is to agree with.

    The gradient is the minimum's own, without that of the clamp to [0, 1], which the minimum leaves by no more than the tolerance. The
    other knobs are those of TotalVariation.
    """

    def __init__(
        self, dropped: float, weight: float, version: str, penalty: float, relaxation: float, tolerance: float, sweeps: int, iterations: int
    ) -> None:
        super().__init__()
        check("dropped", dropped, ShareBelowOne)
        self.dropped = dropped
        self.random = dropped > 0  # type: ignore[misc]
        self.variation = TotalVariation(
            weight=weight,
            version=version,
            penalty=penalty,
            relaxation=relaxation,
            tolerance=tolerance,
            sweeps=sweeps,
            iterations=iterations,
        )

    def forward(self, x: Tensor) -> Tensor:
        kept = torch.rand_like(x) >= self.dropped if self.random else None
        minimum = self.variation.minimise(x, kept)
        return straight(minimum.detach().clamp(0, 1), minimum)

    def extra_repr(self) -> str:
        return f"dropped={self.dropped}, weight={self.variation.weight}, version={self.variation.version}"
