"""FGSM with the smallest eps of a grid that changes the prediction: the "minimal perturbation" of Efficient Defenses.

Source: Efficient Defenses 2017, arXiv:1707.06728, section 4.1 (1), and the authors' code (Trusted-AI/adversarial-robustness-toolbox, 2017,
src/attackers/fast_gradient.py, minimal_perturbations): eps = step, 2 step, ... as long as the prediction stands.
Where we differ: `fixed` lets each image go on until it has changed. The authors' loop takes, from the third step on, positions among the
images of the step before for positions in the whole set: it goes on with the wrong images, forgets others, and overwrites some that had
changed. That leaves accuracies of 35 to 74 % where a correct loop leaves about none; `as_published` repeats it within each batch. The
authors' batch was the whole set with its misclassified images: evaluate with attack_misclassified=true.
Limits: one direction for all eps; the nearest misclassified image is far nearer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import is_wrong
from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.knobs import Positive, PositiveShare, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class MinimalFGSM(GradientAttack):
    """x + eps * sign(gradient at x), with the first eps of step, 2 step, ..., largest that is misclassified; the last where none is.

    step, largest: of the grid, in fractions of the pixel range. In a finite ball the grid ends at its eps.
    version: fixed, or as_published: with the authors' index error. Its result depends on the batch and the order of the images
        (`batchwise`): an evaluation takes the whole set as one.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs_finite_ball: ClassVar[bool] = False
    minimal_as_published: ClassVar[bool] = True  # its index error keeps it from the smallest
    step: Positive
    largest: PositiveShare
    version: Literal["fixed", "as_published"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step <= self.largest, "largest", "a number from step to 1", self.largest)

    @property
    def minimal(self) -> bool:  # type: ignore[override]
        return self.version == "fixed"

    @property
    def batchwise(self) -> bool:  # type: ignore[override]
        """Whether an image's result depends on its batch."""
        return self.version == "as_published"

    @property
    def whole_split(self) -> bool:  # type: ignore[override]
        """Whether an evaluation hands over all images at once: the authors' batch was the whole set."""
        return self.version == "as_published"

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        y = self.labels_for(model, x, y)
        gradient, _, logits = self.gradient(model, x, y, self.loss_of(model))
        direction = budget.steepest(gradient)
        largest = min(self.largest, budget.eps)
        count = math.ceil(largest / self.step - 1e-9)  # a last step shorter than the others, where the grid does not end at `largest`
        x_adv, todo = x.clone(), (~is_wrong(logits, y)).nonzero()[:, 0]
        for number in range(1, count + 1):
            x_adv[todo] = budget.project(x[todo] + min(number * self.step, largest) * direction[todo], x[todo])
            if number == count or not len(todo):
                break  # nothing comes after the last one: its verdict changes nothing
            with torch.no_grad():
                standing = (~is_wrong(model(x_adv[todo]), y[todo])).nonzero()[:, 0]
            # As published, positions in `todo` are read as positions in the batch.
            todo = standing if self.batchwise else todo[standing]
        return x_adv
