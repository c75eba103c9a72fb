"""What a mask on the pixels leaves of clean images: their brightness, and pixels. Masks of all ones or all zeros are seen here.

Source: ours; the masks are those of Yu et al. 2022 (SFM-Defense), section 3.2, or take their place.
Every image counts, right or wrong; nothing depends on the attack. Of random masks each image counts with one draw.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.mask import Mask, kept_brightness, share_of_zeros
from robustbench_lab.knobs import require
from robustbench_lab.metrics.base import Measure, Seen


@dataclass(frozen=True, kw_only=True)
class OfMasks(Measure):
    """Float64 [B], of images as they come to the model's first mask and as they leave it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.as_published, "as_published", "false: no code of it is published", self.as_published)

    def check(self, model: nn.Module) -> None:
        mask_of(model)

    @torch.no_grad()
    def __call__(self, seen: Seen) -> Tensor:
        mask, came = mask_of(seen.model), []
        handle = mask.register_forward_pre_hook(lambda module, args: came.append(args[0]))
        try:
            seen.model(seen.x)  # whatever stands before the mask
        finally:
            handle.remove()
        masks = mask.masks(came[0])
        return self.of(came[0], masks).double()

    @abstractmethod
    def of(self, x: Tensor, masks: Tensor) -> Tensor:
        """[B], of images [B, C, H, W] and their masks [B, 1, H, W]."""


class MaskBrightness(OfMasks):
    """|m x|_1 / |x|_1, from 0 to 1."""

    def of(self, x: Tensor, masks: Tensor) -> Tensor:
        return kept_brightness(x, masks * x)


class MaskZeros(OfMasks):
    """The share of pixels whose mask is below 0.05, from 0 to 1."""

    def of(self, x: Tensor, masks: Tensor) -> Tensor:
        return share_of_zeros(masks)


def mask_of(model: nn.Module) -> Mask:
    """The model's first mask. Raises LabError where there is none."""
    mask = next((module for module in model.modules() if isinstance(module, Mask)), None)
    if mask is None:
        raise LabError(
            f"expected a defense that masks pixels, such as defense=sfm, got one whose {type(model).__name__} has no mask; leave it out"
        )
    return mask
