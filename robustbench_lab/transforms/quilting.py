"""Image quilting: where patches lie, and laying others in their place.

Source: Guo et al. 2018 (Countering adversarial images using input transformations), arXiv:1711.00117, section 4.3, after Efros and Freeman
2001; facebookresearch/adversarial_image_defenses, quilting.cpp.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from robustbench_lab.transforms.seam import Seam

Border = Literal["covered", "as_released"]
Cut = Literal["minimum_error", "as_released"]


def starts(side: int, size: int, overlap: int, border: Border) -> list[int]:
    """Where patches begin along a side, `size` - `overlap` pixels apart; sides of `size` pixels or more, as released of more.

    covered: one more begins at side - size where the others leave pixels. as_released: none begins there, so that the last pixels of the
    side belong to no patch: 3 of 32 with 5 and 2.
    """
    if border == "as_released":
        return list(range(0, side - size, size - overlap))
    regular = list(range(0, side - size + 1, size - overlap))
    return regular if regular[-1] == side - size else [*regular, side - size]


def patches(x: Tensor, rows: Sequence[int], columns: Sequence[int], size: int) -> Tensor:
    """Those of [B, C, H, W] that begin at these rows and columns: [B, R, K, C, size, size]."""
    windows = x.unfold(2, size, 1).unfold(3, size, 1)
    return windows[:, :, list(rows)][:, :, :, list(columns)].permute(0, 2, 3, 1, 4, 5)


def stitched(chosen: Tensor, rows: Sequence[int], columns: Sequence[int], height: int, width: int, cut: Cut) -> Tensor:
    """Images of patches [B, R, K, C, size, size], uint8, in raster order: float32 [B, C, height, width], whole levels, 0 where none lies.

    Each begins at its row and column; where it covers earlier ones it is cut along a seam. minimum_error: the first line of the overlap
    stays old and what lies beyond the overlap goes, as Kwatra et al. (2003, figure 2) tie them. as_released: only the latter, so that
    the cut is empty and costs nothing: the overlap too is new, but for cells that only equal neighbours join to the rest.
    """
    size = chosen.shape[-1]
    chosen = chosen.float()
    image = chosen.new_zeros(len(chosen), chosen.shape[3], height, width)
    for number, row in enumerate(rows):
        above = rows[number - 1] + size - row if number else 0
        for place, column in enumerate(columns):
            before = columns[place - 1] + size - column if place else 0
            new, old = chosen[:, number, place], image[:, :, row : row + size, column : column + size]
            if above or before:
                taken = _seam(size, above, before, cut, image.device).new_cells(old, new)
                new = torch.where(taken[:, None], new, old)
            old.copy_(new)
    return image


@functools.cache
def _seam(size: int, above: int, before: int, cut: Cut, device: torch.device) -> Seam:
    """Of a patch that overlaps `above` rows and `before` columns."""
    stays = torch.zeros(size, size, dtype=torch.bool)
    if cut == "minimum_error":
        stays[: min(above, 1)] = True
        stays[:, : min(before, 1)] = True
    goes = torch.zeros_like(stays)
    goes[above:, before:] = True
    return Seam(stays, goes).to(device)
