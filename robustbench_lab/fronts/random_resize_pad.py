"""Resizing to a random size and padding at a random place, as a front.

Source: Xie et al. 2018 (Mitigating adversarial effects through randomization), arXiv:1711.01991, section 4.1 and their code
(cihangxie/NIPS2017_adv_challenge_defense, defense.py): nearest neighbours, sizes from that of the image up to, not including, the padded
one; 299 to 331 there, which is 32 to 35.
Where we differ: each image has a size and a place of its own; theirs were drawn once for a batch.
Limits: the mean over draws is as smooth as the network: an attacker who averages gradients (EOT) leaves nothing of it (Athalye et al.
2018, arXiv:1802.00420, section 5.3). The network has to take images of the padded size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lab.knobs import Count, check, require
from robustbench_lab.models.front import Front

GROWTH = 331 / 299  # of the source's ImageNet models


class RandomResizePad(Front):
    """Images [B, C, H, W] to [B, C, padded, padded], resized to between their side and `padded` pixels, with zeros around; differentiable.

    padded: null for the source's share: 331 / 299 of the image's side, and at least one pixel more.
    """

    random: ClassVar[bool] = True

    def __init__(self, padded: int | None) -> None:
        super().__init__()
        if padded is not None:
            check("padded", padded, Count)
        self.padded = padded

    def check(self, shape: Sequence[int]) -> None:
        require(shape[1] == shape[2], "padded", "square images", list(shape))
        if self.padded is not None:
            require(self.padded > shape[1], "padded", f"more than {shape[1]}, the image's side", self.padded)

    def side(self, side: int) -> int:
        """Of the padded image."""
        return self.padded or max(side + 1, round(side * GROWTH))

    def shown_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        return shape[0], self.side(shape[1]), self.side(shape[2])

    def forward(self, x: Tensor) -> Tensor:
        side, padded = x.shape[2], self.side(x.shape[2])
        sizes = torch.randint(side, padded, (len(x),), device=x.device)
        rows, columns = (self._sources(sizes, side, padded) for _ in range(2))
        images = torch.arange(len(x), device=x.device)[:, None, None]
        shown = x.permute(0, 2, 3, 1)[images, rows.clamp(0, side - 1)[:, :, None], columns.clamp(0, side - 1)[:, None, :]]
        inside = ((rows >= 0)[:, :, None] & (columns >= 0)[:, None, :])[..., None]
        return (shown * inside).permute(0, 3, 1, 2)

    def _sources(self, sizes: Tensor, side: int, padded: int) -> Tensor:
        """Of each row (or column) of the padded image the one that it shows, [B, padded]; -1 where there is none."""
        first = (torch.rand(len(sizes), device=sizes.device) * (padded - sizes + 1)).long()
        place = torch.arange(padded, device=sizes.device) - first[:, None]
        found = place * side // sizes[:, None]
        return torch.where((place >= 0) & (place < sizes[:, None]), found, -1)

    def extra_repr(self) -> str:
        return f"padded={self.padded}"
