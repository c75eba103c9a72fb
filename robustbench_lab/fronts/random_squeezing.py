"""A bit depth and a median window drawn anew for each pass: what someone may suppose who knows that images are squeezed, and not how.

Source: ours. Averaging gradients over transformations that one does not know is Athalye et al. 2018, arXiv:1707.07397 (EOT), of a
defender's pre-processing in place of a camera's view; threat_model=gray_expectation.
Limits: as a defense it is a squeezer with noise; an attacker who knows the draw's range loses little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lab.fronts.median import median
from robustbench_lab.knobs import Bits, Count, check, require
from robustbench_lab.models.front import Front, straight
from robustbench_lab.transforms.bit_depth import reduce_bit_depth


class RandomSqueezing(Front):
    """A bit depth of `bits` and then a median in one of `windows`, drawn for all images of a pass; 8 bits and a window of 1 leave an image
    as it is. The gradient is the median's own through the identity's of the bit depth."""

    random: ClassVar[bool] = True

    def __init__(self, bits: Sequence[int], windows: Sequence[int]) -> None:
        super().__init__()
        for key, entries, kind in (("bits", bits, Bits), ("windows", windows, Count)):
            require(len(entries) > 0, key, "one or more whole numbers", list(entries))
            for index, entry in enumerate(entries):
                check(f"{key}[{index}]", entry, kind)
        self.bits, self.windows = tuple(bits), tuple(windows)

    def check(self, shape: Sequence[int]) -> None:
        require(max(self.windows) <= min(shape[1:]), "windows", f"at most {min(shape[1:])}, the image's side", list(self.windows))

    def forward(self, x: Tensor) -> Tensor:
        bits, window = (drawn[int(torch.randint(len(drawn), ()))] for drawn in (self.bits, self.windows))
        return median(straight(reduce_bit_depth(x.detach(), bits), x), window)

    def extra_repr(self) -> str:
        return f"bits={self.bits}, windows={self.windows}"
