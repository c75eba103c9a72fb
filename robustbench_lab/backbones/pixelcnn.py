"""PixelCNN++, and a small network of its kind for a CPU: densities of images, no classifiers.

Source: Salimans, Karpathy, Chen and Kingma 2017 (PixelCNN++), arXiv:1701.05517; openai/pixel-cnn (model.py, nn.py), which PixelDefend's
release uses as it is.
Where we differ: there is no initialisation by data, and the first row and column of the first convolutions have their bias where theirs
have zeros.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.backbones.density import CausalConv, Density, Place, Pointwise, at
from robustbench_lab.knobs import Count, ShareBelowOne, check

Sees = Literal["rows", "pixels"]
KERNELS: dict[Sees, tuple[int, int]] = {"rows": (2, 3), "pixels": (2, 2)}  # "down-shifted" and "down-right-shifted"
SECOND_CONV = 0.1  # of a block: what its weights begin at, over what they would; nn.py, gated_resnet


def concat_elu(x: Tensor) -> Tensor:
    """ELU of x and of -x, side by side: [B, F, ...] -> [B, 2 F, ...]."""
    return F.elu(torch.cat([x, -x], dim=1))


def pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.utils.parametrizations.weight_norm(Pointwise(inputs, outputs))


class GatedBlock(nn.Module):
    """x + a sigmoid(b), where two causal convolutions of concat-ELUs make a and b of x; `others` further maps come in between."""

    def __init__(self, filters: int, sees: Sees, others: int, dropout: float) -> None:
        super().__init__()
        self.first = CausalConv(2 * filters, filters, KERNELS[sees], sees, normed=True)
        self.link = pointwise(2 * others * filters, filters) if others else None
        self.dropout = nn.Dropout(dropout)
        self.second = CausalConv(2 * filters, 2 * filters, KERNELS[sees], sees, normed=True)
        with torch.no_grad():
            self.second.conv.parametrizations.weight.original0 *= SECOND_CONV  # type: ignore[union-attr, operator]

    def forward(self, x: Tensor, others: list[Tensor], place: Place | None) -> Tensor:
        y = self.first(concat_elu(x), place)
        if self.link is not None:
            y = y + self.link(concat_elu(torch.cat(others, dim=1)))
        a, b = self.second(self.dropout(concat_elu(y)), place).chunk(2, dim=1)
        return x + a * torch.sigmoid(b)


class Doubled(nn.Module):
    """A transposed convolution to maps of twice the size, in which each pixel makes a block of 2x2, or a row two rows."""

    def __init__(self, filters: int, sees: Sees) -> None:
        super().__init__()
        whole = sees == "rows"
        conv = nn.ConvTranspose2d(filters, filters, KERNELS[sees], stride=2, padding=(0, int(whole)), output_padding=(0, int(whole)))
        self.conv = nn.utils.parametrizations.weight_norm(conv, dim=1)

    def forward(self, x: Tensor | None, place: Place | None) -> Tensor:
        """Of whole maps, or what belongs to a place of the larger maps; x: None where the smaller maps have nothing new."""
        if place is None:
            return self.conv(x)
        if x is not None:
            block = self.conv(x)
            if self not in place.memory:
                place.memory[self] = block.new_zeros(*block.shape[:3], place.width)
            column = place.column or 0
            place.memory[self][..., column : column + block.shape[3]] = block
        row = place.row % 2
        return at(place, place.memory[self][:, :, row : row + 1])


class Scale(nn.Module):
    """One size of maps in one of the two streams: blocks on the way to the next smaller size, that size, and blocks on the way back, which
    see each what a block on the way there made. A block of pixels sees what the same block of rows made, too."""

    def __init__(self, filters: int, blocks: int, scales: int, sees: Sees, dropout: float) -> None:
        super().__init__()
        self.whole = sees == "rows"
        others = 0 if self.whole else 1
        self.there = nn.ModuleList(GatedBlock(filters, sees, others, dropout) for _ in range(blocks))
        self.smaller = None
        if scales > 1:
            self.halved = CausalConv(filters, filters, KERNELS[sees], sees, stride=2, normed=True)
            self.smaller = Scale(filters, blocks, scales - 1, sees, dropout)
            self.enlarged = Doubled(filters, sees)
        count = blocks + 1 if scales > 1 else blocks
        self.back = nn.ModuleList(GatedBlock(filters, sees, others + 1, dropout) for _ in range(count))
        self.name = f"{scales}"

    def forward(self, x: Tensor, above: dict[str, Tensor], place: Place | None) -> Tensor:
        """above: the outputs of the blocks of rows, by name; they put them there, those of pixels take them."""
        kept = [x]
        for number, block in enumerate(self.there):
            x = self._passed(block, x, [], above, f"{self.name} there {number}", place)
            kept.append(x)
        if self.smaller is None:
            kept.pop()
        else:
            halved, there = self.halved(x, place), None if place is None else place.halved()
            due = place is None or there is not None
            x = self.enlarged(self.smaller(halved, above, there) if due else None, place)
        for number, block in enumerate(self.back):
            x = self._passed(block, x, [kept.pop()], above, f"{self.name} back {number}", place)
        return x

    def _passed(self, block: nn.Module, x: Tensor, kept: list[Tensor], above: dict[str, Tensor], name: str, place: Place | None) -> Tensor:
        if not self.whole:
            return block(x, [at(place, above[name]), *kept], place)
        above[name] = block(x, kept, place)
        return above[name]


class PixelCNNPlusPlus(Density):
    """Two streams of gated residual blocks, of whole rows and of pixels, at `scales` sizes of maps each half the one before.

    blocks: at each size, on the way down; on the way up as many, and one more where there is a smaller size. filters: of each block.
    Images of any size.
    """

    def __init__(
        self, channels: int, image_size: int, scales: int, blocks: int, filters: int, dropout: float, mixtures: int, levels: int
    ) -> None:
        super().__init__(channels, image_size, mixtures, levels)
        check("backbone.scales", scales, Count)
        check("backbone.blocks", blocks, Count)
        check("backbone.filters", filters, Count)
        check("backbone.dropout", dropout, ShareBelowOne)
        self.multiple = 2 ** (scales - 1)
        inputs = channels + 1
        self.rows_first = CausalConv(inputs, filters, (2, 3), "rows", shifted=True, normed=True)
        self.row_above = CausalConv(inputs, filters, (1, 3), "rows", shifted=True, normed=True)
        self.pixels_first = CausalConv(inputs, filters, (2, 1), "pixels", shifted=True, normed=True)
        self.rows_stream = Scale(filters, blocks, scales, "rows", dropout)
        self.pixels_stream = Scale(filters, blocks, scales, "pixels", dropout)
        self.head = pointwise(filters, self.outputs)

    def rows(self, seen: Tensor, place: Place | None = None) -> dict[str, Tensor]:
        above = {"first": self.row_above(seen, place)}
        self.rows_stream(self.rows_first(seen, place), above, place)
        return above

    def pixels(self, seen: Tensor, above: Any, place: Place | None = None) -> Tensor:
        x = self.pixels_first(seen, place) + at(place, above["first"])
        return self.head(F.elu(self.pixels_stream(x, above, place)))


class SmallPixelCNN(Density):
    """Two streams of residual convolutions with ReLU, of whole rows and of pixels: PixelCNN++ without gates and smaller maps.

    layers: of either stream, with `filters` each. No paper has it: ours, for a CPU.
    """

    def __init__(self, channels: int, image_size: int, layers: int, filters: int, mixtures: int, levels: int) -> None:
        super().__init__(channels, image_size, mixtures, levels)
        check("backbone.layers", layers, Count)
        check("backbone.filters", filters, Count)
        inputs = channels + 1
        self.rows_first = CausalConv(inputs, filters, (2, 3), "rows", shifted=True)
        self.pixels_first = CausalConv(inputs, filters, (1, 2), "pixels", shifted=True)
        self.rows_layers = nn.ModuleList(CausalConv(filters, filters, (2, 3), "rows") for _ in range(layers - 1))
        self.pixels_layers = nn.ModuleList(CausalConv(filters, filters, (1, 2), "pixels") for _ in range(layers - 1))
        self.links = nn.ModuleList(Pointwise(filters, filters) for _ in range(layers))
        self.outs = nn.ModuleList(Pointwise(filters, filters) for _ in range(layers - 1))
        self.head = Pointwise(filters, self.outputs)

    def rows(self, seen: Tensor, place: Place | None = None) -> list[Tensor]:
        x = self.rows_first(seen, place)
        above = [self.links[0](F.relu(x))]
        for conv, link in zip(self.rows_layers, self.links[1:], strict=True):
            x = x + conv(F.relu(x), place)
            above.append(link(F.relu(x)))
        return above

    def pixels(self, seen: Tensor, above: Any, place: Place | None = None) -> Tensor:
        x = self.pixels_first(seen, place) + at(place, above[0])
        for conv, out, row in zip(self.pixels_layers, self.outs, above[1:], strict=True):
            x = x + out(F.relu(conv(F.relu(x), place) + at(place, row)))
        return self.head(F.relu(x))
