"""Maximum likelihood: training of a density of images, which fronts such as pixel_defend learn from. It defends nothing by itself.

Source: PixelDefend (Song et al. 2018), arXiv:1710.10766, section 3, and its release (microsoft/PixelDefend, train_pxpp_softmax.py), which
minimises the cross-entropy of the binned mixture.
Limits: a run of it has no classes, so that there is nothing to attack: `evaluate` refuses it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lab.backbones.density import Density
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.models.defended import Defended


@dataclass(frozen=True, kw_only=True)
class Likelihood(Defense):
    """The negative log-likelihood of the training images, in bits per dimension: the mean over images and values, 8 for uniform 8 bits.

    The density takes pixels: the dataset's first layer, whatever it is, has no part in it. Each epoch tells `bits_per_dimension` of
    training images without dropout and, where the recipe holds some out, `validation_bits_per_dimension` of those.
    """

    trains_density: ClassVar[bool] = True

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        return density_of(model).bits_per_dimension(self.augmented(batch)).mean()

    def epoch_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        return {"bits_per_dimension": mean_bits(model, batches)}

    def validation_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        return {"validation_bits_per_dimension": mean_bits(model, batches)}


def density_of(model: Defended) -> Density:
    assert isinstance(model.network, Density), "a defense that trains_density is given one"
    return model.network


@torch.no_grad()
def mean_bits(model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> float:
    """Bits per dimension of these images in the model's mode."""
    return float(torch.cat([density_of(model).bits_per_dimension(x) for x, _, _ in batches]).double().mean())
