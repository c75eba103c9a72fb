"""JPEG compression as a front: what libjpeg's encoder and decoder make of an image, in batches and with a gradient.

Source: Dziugaite, Ghahramani and Roy 2016, arXiv:1608.00853; Guo et al. 2018, arXiv:1711.00117, section 4.1 (quality 75). The format: ITU-T
T.81, annexes A and K; colour conversion, sampling and the scaling of tables as libjpeg has them (rdjpgcom's jccolor.c, jcsample.c,
jcparam.c, jdsample.c). The gradient: Shin and Song 2017, with the identity in the place of each rounding.
Where we differ: the cosine transforms are exact, libjpeg's are integer approximations, so that a coefficient near the middle between two
steps may round to the other: a mean difference of .45 grey levels in colour and .22 in grey on CIFAR-10 at quality 75.
Limits: an attacker who puts the smooth stand-in in its place sees through it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lab.knobs import check, require
from robustbench_lab.models.front import Front, straight

Rounding = Callable[[Tensor], Tensor]
SUBSAMPLING = ("4:2:0", "4:4:4")
CACHED = 2**18  # numbers in a chunk of images, on a CPU: its few arrays stay in the cache

# ITU-T T.81, tables K.1 and K.2.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56), (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92), (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99), (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)  # fmt: skip


class JPEG(Front):
    """Grey or colour images as they come back from a JPEG file of `quality` 1 to 100. Roundings are exact forward, the identity backward.

    subsampling: of the two colour planes, `4:2:0` (half of either side, libjpeg's default) or `4:4:4` (none).
    """

    def __init__(self, quality: int, subsampling: Literal["4:2:0", "4:4:4"]) -> None:
        super().__init__()
        check("quality", quality, int)
        require(1 <= quality <= 100, "quality", "a whole number from 1 to 100", quality)
        require(subsampling in SUBSAMPLING, "subsampling", f"one of {', '.join(SUBSAMPLING)}", subsampling)
        self.quality, self.subsampling = quality, subsampling

    def forward(self, x: Tensor) -> Tensor:
        at_once = max(1, CACHED // x[0].numel()) if x.device.type == "cpu" else len(x)
        parts = (
            compressed(some, self.quality, self.subsampling, lambda values: straight(_nearest(values), values)) for some in x.split(at_once)
        )
        return torch.cat(list(parts))

    def extra_repr(self) -> str:
        return f"quality={self.quality}, subsampling={self.subsampling}"


def compressed(x: Tensor, quality: int, subsampling: str, rounded: Rounding) -> Tensor:
    """Images [B, C, H, W] in [0, 1] through encoder and decoder; `rounded` stands where they make whole numbers."""
    pixels = rounded(255 * x)
    luminance, chrominance = (_table(table, quality).to(x) for table in (LUMINANCE, CHROMINANCE))
    if x.shape[1] != 3:
        return _through_blocks(pixels, luminance, rounded) / 255
    y, chroma = rounded(torch.einsum("ij,bjhw->bihw", _YCC.to(x), pixels) + _CENTRE.to(x)).split([1, 2], dim=1)
    y = _through_blocks(y, luminance, rounded)
    if subsampling == "4:2:0":
        halved = _through_blocks(_halved(chroma, rounded), chrominance, rounded)
        chroma = _doubled(halved, rounded)[:, :, : x.shape[2], : x.shape[3]]
    else:
        chroma = _through_blocks(chroma, chrominance, rounded)
    decoded = torch.cat([y, chroma], dim=1) - _CENTRE.to(x)
    return rounded(torch.einsum("ij,bjhw->bihw", _RGB.to(x), decoded)).clamp(0, 255) / 255


def _nearest(values: Tensor) -> Tensor:
    """To the nearest whole number; a half goes away from zero, as in libjpeg."""
    return (values.abs() + 0.5).floor().copysign(values)


_YCC = torch.tensor([[0.299, 0.587, 0.114], [-0.168735892, -0.331264108, 0.5], [0.5, -0.418687589, -0.081312411]])
_RGB = torch.tensor([[1.0, 0.0, 1.402], [1.0, -0.344136286, -0.714136286], [1.0, 1.772, 0.0]])
_CENTRE = torch.tensor([0.0, 128.0, 128.0]).view(1, 3, 1, 1)


@functools.cache
def _table(base: tuple[tuple[int, ...], ...], quality: int) -> Tensor:
    """The steps of an 8 x 8 block's coefficients (jcparam.c, jpeg_quality_scaling)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base) * scale + 50) // 100).clamp(1, 255).float()


@functools.cache
def _cosines() -> Tensor:
    """The orthonormal cosine transform of eight values, [frequency, place]."""
    places = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos(math.pi * (2 * places[None] + 1) * places[:, None] / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _through_blocks(planes: Tensor, table: Tensor, rounded: Rounding) -> Tensor:
    """Planes [B, C, H, W] in 0..255, the coefficients of each 8 x 8 block in whole steps; the last line fills blocks at the border."""
    height, width = planes.shape[2:]
    padded = F.pad(planes - 128, (0, -width % 8, 0, -height % 8), mode="replicate")
    rows, columns = padded.shape[2] // 8, padded.shape[3] // 8
    blocks = padded.unflatten(3, (columns, 8)).unflatten(2, (rows, 8))  # [B, C, rows, 8, columns, 8]
    cosines = _cosines().to(planes)
    steps = table[:, None, :]
    found = torch.einsum("fi,bcrikj,gj->bcrfkg", cosines, blocks, cosines)
    found = rounded(found / steps) * steps
    back = torch.einsum("fi,bcrfkg,gj->bcrikj", cosines, found, cosines)
    return rounded(back.flatten(4, 5).flatten(2, 3)[:, :, :height, :width] + 128).clamp(0, 255)


def _halved(planes: Tensor, rounded: Rounding) -> Tensor:
    """Means of 2 x 2 pixels; jcsample.c adds 1 and 2 by turns before it cuts off the fraction."""
    padded = F.pad(planes, (0, planes.shape[3] % 2, 0, planes.shape[2] % 2), mode="replicate")
    means = F.avg_pool2d(padded, 2)
    bias = torch.tensor([0.25, 0.5], device=planes.device, dtype=planes.dtype).repeat(means.shape[3] // 2 + 1)[: means.shape[3]]
    return rounded(means + bias - 0.5 + 1e-3)  # means are in quarters: their floor, as a rounding


def _doubled(planes: Tensor, rounded: Rounding) -> Tensor:
    """Twice the sides by libjpeg's "fancy" triangle filter: 3/4 of the nearer pixel and 1/4 of the farther one, edges as they are."""
    for dim in (2, 3):
        last = planes.shape[dim] - 1
        before = planes.index_select(dim, (torch.arange(last + 1, device=planes.device) - 1).clamp(min=0))
        after = planes.index_select(dim, (torch.arange(last + 1, device=planes.device) + 1).clamp(max=last))
        both = torch.stack([(3 * planes + before) / 4, (3 * planes + after) / 4], dim=dim + 1)
        planes = both.flatten(dim, dim + 1)
    return rounded(planes)
