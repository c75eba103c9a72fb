"""Reduction of an image's bit depth as a front.

Source: Xu, Evans and Qi 2018 (Feature Squeezing), arXiv:1704.01155, section III-A.
Limits: rounding hides gradients without making the network any smoother; only attacks that go around it measure anything.
"""

from __future__ import annotations

from torch import Tensor

from robustbench_lab.knobs import Bits, check
from robustbench_lab.models.front import Front
from robustbench_lab.transforms.bit_depth import reduce_bit_depth


class BitDepth(Front):
    """Images in 2^bits levels per channel, 1 to 8 bits; its gradient is the identity's."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        check("bits", bits, Bits)
        self.bits = bits

    def transform(self, x: Tensor) -> Tensor:
        return reduce_bit_depth(x, self.bits)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"
