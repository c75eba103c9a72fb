"""Decoupled direction and norm: l2 steps of the loss's direction, on a sphere that shrinks while the image is misclassified and grows else.

Source: Rony et al. 2019, arXiv:1811.09600, Algorithm 1; the cosine decay of the step size from 1 to 0.01: section 4.
Where we differ: the paper rounds every iterate to 8-bit pixels; here this is a knob, null by default, as in Foolbox. As in the authors'
code, the radius never exceeds the distance to the furthest corner of the box, and a random direction stands in for a gradient of zero.
Limits: the cross-entropy of a model that is very sure has a gradient of zero in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import decides, is_wrong, rows
from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.knobs import Count, Positive, above, below
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image


@dataclass(frozen=True, kw_only=True)
class DDN(GradientAttack):
    """Steps of shrinking length, each put back onto a sphere around x whose radius follows the verdict.

    steps: forward and backward passes; the nearest misclassified iterate counts.
    gamma: the share by which the radius shrinks or grows in a step.
    initial_norm: the first radius, in l2.
    levels: null, or into how many steps [0, 1] is divided: every iterate is rounded to them (255 for 8-bit images).

    An image leaves if it is misclassified as it is. In a finite ball, it leaves as soon as a misclassified point inside is found, where the
    model decides the verdict: its distance is an upper bound then.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs_finite_ball: ClassVar[bool] = False
    minimal: ClassVar[bool] = True
    steps: Count
    gamma: Annotated[float, above(0), below(1)]
    initial_norm: Positive
    levels: Count | None

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        y, loss, nearest, original = self.labels_for(model, x, y), self.loss_of(model), Nearest(x, budget, decides(model)), x
        todo, delta, radius = torch.arange(len(x), device=x.device), torch.zeros_like(x), x.new_full((len(x),), self.initial_norm)
        corner = torch.maximum(x, 1 - x).flatten(1).norm(dim=1)  # how far the box reaches
        sphere = Budget("l2", math.inf)
        for step in range(self.steps):
            gradient, _, logits = self.gradient(model, x + delta, y, loss)
            wrong = is_wrong(logits, y)
            left = nearest.offer(todo, x + delta, delta.flatten(1).norm(dim=1), wrong)
            if not left.all():
                todo, x, y, rng, delta, radius, corner, gradient, wrong = rows(
                    left, todo, x, y, rng, delta, radius, corner, gradient, wrong
                )  # fmt: skip
                if not len(todo):
                    break
            flat = (gradient == 0).flatten(1).all(dim=1)
            if flat.any():
                gradient[flat] = rng[flat].fold("flat", step).normal(*x.shape[1:]).to(x.dtype)
            delta = delta + cosine(step / self.steps, 1.0, 0.01) * sphere.steepest(gradient)
            radius = torch.minimum(radius * torch.where(wrong, 1 - self.gamma, 1 + self.gamma), corner)
            x_adv = sphere.project(x + delta * per_image(radius / delta.flatten(1).norm(dim=1).clamp(min=1e-12), x), x)
            if self.levels is not None:
                x_adv = (x_adv * self.levels).round() / self.levels
            delta = x_adv - x
        return budget.project(nearest.x, original)


def cosine(share: float, first: float, last: float) -> float:
    """From `first` to `last` along half a cosine, after that share of the way."""
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


class Nearest:
    """The nearest misclassified point of each image so far; x itself where none was found."""

    def __init__(self, x: Tensor, budget: Budget, decides: bool) -> None:
        self.x, self.distance = x.clone(), x.new_full((len(x),), math.inf)
        self.enough = budget.eps if decides and budget.eps < math.inf else 0.0

    def offer(self, todo: Tensor, x_adv: Tensor, distance: Tensor, wrong: Tensor) -> Tensor:
        """Points of some images, their distances and whether they are misclassified; which of the images go on searching, bool [B]."""
        new = torch.nonzero(wrong & (distance < self.distance[todo]))[:, 0]
        at = todo[new]
        self.x[at], self.distance[at] = rows(new, x_adv, distance)
        return self.distance[todo] > self.enough
