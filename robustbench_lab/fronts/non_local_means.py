"""Non-local means: each pixel as the mean of those around it, weighted by how alike their surroundings are.

Source: Buades, Coll and Morel 2005, "A non-local algorithm for image denoising"; as a squeezer Xu et al. 2018 (Feature Squeezing),
arXiv:1704.01155, section III-B, whose code (mzweilin/EvadeML-Zoo, utils/squeeze.py) calls OpenCV's fastNlMeansDenoisingColored with one
strength for brightness and colour: "non_local_means_color_13_3_2" is search, template and strength. The definition is OpenCV's: colours in
8-bit Lab, of which L and (a, b) are smoothed apart; weights exp(-d / strength^2), where d is the mean squared difference of two templates
over pixels and channels; weights below .001 count as none; borders mirrored without the edge.
Where we differ: OpenCV's weights are in fixed point, ours are floats. On CIFAR-10 at 13, 3, 2 they differ by .2 of 255 on average, 96 % of
values by at most one and none by more than nine (a colour whose Lab is one apart); grey images by at most one. Forward is rounded as
OpenCV's, backward goes through the means and their weights.
Limits: an attacker who differentiates it sees through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustbench_lab.knobs import Count, Positive, check, require
from robustbench_lab.models.front import Front, straight

LEAST = 0.001  # OpenCV's: weights below count as none
CACHED = 2**16  # numbers in one channel of a chunk of images, on a CPU: the few arrays of that size stay in its cache


class NonLocalMeans(Front):
    """Images [B, C, H, W] in [0, 1] of one or three channels.

    search, template: sides of the windows, odd. strength: in grey levels of 256.
    """

    def __init__(self, search: int, template: int, strength: float) -> None:
        super().__init__()
        for key, side in (("search", search), ("template", template)):
            check(key, side, Count)
            require(side % 2 == 1, key, "an odd whole number", side)
        check("strength", strength, Positive)
        self.search, self.template, self.strength = search, template, strength

    def check(self, shape: Sequence[int]) -> None:
        reach = self.search // 2 + self.template // 2
        require(shape[0] in (1, 3), "strength", "images of one or three channels", list(shape))
        require(reach < min(shape[1:]), "search", f"windows that reach less than {min(shape[1:])} pixels, the image's side", self.search)

    def forward(self, x: Tensor) -> Tensor:
        levels = _whole(255 * x)
        if x.shape[1] == 1:
            return _whole(self._means(levels)) / 255
        lab = _whole(_lab(levels / 255))
        light, colour = (self._means(part) for part in lab.split([1, 2], dim=1))
        rgb = 255 * _rgb(_whole(torch.cat([light, colour], dim=1)))
        return straight(rgb.detach().floor(), rgb) / 255

    def _means(self, x: Tensor) -> Tensor:
        return non_local_means(x, self.search, [1 / self.template] * self.template, self.strength, LEAST)

    def extra_repr(self) -> str:
        return f"search={self.search}, template={self.template}, strength={self.strength}"


def non_local_means(x: Tensor, search: int, template: Sequence[float], strength: float, least: float) -> Tensor:
    """Images [B, C, H, W] to the same, in the unit of `strength`, differentiable; all channels of a pixel have one weight.

    search: the window's side, odd. template: what a difference counts by its row, and by its column, from the middle pixel; of odd length,
    and 1 / length each for a mean. least: weights up to it count as none.
    """
    return _Means.apply(x, search, tuple(template), strength, least)


class _Means(torch.autograd.Function):
    """A pair of pixels has one weight for either's mean, so that half of the offsets are looked at; backward makes the differences
    again, of one offset at a time.

    Within, images lie as [C, H, W, B], so that a shifted image is whole slices, in units in which a mean square of 1 weighs exp(-1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, search: int, template: tuple[float, ...], strength: float, least: float) -> Tensor:
        unit = strength * x.shape[1] ** 0.5
        reach, half = search // 2, len(template) // 2
        offsets = [(i, j) for i in range(reach + 1) for j in range(-reach, reach + 1) if (i, j) > (0, 0)]
        means, sums = [], []
        for some in _chunks(x / unit):
            image = some.permute(1, 2, 3, 0).contiguous()
            padded = F.pad(some, [reach + half] * 4, mode="reflect").permute(1, 2, 3, 0).contiguous()
            weights, total = torch.ones_like(image[0]), image.clone()  # the pixel itself
            for offset in offsets:
                (first, there), (second, back) = _pairs(padded, offset, search, template, least)
                weights.add_(first).add_(second)
                total.addcmul_(first, there).addcmul_(second, back)
            means.append(total.div_(weights).permute(3, 0, 1, 2))
            sums.append(weights.permute(2, 0, 1))
        result = torch.cat(means).mul_(unit)
        ctx.save_for_backward(x, result, torch.cat(sums))
        ctx.settings, ctx.offsets = (search, template, least, unit), offsets
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        search, template, least, unit = ctx.settings
        border = search // 2 + len(template) // 2
        x, result, sums = ctx.saved_tensors
        of_values = gradient / sums[:, None]
        of_weights = (of_values * result).sum(1, keepdim=True) / -unit
        found = []
        for some, *its in zip(*map(_chunks, (x, of_values, of_weights)), strict=True):
            to_values, to_weights = (each.permute(1, 2, 3, 0) for each in its)
            with torch.enable_grad():
                leaf = (some / unit).requires_grad_()
                padded = F.pad(leaf, [border] * 4, mode="reflect")
            total = torch.zeros_like(padded)
            for offset in ctx.offsets:
                with torch.enable_grad():
                    inner = padded.detach().requires_grad_()
                    (first, there), (second, back) = _pairs(inner.permute(1, 2, 3, 0), offset, search, template, least)
                seen = [(to_values * values).sum(0) + to_weights[0] for values in (there, back)]
                total += torch.autograd.grad((first, second, there, back), inner, (*seen, to_values * first, to_values * second))[0]
            found.append(its[0] + torch.autograd.grad(padded, leaf, total)[0])
        return torch.cat(found), None, None, None, None


def _chunks(x: Tensor) -> tuple[Tensor, ...]:
    """As many images at a time as suit the device."""
    return x.split(max(1, CACHED // x[0, 0].numel())) if x.device.type == "cpu" else (x,)


Pairs = tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


def _pairs(padded: Tensor, offset: tuple[int, int], search: int, template: Sequence[float], least: float) -> Pairs:
    """For each pixel the weight of that at `offset` from it and its values; the same for that at the opposite offset.

    The two weights are one map, whose first pixels are all those of which either end of the pair is in the image.
    """
    (i, j), reach, half = offset, search // 2, len(template) // 2
    height, width = (side - 2 * (reach + half) for side in padded.shape[1:3])
    left = max(j, 0)
    top, start = reach - i, reach - left
    bottom, end = reach + height + 2 * half, start + width + abs(j) + 2 * half
    apart = padded[:, top:bottom, start:end] - padded[:, top + i : bottom + i, start + j : end + j]
    square = apart[0] * apart[0]
    for channel in apart[1:]:
        square = square.addcmul_(channel, channel)
    weight = F.threshold(_blurred(_blurred(square, template, 1), template, 0).neg().exp(), least, 0.0)

    def pair(row: int, column: int, up: int, across: int) -> tuple[Tensor, Tensor]:
        up, across = reach + half + up, reach + half + across
        return weight[row : row + height, column : column + width], padded[:, up : up + height, across : across + width]

    return pair(i, left, i, j), pair(0, left - j, -i, -j)


def _blurred(x: Tensor, kernel: Sequence[float], dim: int) -> Tensor:
    """The weighted sum of neighbours along `dim`, which gets shorter."""
    size = x.shape[dim] - len(kernel) + 1
    places = [place for place, factor in enumerate(kernel) if factor]
    total = x.narrow(dim, places[0], size) * kernel[places[0]]
    for place in places[1:]:
        total.add_(x.narrow(dim, place, size), alpha=kernel[place])
    return total


def _whole(values: Tensor) -> Tensor:
    """Rounded, with the identity's gradient."""
    return straight(values.detach().round(), values)


_XYZ = torch.tensor([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])
_WHITE = torch.tensor([0.950456, 1.0, 1.088754]).view(1, 3, 1, 1)


def _lab(x: Tensor) -> Tensor:
    """Linear RGB in [0, 1] to OpenCV's 8-bit Lab: L by 255 / 100 (116 by 296 / 100), a and b moved by 128."""
    t = torch.einsum("ij,bjhw->bihw", _XYZ.to(x), x) / _WHITE.to(x)
    f = torch.where(t > 0.008856, t.clamp(min=0.008856) ** (1 / 3), 7.787 * t + 16 / 116)
    fx, fy, fz = f.split(1, dim=1)
    return torch.cat([296 * fy - 40.8, 500 * (fx - fy) + 128, 200 * (fy - fz) + 128], dim=1).clamp(0, 255)


def _rgb(lab: Tensor) -> Tensor:
    """The way back, linear RGB in [0, 1]."""
    light, a, b = lab.split(1, dim=1)
    fy = (light / 2.55 + 16) / 116
    f = torch.cat([fy + (a - 128) / 500, fy, fy - (b - 128) / 200], dim=1)
    t = torch.where(f > 0.206893, f**3, (f - 16 / 116) / 7.787)
    return torch.einsum("ij,bjhw->bihw", torch.linalg.inv(_XYZ).to(lab), t * _WHITE.to(lab)).clamp(0, 1)
