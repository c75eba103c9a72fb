"""Random sampling: points drawn uniformly from the ball until one is misclassified.

Source: FM 2021, section 6: 100,000 draws for each of 1000 images, as a check that no gradient misleads.
Limits: in many dimensions a ball has its volume where no attack would look; it proves fragility, never robustness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, is_wrong, rows
from robustbench_lab.knobs import Count
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class RandomSampling(Attack):
    """The first misclassified draw; the last draw where there is none.

    draws: points per image. An image leaves with its first misclassified one whatever the model (`decides`): later ones would not count.
    """

    needs_finite_ball: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False

    draws: Count

    @torch.no_grad()
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        result, todo, at_once = x.clone(), torch.arange(len(x), device=x.device), max(len(x), 256)
        number, rng = 0, rng.fold("draw")
        while number < self.draws and len(todo):
            count = min(max(at_once // len(todo), 1), self.draws - number)
            numbers = torch.arange(number, number + count, device=x.device).repeat(len(todo))
            each = torch.arange(len(todo), device=x.device).repeat_interleave(count)
            drawn = budget.random_start(x[each], rng[each].at(numbers))  # a stream per draw: the chunks do not matter
            wrong = is_wrong(model(drawn), y[each]).view(-1, count)
            first = torch.where(wrong.any(dim=1), wrong.int().argmax(dim=1), count - 1)
            result[todo] = drawn.view(-1, count, *x.shape[1:])[torch.arange(len(todo), device=x.device), first]
            todo, x, y, rng = rows(~wrong.any(dim=1), todo, x, y, rng)
            number += count
        return result
