"""The Attention U-Net, a network from images to maps of their own size; it is no classifier, and no choice of conf/backbone.

Source: Oktay et al. 2018 (Attention U-Net), arXiv:1804.03999, section 2; widths, layers and gates as LeeJunHyun/Image_Segmentation has them
(network.py, AttU_Net), the form that papers of two-dimensional images use.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn

from robustbench_lab.backbones.base import sequence
from robustbench_lab.knobs import Count, at_least, check, require


class AttentionUNet(nn.Module):
    """Images [B, channels, H, W] to maps [B, out_channels, H, W] of any real numbers.

    Down: `levels` times two convolutions and a halving, in widths of width, 2 width, 4 width, ...; up: a doubling, a gate on the maps of
    the same size on the way down, both together, two convolutions. As published: width 64, four levels, 34,878,573 parameters from 3
    channels to 1.
    Raises LabError, naming the knob, for images that cannot be halved so often.
    """

    def __init__(self, channels: int, out_channels: int, width: int, levels: int) -> None:
        super().__init__()
        check("channels", channels, Count)
        check("out_channels", out_channels, Count)
        check("width", width, Annotated[int, at_least(2)])
        check("levels", levels, Count)
        self.levels = levels
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(two_convolutions(inputs, outputs) for inputs, outputs in pairwise([channels, *widths]))
        self.halve = nn.MaxPool2d(2)
        upwards = list(pairwise(reversed(widths)))
        self.enlarge = nn.ModuleList(
            nn.Sequential(nn.Upsample(scale_factor=2), *convolution(deep, skip))  # of nearest neighbours
            for deep, skip in upwards
        )
        self.gates = nn.ModuleList(AttentionGate(skip, skip // 2) for _, skip in upwards)
        self.up = nn.ModuleList(two_convolutions(2 * skip, skip) for _, skip in upwards)
        self.head = nn.Conv2d(width, out_channels, 1)

    def check(self, shape: Sequence[int]) -> None:
        """Stop, naming the knob, if images [C, H, W] cannot be halved `levels` times."""
        height, width = shape[-2:]
        least = 2**self.levels
        fits = next(level for level in range(self.levels, -1, -1) if height % 2**level == 0 == width % 2**level)
        remedy = f"levels={fits} takes these" if fits else "no other number takes sides that are odd"
        expected = f"images whose sides can be halved {self.levels} times, multiples of {least} of at least {least} pixels ({remedy})"
        require(fits == self.levels, "levels", expected, f"{height}x{width}")

    def forward(self, x: Tensor) -> Tensor:
        self.check(x.shape)
        maps = []
        for number, stage in enumerate(self.down):
            x = stage(self.halve(x) if number else x)
            maps.append(x)
        for skip, enlarge, gate, up in zip(reversed(maps[:-1]), self.enlarge, self.gates, self.up, strict=True):
            x = enlarge(x)
            x = up(torch.cat([gate(skip, x), x], dim=1))
        return self.head(x)


class AttentionGate(nn.Module):
    """skip * psi, psi [B, 1, H, W] in (0, 1) from both the skipped maps and the deeper ones, [B, width, H, W] each.

    psi = sigmoid(BN(conv(ReLU(BN(conv(gate)) + BN(conv(skip)))))), of 1x1 convolutions; `inner` channels within.
    """

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.of_gate = sequence(conv=nn.Conv2d(width, inner, 1), norm=nn.BatchNorm2d(inner))
        self.of_skip = sequence(conv=nn.Conv2d(width, inner, 1), norm=nn.BatchNorm2d(inner))
        self.relu = nn.ReLU()
        self.psi = sequence(conv=nn.Conv2d(inner, 1, 1), norm=nn.BatchNorm2d(1), sigmoid=nn.Sigmoid())

    def forward(self, skip: Tensor, gate: Tensor) -> Tensor:
        return skip * self.psi(self.relu(self.of_gate(gate) + self.of_skip(skip)))


def convolution(inputs: int, outputs: int) -> list[nn.Module]:
    """3x3, with the bias that BatchNorm after it makes idle, as in that code; it counts among the parameters."""
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]


def two_convolutions(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(*convolution(inputs, outputs), *convolution(outputs, outputs))
