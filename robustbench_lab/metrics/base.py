"""The contract of a metric: one value per image, NaN where an image does not count, while images and attacked ones are at hand.

Which images count: what speaks of perturbations that change a prediction counts images that are right when clean and that the attack broke
(`OfBroken`); what speaks of the model, every image. Where an attack failed, what it tried last says nothing of the smallest perturbation.
As published, the first count every image whose prediction changed: evaluate with attack_misclassified=true for all of the code's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.knobs import Knobs, require


@dataclass(frozen=True)
class Seen:
    """Some images and what became of them: x, x_adv [B, C, H, W] in [0, 1]; y int64 [B]; broken bool [B]: right when clean, wrong when
    attacked; flipped bool [B]: predicted otherwise when attacked, which is the same unless misclassified images are attacked too; train
    [M, C, H, W]: the training images, where a metric asks for them."""

    model: nn.Module
    x: Tensor
    x_adv: Tensor
    y: Tensor
    broken: Tensor
    flipped: Tensor
    train: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Measure(Knobs, ABC):
    """A metric; as_published: what the authors' code computes, where that is not their formula."""

    needs_train: ClassVar[bool] = False
    as_published: bool

    @property
    def minimal(self) -> bool:
        """Whether it speaks of the smallest perturbation, so that an attack must look for it."""
        return False

    @property
    def of_wrong_images(self) -> bool:
        """Whether images that were wrong when clean count with their perturbation, so that they must be attacked too."""
        return False

    def check(self, model: nn.Module) -> None:
        """Before any image is attacked: stop if it says nothing of this model. Raises LabError."""

    @abstractmethod
    def __call__(self, seen: Seen) -> Tensor:
        """Float64 [B], NaN for images that do not count."""


class OfBroken(Measure):
    """A metric of broken images; as published, of those whose prediction changed."""

    def __call__(self, seen: Seen) -> Tensor:
        values = torch.full(seen.y.shape, torch.nan, dtype=torch.float64, device=seen.x.device)
        counted = seen.flipped if self.as_published else seen.broken
        if counted.any():
            values[counted] = self.of_broken(seen, seen.x[counted], seen.x_adv[counted])
        return values

    @abstractmethod
    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        """Float64 [M], of the M images that count."""


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
