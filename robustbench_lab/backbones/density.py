"""What every density of images is: for each pixel a mixture of discretised logistics, made from the pixels before it.

Source: Salimans, Karpathy, Chen and Kingma 2017 (PixelCNN++), arXiv:1701.05517, sections 2.1 and 2.2, for the mixture; Song, Kim, Nowozin,
Ermon and Kushman 2018 (PixelDefend), arXiv:1710.10766, algorithm 1, for purification.
Where we differ: as in PixelDefend's release, and not as in PixelCNN++, each channel has the mixture's weights anew, whatever component the
channels before it came from; so what is trained is what is decoded. A bin is PixelCNN++'s, half a level to each side of its value; the
release cuts the range into 256 equal parts.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustbench_lab.knobs import Count, at_least, check

LOWEST_LOG_SCALE = -7.0  # of a logistic on [-1, 1]: one of 256 levels then has all of it. PixelCNN++'s nn.py


class Density(nn.Module):
    """A distribution over images [B, C, H, W] in [0, 1] whose values are `levels` equally spaced ones, 256 for 8 bits; others are rounded.

    p(image) is the product over pixels in raster order, and over a pixel's channels in their order: a pixel's mixture depends on the pixels
    before it alone, and the mean of a channel is linear in its own pixel's channels before it.
    A network has two parts, so that no pixel costs a pass over the whole image: `rows` makes what depends on whole rows above, `pixels` the
    rest. Both take the image, or at a `Place` what is new there, and give the whole, or what belongs to that place.
    It is no classifier: defense=likelihood trains it, and fronts such as pixel_defend use it.
    multiple: what its height and width must be multiples of; other images have zeros after them, which no pixel of theirs depends on.
    """

    multiple = 1

    def __init__(self, channels: int, image_size: int, mixtures: int, levels: int) -> None:
        super().__init__()
        check("dataset.channels", channels, Count)
        check("dataset.size", image_size, Count)
        check("backbone.mixtures", mixtures, Count)
        check("backbone.levels", levels, Annotated[int, at_least(2)])
        self.image_shape = (channels, image_size, image_size)
        self.mixtures = mixtures
        self.levels = levels

    @property
    def outputs(self) -> int:
        """P, how many numbers describe a pixel's mixture: 100 for 10 logistics of three channels, 30 of one."""
        channels = self.image_shape[0]
        return self.mixtures * (1 + 2 * channels + channels * (channels - 1) // 2)

    @abstractmethod
    def rows(self, seen: Tensor, place: Place | None = None) -> Any:
        """What `pixels` reads of whole rows above.

        seen: the framed image [B, C + 1, H, W]; at a place, the row before it, [B, C + 1, 1, W].
        """

    @abstractmethod
    def pixels(self, seen: Tensor, above: Any, place: Place | None = None) -> Tensor:
        """The numbers that describe each pixel's mixture, [B, P, H, W]; at a place [B, P, 1, 1].

        seen: the framed image; at a place, the pixel before it, [B, C + 1, 1, 1]. above: what `rows` made.
        """

    def framed(self, values: Tensor) -> Tensor:
        """Values in [-1, 1] [B, C, H, W] with a channel of ones after theirs, which tells them from the zeros around the image."""
        height, width = (-size % self.multiple for size in values.shape[2:])
        return F.pad(torch.cat([values, torch.ones_like(values[:, :1])], dim=1), (0, width, 0, height))

    def forward(self, x: Tensor) -> Tensor:
        """The numbers that describe each pixel's mixture, [B, P, H, W]; `Mixture` reads them."""
        seen = self.framed(self.scaled(self.level_of(x)))
        return self.pixels(seen, self.rows(seen))[:, :, : x.shape[2], : x.shape[3]]

    def level_of(self, x: Tensor) -> Tensor:
        """The nearest level, 0 to levels - 1, in whole floats."""
        return torch.round(x * (self.levels - 1))

    def scaled(self, level: Tensor) -> Tensor:
        """Levels as values in [-1, 1]."""
        return 2 * level / (self.levels - 1) - 1

    def log_likelihood(self, x: Tensor) -> Tensor:
        """The logarithm of each image's probability, [B], in nats, at most 0."""
        mixture = Mixture(self(x).float().movedim(1, -1), x.shape[1], self.levels)
        values = self.scaled(self.level_of(x)).unbind(1)
        terms = [mixture.log_probability(value, values[:channel]) for channel, value in enumerate(values)]
        return torch.stack(terms).sum(dim=(0, 2, 3))

    def bits_per_dimension(self, x: Tensor) -> Tensor:
        """The negative log-likelihood in bits over the number of values, C x H x W: [B], 8 under a uniform density of 8-bit images."""
        return -self.log_likelihood(x) / (math.log(2) * x[0].numel())

    @torch.no_grad()
    def purified(self, x: Tensor, strength: int) -> Tensor:
        """What is decoded greedily within `strength` levels of x: pixel by pixel in raster order, and there channel by channel, the
        likeliest value given those that were chosen before it. Images of other values than the levels' are rounded first.

        Each place is computed once, from what is remembered of the places before it: an image costs about one pass.
        """
        centre = self.level_of(x)
        chosen = torch.empty_like(centre)
        seen = F.pad(self.framed(torch.zeros_like(centre)), (1, 0, 1, 0))  # what is before the image is zeros
        start = Place(0, None, seen.shape[3] - 1)
        with torch.autocast(x.device.type, enabled=False), parametrize.cached():
            for row in range(x.shape[2]):
                above = self.rows(seen[:, :, row : row + 1, 1:], replace(start, row=row))
                for column in range(x.shape[3]):
                    before = seen[:, :, row + 1 : row + 2, column : column + 1]
                    described = self.pixels(before, above, replace(start, row=row, column=column))[:, :, 0, 0]
                    found = self.likeliest(described, centre[:, :, row, column], strength)
                    chosen[:, :, row, column] = found
                    seen[:, : x.shape[1], row + 1, column + 1] = self.scaled(found)
        return chosen / (self.levels - 1)

    def likeliest(self, described: Tensor, centre: Tensor, strength: int) -> Tensor:
        """The level of each channel of a pixel, [B, C], that is likeliest within `strength` of `centre` [B, C], given those chosen before.

        described: [B, P].
        """
        mixture = Mixture(described.unsqueeze(1), centre.shape[1], self.levels)
        around = torch.arange(-strength, strength + 1, device=centre.device, dtype=centre.dtype)
        chosen: list[Tensor] = []
        for middle in centre.unbind(1):
            candidates = middle.unsqueeze(1) + around
            found = mixture.log_probability(self.scaled(candidates), [self.scaled(level) for level in chosen])
            found = found.masked_fill((candidates < 0) | (candidates > self.levels - 1), -math.inf)
            chosen.append(candidates.gather(1, found.argmax(dim=1, keepdim=True)))
        return torch.cat(chosen, dim=1)


class Mixture:
    """Mixtures of discretised logistics over the values of some channels, each of `levels` equally spaced ones in [-1, 1].

    described [..., P]: the logarithms of the K weights, up to a constant; C x K means; C x K logarithms of scales; and, through tanh, the
    slopes of later channels' means: of G in R, of B in R, of B in G, and so on, K each.
    """

    def __init__(self, described: Tensor, channels: int, levels: int) -> None:
        pairs = channels * (channels - 1) // 2
        parts = described.unflatten(-1, (1 + 2 * channels + pairs, -1))
        weights, self.means, log_scales, slopes = parts.split([1, channels, channels, pairs], dim=-2)
        self.log_weights = F.log_softmax(weights[..., 0, :], dim=-1)
        self.steepness = torch.exp(-log_scales.clamp(min=LOWEST_LOG_SCALE))
        self.half = 1 / (levels - 1)  # of a bin
        self.log_width = torch.log(-torch.expm1(-2 * self.half * self.steepness))
        self.slopes = torch.tanh(slopes)

    def mean(self, before: Sequence[Tensor]) -> Tensor:
        """The means [..., K] of the channel after those whose values [...] these are."""
        channel = len(before)
        mean, first = self.means[..., channel, :], channel * (channel - 1) // 2
        for number, value in enumerate(before):
            mean = mean + self.slopes[..., first + number, :] * value.unsqueeze(-1)
        return mean

    def log_probability(self, value: Tensor, before: Sequence[Tensor]) -> Tensor:
        """The logarithm [...] of the probability of a value [...] of the channel after those whose values are `before`.

        The lowest level has all that is below it too, the highest all that is above.
        """
        channel, value = len(before), value.unsqueeze(-1)
        steepness = self.steepness[..., channel, :]
        centred, margin = (value - self.mean(before)) * steepness, self.half * steepness
        below, above = log_sigmoid(centred + margin), log_sigmoid(margin - centred)
        # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): nothing cancels, however far from the mean
        bins = below + above + self.log_width[..., channel, :]
        bins = torch.where(value < self.half - 1, below, torch.where(value > 1 - self.half, above, bins))
        return torch.logsumexp(self.log_weights + bins, dim=-1)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(1 / (1 + exp(-x))) up to rounding of sums with 1: on a CPU several times as fast as F.logsigmoid, by exp and log alone."""
    return x.clamp(max=0) - torch.log(1 + torch.exp(-x.abs()))


@dataclass(frozen=True)
class Place:
    """The row, or the pixel, that is computed next, in maps of `width`; `memory` is what its layers remember of the places before it.

    Source: Ramachandran et al. 2017, arXiv:1704.06001.
    """

    row: int
    column: int | None
    width: int
    memory: dict[nn.Module, Tensor] = field(default_factory=dict)

    def halved(self) -> Place | None:
        """The place that is due now in maps of half the size; None at an odd row or column."""
        if self.row % 2 or (self.column or 0) % 2:
            return None
        return replace(self, row=self.row // 2, column=None if self.column is None else self.column // 2, width=self.width // 2)


def at(place: Place | None, row: Tensor) -> Tensor:
    """What of a row's features [B, F, 1, W] stands at a pixel's column, [B, F, 1, 1]; without a place, or at a row's, all."""
    return row if place is None or place.column is None else row[..., place.column : place.column + 1]


class Pointwise(nn.Conv2d):
    """A convolution of each pixel by itself: of one pixel the product with a matrix, which is faster there."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (1, 1):
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1), self.bias)[..., None, None]


class CausalConv(nn.Module):
    """A convolution that sees no input below its output's place, nor, if it sees `pixels` and not whole `rows`, to its right.

    kernel: height and width; its last row, and of one that sees pixels its last column, is the output's place.
    shifted: it does not see that place itself, but ends one row, or one pixel, before it.
    normed: with weights normalised to a length that is learned apart (Salimans and Kingma 2016, arXiv:1602.07868).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: tuple[int, int],
        sees: Literal["rows", "pixels"],
        *,
        stride: int = 1,
        shifted: bool = False,
        normed: bool = False,
    ) -> None:
        super().__init__()
        (height, width), whole = kernel, sees == "rows"
        across = (width // 2, width // 2) if whole else (width - 1 + shifted, -int(shifted))
        down = (height - 1 + shifted, -int(shifted)) if whole else (height - 1, 0)
        self.padding = (*across, *down)
        conv = nn.Conv2d(inputs, outputs, kernel, stride=stride)
        self.conv: nn.Conv2d = nn.utils.parametrizations.weight_norm(conv) if normed else conv  # type: ignore[assignment]

    def forward(self, x: Tensor, place: Place | None = None) -> Tensor:
        """Of whole maps [B, F, H, W]; at a place, of what is the newest that the kernel sees there, a row [B, F, 1, W] or a pixel."""
        if place is None:
            return self.conv(F.pad(x, self.padding))
        window = self._window(x, place)
        if place.column is None:
            return self.conv(window)
        return F.linear(window.flatten(1), self.conv.weight.flatten(1), self.conv.bias)[..., None, None]

    def _window(self, x: Tensor, place: Place) -> Tensor:
        """What of the padded input is under the kernel, once x is in it; for a row, in all columns."""
        height, width = self.conv.kernel_size
        left, right, *_ = self.padding
        rows = place.memory.get(self)  # the last ones, oldest first
        if rows is None:
            rows = place.memory[self] = x.new_zeros(len(x), x.shape[1], height, left + place.width + right)
        if not place.column:  # a row begins
            rows[:, :, :-1] = rows[:, :, 1:].clone()
            rows[:, :, -1] = 0
        if place.column is None:
            rows[:, :, -1, left : left + place.width] = x[:, :, 0]
            return rows
        rows[:, :, -1, place.column + width - 1] = x[:, :, 0, 0]
        return rows[..., place.column : place.column + width]
