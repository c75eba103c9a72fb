"""Metrics as an evaluation takes them: one value per image, NaN where an image does not count, while images and attacked ones are at hand.

Source: Efficient Defenses 2017, arXiv:1707.06728, section 4.1; each metric's own file has the formulas.
Which images count: the first two metrics speak of perturbations that change a prediction, hence of images that are right when clean and
that the attack broke; the third of every image. Where an attack failed, what it tried last says nothing of the smallest perturbation.
As published, the first two count every image whose prediction changed: evaluate with attack_misclassified=true for all of the code's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.knobs import Knobs
from robustbench_lab.metrics.empirical_robustness import empirical_robustness, empirical_robustness_as_published
from robustbench_lab.metrics.loss_sensitivity import loss_sensitivity, loss_sensitivity_as_published
from robustbench_lab.metrics.nearest_neighbour import distance_to_training_set, distance_to_training_set_as_published


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


class EmpiricalRobustness(OfBroken):
    """|x_adv - x| / |x| in l2 (eq. 2), or in linf as published."""

    @property
    def minimal(self) -> bool:
        return True

    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        if self.as_published:
            return empirical_robustness_as_published(x, x_adv, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return empirical_robustness(x, x_adv)


class TrainingSetDistance(OfBroken):
    """From an attacked image to its nearest training image in l2, or that squared over |x| as published."""

    needs_train: ClassVar[bool] = True

    @property
    def minimal(self) -> bool:
        return self.as_published  # the authors' code took minimal perturbations; the text speaks of adversarial images of any kind

    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        assert seen.train is not None, "who evaluates hands over the training images"
        if self.as_published:
            return distance_to_training_set_as_published(x, x_adv, seen.train, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return distance_to_training_set(x_adv, seen.train)


class LossSensitivity(Measure):
    """The length of the loss's gradient at x, or of the predicted class's probability as published."""

    def __call__(self, seen: Seen) -> Tensor:
        return loss_sensitivity_as_published(seen.model, seen.x) if self.as_published else loss_sensitivity(seen.model, seen.x, seen.y)
