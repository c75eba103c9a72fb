"""Pixels that go at random. What it is for: the sparse feature masker at equal brightness, with masks that mean nothing.

Source: ours; dropping pixels at random is also the first step of Guo et al. 2018, arXiv:1711.00117, section 4.2, who restore them.
Limits: an attacker who averages no draws sees noisy gradients and finds less; judge with eot_samples.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lab.fronts.mask import Mask
from robustbench_lab.knobs import PositiveShare, check


class RandomMask(Mask):
    """Each pixel of each image stays, whole, with probability `kept`, drawn anew in each pass; what is left is not made brighter."""

    random: ClassVar[bool] = True

    def __init__(self, kept: float) -> None:
        super().__init__()
        check("kept", kept, PositiveShare)
        self.kept = kept

    def masks(self, x: Tensor) -> Tensor:
        return (torch.rand_like(x[:, :1]) < self.kept).to(x.dtype)

    def extra_repr(self) -> str:
        return f"kept={self.kept}"
