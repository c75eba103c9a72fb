"""The Jacobian-based saliency map attack: single features moved by a fixed amount, those first whose move helps the target most.

Source: Papernot et al. 2016, arXiv:1511.07528, eq. 8 and algorithms 2 and 3 (pairs of features); without a target, with the roles of the
classes exchanged: Wiyatno and Xu 2018, arXiv:1808.07945 (NT-JSMA). A feature is one channel of one pixel, as in the papers.
The forward derivatives are those of the logits, as in CleverHans, whose values of theta and gamma the literature quotes.
Where we differ: where no feature (or pair) has a positive saliency the image is given up; CleverHans then moves the first feature.
In a ball: in l0 an image that has moved eps pixels (or all but one, with pairs) goes on in those alone; in linf a move ends at the ball; in
l2 an image that has left the ball is given up. What is given up is returned as it is, brought back into the ball.
Limits: greedy, and one or two features a step: for images of a few thousand features slow, and far from the fewest pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, rows
from robustbench_lab.attacks.gradients import rivals
from robustbench_lab.knobs import PositiveShare, at_least, at_most, one_of
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

DIRECTIONS = {"up": (1,), "down": (-1,), "both": (1, -1)}
TARGETS = ("none", "random", "least_likely", "rival")
MOST_PAIRS = 2**22  # pairs scored at once: bounds the memory


@dataclass(frozen=True, kw_only=True)
class JSMA(Attack):
    """Features moved by theta, one or two at a time, until the image is classified as its target.

    theta: how far a feature moves in a step, as a fraction of the pixel range.
    direction: up, down, or both: the better one; a feature that has moved goes no way back.
    revisit: whether a feature may move again, until it reaches the end of its range; false: once, as in CleverHans.
    gamma: the largest share of the features that may move.
    pairs: two features a step, as in the paper; false: one.
    targets: random, least_likely or rival (the likeliest other class), an image's search ending there; none: ending at any other class.
    """

    norms: ClassVar[tuple[str, ...]] = ("l0", "linf", "l2")
    needs_finite_ball: ClassVar[bool] = False
    minimal: ClassVar[bool] = True
    theta: Annotated[float, at_least(1e-3), at_most(1)]  # much smaller steps would be lost in float32, and with them the search's end
    direction: Annotated[str, one_of(DIRECTIONS)]
    revisit: bool
    gamma: PositiveShare
    pairs: bool
    targets: Annotated[str, one_of(TARGETS)]

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        limits = budget if budget.norm == "linf" else Budget(budget.norm, math.inf)  # what bounds each feature by itself
        signs = torch.tensor(DIRECTIONS[self.direction], device=x.device, dtype=x.dtype)
        x_adv, todo, goal = x.clone(), torch.arange(len(x), device=x.device), None
        while len(todo):
            start, point = x[todo], x_adv[todo].requires_grad_()
            logits = model(point)
            goal = self._goal(logits.detach(), y, rng) if goal is None else goal
            targeted = self.targets != "none"
            going = ((logits.argmax(dim=1) == goal) != targeted) & (budget.distance(point.detach(), start) <= _reach(budget))
            own = logits.gather(1, goal[:, None]).sum()
            gain = torch.autograd.grad(own, point, retain_graph=True)[0]
            loss = torch.autograd.grad(logits.sum() - own, point)[0]
            if not targeted:  # the true class is to fall, the others are to rise
                gain, loss = loss, gain
            todo, goal, start, point, gain, loss = rows(going, todo, goal, start, point.detach(), gain, loss)
            if not len(todo):
                break
            allowed = torch.cat([self._movable(point, start, int(sign), budget, limits) for sign in signs], dim=1)
            rise, fall = (_unit(torch.cat([sign * part.flatten(1) for sign in signs], dim=1)) for part in (gain, -loss))
            best = best_pair if self.pairs else best_single
            chosen, found = best(rise.where(allowed, -math.inf), fall.where(allowed, -math.inf))
            features = start[0].numel()
            move = torch.zeros_like(start).flatten(1).scatter_add(1, chosen % features, self.theta * signs[chosen // features])
            todo, goal, start, point, move = rows(found, todo, goal, start, point, move.view_as(start))
            x_adv[todo] = limits.project(point + move, start)
        return budget.project(x_adv, x)

    def _goal(self, logits: Tensor, y: Tensor, rng: ImageRandom) -> Tensor:
        """The class that each image is to reach, int64 [B]; without targets the one that it is to leave."""
        if self.targets == "random":
            classes = logits.shape[1]
            return (y + 1 + rng.fold("target").integers(classes - 1, 1)[:, 0]) % classes
        if self.targets == "least_likely":
            return logits.scatter(1, y[:, None], math.inf).argmin(dim=1)
        return rivals(logits, y, 1)[:, 0] if self.targets == "rival" else y

    def _movable(self, point: Tensor, start: Tensor, sign: int, budget: Budget, limits: Budget) -> Tensor:
        """Which features may go up (or down) by one more step, bool [B, N]."""
        each = 2 if self.pairs else 1
        ahead = sign * (limits.project(start + sign, start) - point) > 0
        moved, onwards = point != start, sign * (point - start) > 0
        movable = ahead & (~moved | onwards if self.revisit else ~moved)
        full = moved.flatten(1).sum(dim=1) + each > self.gamma * start[0].numel()
        movable &= moved | ~full.view(-1, 1, 1, 1)
        if budget.norm == "l0":
            pixels = moved.any(dim=1, keepdim=True)
            full = pixels.flatten(1).sum(dim=1) + each > budget.eps
            movable &= pixels | ~full.view(-1, 1, 1, 1)
        return movable.flatten(1)


def _reach(budget: Budget) -> float:
    """How far an image may go before it is given up; l0 and linf keep it inside at each step, up to rounding."""
    return budget.eps if budget.norm == "l2" else math.inf


def _unit(values: Tensor) -> Tensor:
    """Rows scaled to a largest size of 1, which changes no order: products of small gradients would underflow."""
    return values / values.abs().amax(dim=1, keepdim=True).clamp(min=1e-38)


def best_single(rise: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """The candidate [B, N] with the largest rise * fall, both above zero; -inf is none. Its index [B, 1], and whether there is one, [B]."""
    score = (rise * fall).where((rise > 0) & (fall > 0), 0.0)
    value, index = score.max(dim=1, keepdim=True)
    return index, value[:, 0] > 0


def best_pair(rise: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """The two candidates [B, N] with the largest product of summed rise and summed fall, both sums above zero; -inf is no candidate.

    Returns their indices, int64 [B, 2], and whether there are two, bool [B].

    Few candidates need be paired. Let them be sorted by falling rise, and say that p beats a later q if its fall is not smaller either. To
    put in a pair p for a q that it beats lowers neither sum, hence not the product. If two candidates beat q, one of them is not q's
    partner and may take q's place; each such exchange moves the pair towards the front, so they end: some best pair holds only candidates
    that at most one other beats, which is seen from the two largest falls before each. For gradients these are a few dozen of thousands.
    """
    order = rise.argsort(dim=1, descending=True, stable=True)
    ranked = fall.gather(1, order)
    keep = ranked > -math.inf
    if ranked.shape[1] > 2:
        largest = ranked.cummax(dim=1).values
        second = torch.minimum(ranked[:, 1:], largest[:, :-1]).cummax(dim=1).values  # at i: of the first i + 2
        keep[:, 2:] &= ranked[:, 2:] > second[:, :-1]
    image, place = keep.nonzero(as_tuple=True)
    slot = keep.cumsum(dim=1)[image, place] - 1
    index = order.new_zeros(len(rise), max(int(keep.sum(dim=1).max()), 1))
    index[image, slot] = order[image, place]
    used = torch.zeros_like(index, dtype=torch.bool)
    used[image, slot] = True
    rise, fall = (values.gather(1, index).where(used, -math.inf) for values in (rise, fall))
    parts = [_best_of_all(r, f) for r, f in zip(*(v.split(max(1, MOST_PAIRS // index.shape[1] ** 2)) for v in (rise, fall)), strict=True)]
    pair, found = (torch.cat(part) for part in zip(*parts, strict=True))
    return index.gather(1, pair), found


def _best_of_all(rise: Tensor, fall: Tensor) -> tuple[Tensor, Tensor]:
    """`best_pair` by trying all pairs."""
    rises, falls = (values[:, :, None] + values[:, None, :] for values in (rise, fall))
    score = (rises * falls).where((rises > 0) & (falls > 0), 0.0)
    score.diagonal(dim1=1, dim2=2).zero_()
    value, flat = score.flatten(1).max(dim=1)
    return torch.stack([flat // rise.shape[1], flat % rise.shape[1]], dim=1), value > 0
