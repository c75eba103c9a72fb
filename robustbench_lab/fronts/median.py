"""Median smoothing as a front.

Source: Xu, Evans and Qi 2018 (Feature Squeezing), arXiv:1704.01155, section III-B, and their code (mzweilin/EvadeML-Zoo, utils/squeeze.py),
which calls scipy.ndimage.median_filter: an even-sized window has no middle, and SciPy takes the entry of rank k * k // 2, counted from 0.
Limits: a median moves with the pixel that it picks, so that its gradient is known; what it defends against is an attacker who looks away.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_lab.knobs import Count, check, require
from robustbench_lab.models.front import Front


class Median(Front):
    """The median of each channel in windows of `window` x `window` pixels; images are mirrored at their borders, edge included.

    Forward is bit for bit SciPy's. The gradient is the median's own: that of the pixel which was picked, shared among equals. A window
    of even size reaches one pixel further up and left than down and right.
    """

    def __init__(self, window: int) -> None:
        super().__init__()
        check("window", window, Count)
        self.window = window

    def check(self, shape: Sequence[int]) -> None:
        require(self.window <= min(shape[1:]), "window", f"at most {min(shape[1:])}, the side of an image of {list(shape)}", self.window)

    def forward(self, x: Tensor) -> Tensor:
        return median(x, self.window)

    def extra_repr(self) -> str:
        return f"window={self.window}"


def median(x: Tensor, window: int) -> Tensor:
    """[B, C, H, W] to the same: the entry of rank window^2 // 2 in the window around each pixel."""
    height, width = x.shape[2:]
    rows, columns = (_mirrored(side, window, x.device) for side in (height, width))
    padded = x.index_select(2, rows).index_select(3, columns)
    if window == 2:  # the second largest of four, without sorting: neighbours in a row first, which two windows share
        left, right = padded[..., :-1], padded[..., 1:]
        low, high = torch.minimum(left, right), torch.maximum(left, right)
        up, down = slice(None, -1), slice(1, None)
        return torch.maximum(torch.minimum(high[:, :, up], high[:, :, down]), torch.maximum(low[:, :, up], low[:, :, down]))
    if window == 3:
        return _of_nine(_sorted(padded[..., :-2], padded[..., 1:-1], padded[..., 2:]))
    places = [padded[:, :, i : i + height, j : j + width] for i in range(window) for j in range(window)]
    return torch.stack(places).kthvalue(window**2 // 2 + 1, dim=0).values


def _of_nine(rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """The median of nine from three neighbours in a row, sorted: of the largest of the rows' least, the middle of their middles and the
    least of their largest, the middle one (Paeth 1990, Median Finding on a 3x3 Grid, Graphics Gems)."""
    low, middle, high = ((part[:, :, :-2], part[:, :, 1:-1], part[:, :, 2:]) for part in rows)
    largest = torch.maximum(torch.maximum(low[0], low[1]), low[2])
    least = torch.minimum(torch.minimum(high[0], high[1]), high[2])
    return _middle(largest, _middle(*middle), least)


def _sorted(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    low, high = torch.minimum(a, b), torch.maximum(a, b)
    return torch.minimum(low, c), torch.maximum(low, torch.minimum(high, c)), torch.maximum(high, c)


def _middle(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def _mirrored(side: int, window: int, device: torch.device) -> Tensor:
    """Positions 0 .. side - 1 with those beyond them mirrored, the edge twice (SciPy's `reflect`)."""
    places = torch.arange(-(window // 2), side + window - 1 - window // 2, device=device)
    places = torch.where(places < 0, -1 - places, places)
    return torch.where(places >= side, 2 * side - 1 - places, places)
