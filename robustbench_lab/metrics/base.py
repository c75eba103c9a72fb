"""What the metrics share: the checks of what they are given."""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lab.knobs import require


def check_images(**images: Tensor) -> None:
    """Stop, naming the argument, where a set of images is empty or has another shape per image than the first one's."""
    shape = next(iter(images.values())).shape[1:]
    for name, x in images.items():
        require(x.dim() == 4 and len(x) > 0, name, "images [N, C, H, W], at least one", list(x.shape))
        require(x.shape[1:] == shape, name, f"images of shape {list(shape)}", list(x.shape[1:]))


def check_attacked(x: Tensor, x_adv: Tensor) -> None:
    """Stop unless each image has its attacked one, of finite pixels."""
    check_images(x=x, x_adv=x_adv)
    require(len(x_adv) == len(x), "x_adv", f"{len(x)} images, one for each of x", len(x_adv))
    require(bool(torch.isfinite(x_adv).all()), "x_adv", "finite pixels", "NaN or inf")


def check_flipped(flipped: Tensor, x: Tensor) -> None:
    """Stop unless `flipped` is bool [N] and chooses an image."""
    fits = flipped.dtype == torch.bool and flipped.shape == x.shape[:1]
    require(fits, "flipped", f"bool [{len(x)}], one for each of x", f"{flipped.dtype} {list(flipped.shape)}")
    require(bool(flipped.any()), "flipped", "an image whose prediction the attack changed", f"none of {len(x)}")
