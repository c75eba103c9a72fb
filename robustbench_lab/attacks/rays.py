"""RayS: the sign vector along which the decision boundary is nearest, found with labels alone.

Source: Chen and Gu 2020, arXiv:2006.12792, Algorithms 2 (hierarchical search) and 3 (fast check, binary search).
Where we differ: each image goes through its own queries, where the authors' code keeps the batch in step; its queries are the same. The
budget of queries ends within a binary search too, whose nearest misclassified point then counts. An image leaves once a whole round over
its single pixels has changed nothing, for every later round would repeat it (not on models with random output).
Limits: one greedy pass from the all-ones vector; a direction counts only if the image is misclassified all the way from there on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, decides, is_random, is_wrong, rows
from robustbench_lab.knobs import Count, Positive
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image

BOX = Budget("linf", math.inf)


@dataclass(frozen=True, kw_only=True)
class RayS(Attack):
    """Flip one block of the signs at a time; keep the flip if the image is misclassified nearer along the new direction.

    queries: per image.
    tolerance: at which the binary search ends, as the l2 length of the step: tolerance / sqrt(C H W) in each pixel, as in the paper.

    In a finite ball an image leaves as soon as it is misclassified inside it: distances are upper bounds then.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    needs_finite_ball: ClassVar[bool] = False
    needs_gradients: ClassVar[bool] = False
    needs_logits: ClassVar[bool] = False
    minimal: ClassVar[bool] = True

    queries: Count
    tolerance: Annotated[Positive, "such as 1e-3"]

    @torch.no_grad()
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        clean, nearest = x, x.clone()
        size, device = x[0].numel(), x.device
        finest = (size - 1).bit_length()  # the level from which on a block is one pixel of one channel
        tolerance = self.tolerance / math.sqrt(size)
        near_enough = budget.eps if decides(model) and budget.eps < math.inf else -1.0
        pixel, todo = torch.arange(size, device=device), torch.arange(len(x), device=device)
        signs = torch.ones_like(x).flatten(1)
        radius = x.new_full((len(x),), math.inf)  # along `signs`, misclassified
        low, high = torch.zeros_like(radius), torch.zeros_like(radius)  # of the binary search
        searching = torch.zeros(len(x), dtype=torch.bool, device=device)  # else the next query is a fast check
        level, block, idle = (torch.zeros(len(x), dtype=torch.int64, device=device) for _ in range(3))
        for query in range(1, self.queries + 1):
            blocks = torch.ones_like(level) << level
            length = (size + blocks - 1) // blocks
            start = block * length
            flipped = (pixel >= start[:, None]) & (pixel < (start + length)[:, None])
            attempt = torch.where(flipped, -signs, signs)
            step = torch.where(searching, (low + high) / 2, radius.clamp(max=1))
            x_new = along(x, attempt, step)
            wrong = is_wrong(model(x_new), y)

            low = torch.where(wrong | ~searching, low, step)
            high = torch.where(wrong, step, high)
            inside = wrong & (step <= near_enough)
            searching = searching | wrong
            ended = searching & ((high - low <= tolerance) | inside | (query == self.queries))
            shorter = ended & (high < radius)
            nearest[todo[shorter]] = along(*rows(shorter, x, attempt, high))
            radius = torch.where(shorter, high, radius)
            signs = torch.where(shorter[:, None], attempt, signs)

            tried = ended | ~searching  # this block: on to the next
            idle = torch.where(shorter | (level < finest), 0, idle + tried)
            last = (block + 1 == blocks) | (start + length >= size)
            level = torch.where(tried & last, (level + 1).clamp(max=finest), level)
            block = torch.where(tried, torch.where(last, 0, block + 1), block)
            searching, low = searching & ~ended, torch.where(ended, 0.0, low)
            leaves = inside if is_random(model) else inside | (idle >= size)
            if leaves.any():
                kept = ~leaves
                todo, x, y, signs, radius = rows(kept, todo, x, y, signs, radius)
                low, high, searching, level, block, idle = rows(kept, low, high, searching, level, block, idle)
                if not len(todo):
                    break
        return budget.project(nearest, clean)  # itself, if it lies in the ball


def along(x: Tensor, signs: Tensor, step: Tensor) -> Tensor:
    """x + step * signs, cut by the box; signs [B, C H W], step [B]."""
    return BOX.project(x + per_image(step, x) * signs.view_as(x), x)
