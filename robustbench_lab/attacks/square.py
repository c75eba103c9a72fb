"""Square: random search that repaints one square of the image per query.

Source: Andriushchenko et al. 2020, arXiv:1912.00049, Algorithm 1, with the proposals of Algorithm 2 (linf) and Algorithm 3 (l2).
Where we differ: each image has a square of its own, where AutoAttack's package draws one per query for the whole batch. Places reach the
last row and column, as in the paper; both of the authors' codes leave them out. In linf a square that would change nothing is drawn again,
as in the authors' first code; the package asks about the same image again.
Limits: the loss is that of one answer, so that on a model with random output the best point may only be a lucky one; up to 30 channels.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, decides, is_wrong, rows
from robustbench_lab.attacks.gradients import LOSSES
from robustbench_lab.knobs import Count, PositiveShare, one_of, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BLOCK = 64  # queries whose random numbers are drawn at once
DRAWS = 6  # whole numbers that one query needs


@dataclass(frozen=True, kw_only=True)
class Square(Attack):
    """One query per step; a proposal is kept if it raises the loss. Images leave when they are misclassified.

    queries: of each restart, the start among them.
    p_init: the fraction of the pixels that the first squares cover.
    halve_p_at: p is halved after so many of each 10,000 queries; a schedule for fewer queries is shortened in proportion.
    restarts: independent searches of the images that are still classified correctly; the best one counts.
    loss: ce, margin or dlr.
    """

    needs_gradients: ClassVar[bool] = False

    queries: Count
    p_init: PositiveShare
    halve_p_at: Sequence[float]
    restarts: Count
    loss: Annotated[str, one_of(LOSSES)]

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(a < b for a, b in pairwise(self.halve_p_at))
        require(rising, "halve_p_at", "rising numbers of queries", self.halve_p_at)

    @torch.no_grad()
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        x_adv, best = x.clone(), x.new_full((len(x),), -math.inf)
        todo = torch.arange(len(x), device=x.device)
        for restart in range(self.restarts):
            if not len(todo):
                break
            left, labels, streams = rows(todo, x, y, rng)
            found, value, broken = self._random_search(model, left, labels, budget, streams.fold("restart", restart))
            better = broken | ~(value <= best[todo])
            x_adv[todo[better]], best[todo[better]] = found[better], value[better]
            todo = todo[~broken]
        return x_adv

    def _random_search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> tuple[Tensor, Tensor, Tensor]:
        """Algorithm 1: the best point found, its loss [B], and whether the image left because it is misclassified, bool [B]."""
        loss, leave, propose = LOSSES[self.loss], decides(model), square if budget.norm == "linf" else bump
        result, result_value = x.clone(), x.new_full((len(x),), -math.inf)
        broken, todo = torch.zeros(len(x), dtype=torch.bool, device=x.device), torch.arange(len(x), device=x.device)
        x_best, best = x.clone(), result_value.clone()
        x_new = (stripes if budget.norm == "linf" else tiles)(x, budget, rng.fold("start"))
        for query in range(self.queries):
            if query > 0:
                block, place = divmod(query - 1, BLOCK)
                if place == 0:
                    draws = rng.fold("block", block).integers(1 << 30, BLOCK, DRAWS)
                x_new = propose(x, x_best, budget, self.side(query - 1, budget.norm, *x.shape[2:]), draws[:, place])
            logits = model(x_new)
            value = loss(logits, y)
            wrong = is_wrong(logits, y) & leave
            better = ~(value <= best) | wrong  # a loss that is NaN counts as better: the caller sees it
            x_best[better], best = x_new[better], torch.where(better, value, best)
            if wrong.any():
                left = todo[wrong]
                result[left], result_value[left], broken[left] = x_best[wrong], best[wrong], True
                todo, x, y, x_best, best, rng = rows(~wrong, todo, x, y, x_best, best, rng)
                if not len(todo):
                    break
                if query > 0:
                    draws = draws[~wrong]
        result[todo], result_value[todo] = x_best, best
        return result, result_value, broken

    def side(self, query: int, norm: str, height: int, width: int) -> int:
        """The side of the square after so many proposals; in l2 odd and at least 3, unless the image is smaller."""
        p = self.p_init / 2 ** bisect_left(self.halve_p_at, int(query / self.queries * 10_000))
        side = round(math.sqrt(p * height * width))
        if norm == "l2":
            side = max(side, 3) | 1
        return min(max(side, 1), height, width)


def stripes(x: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
    """The start in linf: eps up or down in each column of each channel."""
    up = rng.integers(2, x.shape[1], 1, x.shape[3]) == 1
    return budget.project(torch.where(up, x + budget.eps, x - budget.eps), x)


def square(x: Tensor, x_best: Tensor, budget: Budget, side: int, draws: Tensor) -> Tensor:
    """Algorithm 2: each channel of one square moves by 2 eps up or down, that is, to the other side of the ball or nowhere.

    draws: int64 [B, >= 4]: two for the place, one for the channels' signs, one for other signs where those change nothing.
    """
    place, patterns = window(draws[:, 0], draws[:, 1], side, x), 1 << x.shape[1]
    clean, old = x.flatten(2).gather(2, place), x_best.flatten(2).gather(2, place)
    down, up = budget.project(clean - budget.eps, clean), budget.project(clean + budget.eps, clean)
    pattern = draws[:, 2] % patterns
    same = (torch.where(bits(pattern, x), up, down) == old).flatten(1).all(dim=1)
    pattern = torch.where(same, pattern ^ (1 + draws[:, 3] % (patterns - 1)), pattern)  # uniform among the others
    return x_best.flatten(2).scatter(2, place, torch.where(bits(pattern, x), up, down)).view_as(x)


def tiles(x: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
    """The start in l2: a grid of bumps with random signs, five along the image's shorter edge."""
    height, width = x.shape[2:]
    side = max(min(height, width) // 5, 1)
    down, across = height // side, width // side
    grid = bumps(side, x.device).view(2, side, side).repeat(1, down, across)

    def spread(choice: Tensor) -> Tensor:
        return choice.bool().repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)

    upright = spread(rng.fold("rotation").integers(2, 1, down, across))
    sign = spread(rng.fold("sign").integers(2, x.shape[1], down, across))
    shape = torch.where(upright, grid[0], grid[1])
    delta = torch.zeros_like(x)
    top, left = (height - down * side) // 2, (width - across * side) // 2
    delta[:, :, top : top + down * side, left : left + across * side] = torch.where(sign, shape, -shape)
    return budget.project(x + budget.eps * budget.steepest(delta), x)


def bump(x: Tensor, x_best: Tensor, budget: Budget, side: int, draws: Tensor) -> Tensor:
    """Algorithm 3: a first square takes on a bump, and gets the length that a second square and the ball have left.

    draws: int64 [B, >= 6]: four for the places, one for the channels' signs, one for the bump's rotation.
    """
    delta = (x_best - x).flatten(2)
    first, second = window(draws[:, 0], draws[:, 1], side, x), window(draws[:, 2], draws[:, 3], side, x)
    # Not cut at zero as in the paper: a length that rounding has put outside the ball is taken back.
    unused = budget.eps**2 - delta.square().sum(dim=(1, 2))
    old = delta.gather(2, first)
    delta.scatter_(2, first, 0.0)
    given = old.square().sum(dim=2) + delta.gather(2, second).square().sum(dim=2)  # of the union of both squares, [B, C]
    delta.scatter_(2, second, 0.0)
    available = (given + unused[:, None] / x.shape[1]).clamp(min=0).sqrt()
    shape = bumps(side, x.device)[draws[:, 5] % 2, None]
    new = torch.where(bits(draws[:, 4], x), shape, -shape) + unit(old)
    delta.scatter_(2, first, unit(new) * available[:, :, None])
    return budget.project(x + delta.view_as(x), x)


@cache
def bumps(side: int, device: torch.device) -> Tensor:
    """Equation 2, length 1, and its transpose: [2, side * side]. Two halves of opposite sign, each highest at its middle."""
    halves = []
    for depth, sign in ((side // 2, 1.0), (side - side // 2, -1.0)):
        from_middle = torch.maximum((torch.arange(depth) - depth // 2).abs()[:, None], (torch.arange(side) - side // 2).abs()[None, :])
        terms = 1 / torch.arange(1, side // 2 + 2).double() ** 2
        sums = terms.flip(0).cumsum(0).flip(0)  # at d: 1 / (d + 1)^2 + ... + 1 / (n + 1)^2 with n = side // 2
        half = sums[from_middle]
        halves.append(sign * half / half.norm().clamp(min=1e-12))
    shape = torch.cat(halves)
    return torch.stack([shape, shape.T]).flatten(1).div(shape.norm()).float().to(device)


def window(top: Tensor, left: Tensor, side: int, x: Tensor) -> Tensor:
    """The places of one square per image in its flattened channels, int64 [B, C, side * side]; top and left are random numbers [B]."""
    height, width = x.shape[2:]
    steps = torch.arange(side, device=x.device)
    place = (top % (height - side + 1) * width + left % (width - side + 1))[:, None, None] + steps[:, None] * width + steps
    return place.flatten(1)[:, None].expand(-1, x.shape[1], -1)


def bits(pattern: Tensor, x: Tensor) -> Tensor:
    """One bit per channel, bool [B, C, 1]."""
    return ((pattern[:, None] >> torch.arange(x.shape[1], device=x.device)) & 1).bool()[:, :, None]


def unit(values: Tensor) -> Tensor:
    """Each channel [B, C, N] scaled to length 1; zero stays zero."""
    return values / values.norm(dim=2, keepdim=True).clamp(min=1e-12)
