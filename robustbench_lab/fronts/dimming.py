"""A constant mask: every image darker by one factor. What it is for: the sparse feature masker at equal brightness, without any choice.

Source: ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lab.fronts.mask import Mask
from robustbench_lab.knobs import PositiveShare, check


class Dimming(Mask):
    """kept * x."""

    def __init__(self, kept: float) -> None:
        super().__init__()
        check("kept", kept, PositiveShare)
        self.kept = kept

    def masks(self, x: Tensor) -> Tensor:
        return torch.full_like(x[:, :1], self.kept)

    def extra_repr(self) -> str:
        return f"kept={self.kept}"
