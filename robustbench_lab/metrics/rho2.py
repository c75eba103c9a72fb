"""rho2: the size of the smallest perturbation in l2, relative to the image, both as the network is fed them. Larger is more robust.

Source: Deep Defense 2018, arXiv:1803.00404, eq. 7, after DeepFool 2016, arXiv:1511.04599 (rho_adv); the authors' code
(ZiangYan/deepdefense.pytorch, deepdefense.py, `test`). DeepFool stands for the smallest perturbation. The authors take the mean over all
images: of wrong ones, too, which are moved away from their prediction, and of those that DeepFool has not crossed within its steps. It does
not change with the scale of what the network is fed, but with its origin: |x| of pixels is not |x - mean|.
Limits: an attack's perturbation bounds the smallest one from above; where the attack failed, it bounds nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lab.metrics.base import OfBroken, Seen, check_attacked
from robustbench_lab.models.defended import Defended, full_precision


class Rho2(OfBroken):
    """|N(x_adv) - N(x)| / |N(x)| in l2, N the model's first layer; as published of every image, broken or not."""

    @property
    def minimal(self) -> bool:
        return True

    @property
    def of_wrong_images(self) -> bool:
        return self.as_published

    def __call__(self, seen: Seen) -> Tensor:
        return self.of_broken(seen, seen.x, seen.x_adv) if self.as_published else super().__call__(seen)

    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        return rho2(first_layer_of(seen.model), x, x_adv)


@torch.no_grad()
def rho2(first_layer: nn.Module, x: Tensor, x_adv: Tensor) -> Tensor:
    """Per image, float64 [N], for images [N, C, H, W]; NaN, so that it does not count, where the network is fed zeros alone.

    Raises LabError, naming what is missing, without images.
    """
    check_attacked(x, x_adv)
    with full_precision():
        clean, attacked = (first_layer(images).double().flatten(1) for images in (x, x_adv))
    length = clean.norm(dim=1)
    return (attacked - clean).norm(dim=1) / length.where(length > 0, torch.nan)


def first_layer_of(model: nn.Module) -> nn.Module:
    """The model's first layer; where it has fronts before that, or no such layer, the identity: its input is the images themselves."""
    layer = getattr(model.network, "normalise", None) if isinstance(model, Defended) and not len(model.fronts) else None
    return nn.Identity() if layer is None else layer
