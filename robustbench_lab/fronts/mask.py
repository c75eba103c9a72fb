"""Masks on the pixels: what is learned, and what is not, is multiplied into all channels of an image.

Source: Yu et al. 2022 (SFM-Defense), Journal of Network Intelligence 7(4), 972-992, section 3.2, eq. 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robustbench_lab.backbones.attention_unet import AttentionUNet
from robustbench_lab.models.front import Front

ZERO = 0.05  # a pixel whose mask is below counts as taken away: at most 12 of its 255 levels are left


class Mask(Front):
    """x to m(x) * x, one mask for all channels of a pixel; differentiable, through the masks too."""

    def masks(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] to masks [B, 1, H, W] in [0, 1]."""
        raise TypeError(f"{type(self).__name__} does not define masks")

    def forward(self, x: Tensor) -> Tensor:
        return self.masks(x) * x


class MaskFront(Mask):
    """The sigmoid of what a network with one channel of output makes of the images."""

    def __init__(self, masker: AttentionUNet) -> None:
        super().__init__()
        self.masker = masker

    def check(self, shape: Sequence[int]) -> None:
        self.masker.check(shape)

    def masks(self, x: Tensor) -> Tensor:
        return self.masker(x).to(x.dtype).sigmoid()  # within autocast too: bf16 has but 8 bits of a mask near 1


def kept_brightness(x: Tensor, shown: Tensor) -> Tensor:
    """|shown|_1 / |x|_1 of each image, [B]; a black image has all of its brightness."""
    before = x.abs().flatten(1).sum(dim=1)
    return torch.where(before > 0, shown.abs().flatten(1).sum(dim=1) / before.clamp(min=torch.finfo(x.dtype).tiny), 1.0)


def share_of_zeros(masks: Tensor) -> Tensor:
    """Which share of each image's masks [B, 1, H, W] is below ZERO, [B]."""
    return (masks < ZERO).flatten(1).to(masks.dtype).mean(dim=1)
