"""SPSA: projected Adam on a gradient that is estimated from pairs of queries.

Source: Uesato et al. 2018, arXiv:1802.05666, Algorithm 1, with the Adam update and the margin loss of its section 4.
Where we differ: the probes x +- delta v are cut by the pixel box, for a model is asked about images only; at the box's edge the estimate
of a slope is half as large.
Limits: the estimate's noise falls with the square root of `samples`; on a robust model the paper takes thousands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, decides, is_wrong, rows
from robustbench_lab.attacks.gradients import LOSSES
from robustbench_lab.knobs import Count, Positive, PositiveShare, one_of
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BOX = Budget("linf", math.inf)
BETAS = (0.9, 0.999)  # Adam's, of Kingma and Ba 2015, Algorithm 1, as is the 1e-8 below
WORD = 64  # directions that one random word per pixel holds


@dataclass(frozen=True, kw_only=True)
class SPSA(Attack):
    """Steps of Adam along the estimated gradient, each followed by a projection. Images leave when they are misclassified.

    steps: of Adam. samples: random directions per step, two queries each; one more query per step tells whether the image may leave.
    delta: length of a probe in each pixel, in fractions of the pixel range.
    step_size: Adam's learning rate, in the same unit.
    loss: ce, margin or dlr.
    """

    needs_gradients: ClassVar[bool] = False

    steps: Count
    samples: Count
    delta: Annotated[PositiveShare, "such as 0.01"]
    step_size: Annotated[Positive, "such as 0.01"]
    loss: Annotated[str, one_of(LOSSES)]

    @torch.no_grad()
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        result, todo, at_once = x.clone(), torch.arange(len(x), device=x.device), max(len(x), 256)
        x_adv, mean, square = x, torch.zeros_like(x), torch.zeros_like(x)
        for step in range(1, self.steps + 1):
            if decides(model) and (wrong := is_wrong(model(x_adv), y)).any():
                result[todo[wrong]] = x_adv[wrong]
                todo, x, y, x_adv, mean, square, rng = rows(~wrong, todo, x, y, x_adv, mean, square, rng)
                if not len(todo):
                    break
            gradient = self.estimate(model, x_adv, y, rng.fold("step", step), at_once)
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient
            square = BETAS[1] * square + (1 - BETAS[1]) * gradient.square()
            scale = (square / (1 - BETAS[1] ** step)).sqrt() + 1e-8
            x_adv = budget.project(x_adv + self.step_size * mean / (1 - BETAS[0] ** step) / scale, x)
        result[todo] = x_adv
        return result

    def estimate(self, model: nn.Module, x: Tensor, y: Tensor, rng: ImageRandom, at_once: int) -> Tensor:
        """The mean over random signs v of v (f(x + delta v) - f(x - delta v)) / (2 delta), with up to `at_once` images per pass."""
        total, chunk = torch.zeros_like(x), max(at_once // (2 * len(x)), 1)
        for first in range(0, self.samples, WORD):
            words = rng.fold("word", first // WORD).bits(1, *x.shape[1:])  # each of their bits is one direction
            for numbers in torch.arange(min(WORD, self.samples - first), device=x.device).split(chunk):
                v = (words >> numbers.view(-1, 1, 1, 1) & 1).to(x.dtype) * 2 - 1  # [B, chunk, C, H, W]
                probes = torch.stack([x[:, None] + self.delta * v, x[:, None] - self.delta * v])
                values = LOSSES[self.loss](model(BOX.project(probes.flatten(0, 2), x)), y[:, None].expand(2, -1, len(numbers)).flatten())
                plus, minus = values.view(2, len(x), len(numbers))
                total += torch.einsum("bn,bnchw->bchw", plus - minus, v)
        return total / (2 * self.delta * self.samples)
