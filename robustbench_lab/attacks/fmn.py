"""Fast minimum-norm attack: normalised steps up the margin inside a ball whose radius follows the distance to the boundary.

Source: Pintor et al. 2021, arXiv:2102.12827, Algorithm 1, for l2 and linf, started from x; the radius is first estimated by linearising the
margin, and follows the verdict once a misclassified point is known; step size and gamma fall along half a cosine.
Where we differ: before a misclassified point is known, the radius grows by gamma at least, not by the estimate alone: where the box cuts
the steps short, that comes ever closer to the boundary and may never cross it (on the digits in l2: 4 images of 10).
Limits: the length of a step is measured in l2 for both norms, so that `max_step_size` wants tuning for linf and for large images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import decides, is_wrong, rows
from robustbench_lab.attacks.ddn import Nearest, cosine
from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.knobs import Count, Positive, at_least, below, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image

LAST_GAMMA = 0.001  # section 3.1 of the paper, and its code


@dataclass(frozen=True, kw_only=True)
class FMN(GradientAttack):
    """Gradient steps, each followed by a projection onto a ball of the image's own radius.

    loss: margin or dlr: the radius is estimated from a loss that is zero on the boundary.
    steps: forward and backward passes; the nearest misclassified iterate counts.
    max_step_size, min_step_size: l2 length of the first step and of the last.
    gamma: the share by which the radius shrinks or grows in the first step; 0.001 in the last.

    An image leaves if it is misclassified as it is. In a finite ball, it leaves as soon as a misclassified point inside is found, where the
    model decides the verdict: its distance is an upper bound then.
    """

    needs_finite_ball: ClassVar[bool] = False
    minimal: ClassVar[bool] = True
    steps: Count
    max_step_size: Positive
    min_step_size: Positive
    gamma: Annotated[float, at_least(LAST_GAMMA), below(1)]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.loss in ("margin", "dlr"), "loss", "margin or dlr, losses that are zero on the boundary", self.loss)
        most, least = self.max_step_size, self.min_step_size
        require(least <= most, "min_step_size", "a number > 0, at most max_step_size", least)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        y, loss, nearest, original = self.labels_for(model, x, y), self.loss_of(model), Nearest(x, budget, decides(model)), x
        norm, dual = (2.0, 2.0) if budget.norm == "l2" else (math.inf, 1.0)
        todo, delta, radius = torch.arange(len(x), device=x.device), torch.zeros_like(x), x.new_zeros(len(x))
        box, direction = Budget(budget.norm, math.inf), Budget("l2", math.inf)
        for step in range(self.steps):
            gradient, value, logits = self.gradient(model, x + delta, y, loss)
            wrong, length = is_wrong(logits, y), delta.flatten(1).norm(p=norm, dim=1)
            left = nearest.offer(todo, x + delta, length, wrong)
            if not left.all():
                todo, x, y, delta, radius, gradient, value, wrong, length = rows(
                    left, todo, x, y, delta, radius, gradient, value, wrong, length
                )  # fmt: skip
                if not len(todo):
                    break
            share = step / self.steps
            gamma, best = cosine(share, self.gamma, LAST_GAMMA), nearest.distance[todo]
            estimate = length + value.abs() / gradient.flatten(1).norm(p=dual, dim=1).clamp(min=1e-12)
            grown = torch.maximum(radius * (1 + gamma), torch.where(best < math.inf, 0.0, estimate))
            radius = torch.where(wrong, torch.minimum(radius * (1 - gamma), best), grown)
            delta = delta + cosine(share, self.max_step_size, self.min_step_size) * direction.steepest(gradient)
            delta = box.project(x + _within(delta, radius, budget.norm), x) - x
        return budget.project(nearest.x, original)


def _within(delta: Tensor, radius: Tensor, norm: str) -> Tensor:
    """The nearest point of the ball around 0 whose radius [B] is the image's own."""
    if norm == "linf":
        bound = per_image(radius, delta)
        return torch.minimum(torch.maximum(delta, -bound), bound)
    return delta * per_image((radius / delta.flatten(1).norm(dim=1).clamp(min=1e-12)).clamp(max=1), delta)
