"""Fast adaptive boundary attack: the nearest misclassified image, by projections onto the linearised decision boundary and back towards x.

Source: Croce and Hein 2020, arXiv:1907.02044, Algorithm 1 and sections 3.1 to 3.4; the final search as in the authors' first code
(fra31/fab-attack), which AutoAttack's FAB does not have; FAB-T, which looks at one class at a time, as in AutoAttack.
Where we differ: the projection (eq. 5) is solved by Newton's method, exactly and without a sort; the random starts shrink with the best
distance of all of an image's searches (as in the first code; AutoAttack's does not remember it);
the final search keeps a margin beyond rounding.
Limits: K - 1 backward passes a step without targets (where random output is averaged, their gradients are held together); like every
attack on gradients it is blind where they are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.linalg import vecdot

from robustbench_lab.attacks.apgd import away, in_turn, split
from robustbench_lab.attacks.base import Attack, decides, is_wrong, rows
from robustbench_lab.attacks.gradients import each_logit_gradient, rivals
from robustbench_lab.knobs import Count, PositiveShare, Share, at_least
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image

# The final search ends on the boundary itself. Its points must be misclassified by this fraction of the largest logit, or the verdict, on
# the model in another batch or precision, would depend on rounding.
ROUNDING = 1e-4


def to_hyperplane(x: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The shortest move d with w d = gap that keeps x + d in the box, [B, N]; where the box forbids it, as far as the box lets w d go.

    x and w are [B, N], gap is [B]. In both norms pixel i moves, in the direction that helps, by min(t * rate_i, room_i): room is its
    distance from the box's edge, rate is 1 in linf and |w_i| in l2, and t solves sum_i |w_i| min(t * rate_i, room_i) = |gap|. The sum is
    concave and piecewise linear in t: Newton's method from t = 0 climbs to the root without passing it, and ends on the root's piece.
    """
    scale = w.abs().amax(dim=1).clamp(min=1e-30)  # gradients may be so small that their squares are 0
    w, gap = w / scale[:, None], (gap / scale).clamp(-1e30, 1e30)
    up = w * gap.sign()[:, None]
    room, size = torch.where(up > 0, 1 - x, x), w.abs()
    slope, gap = (size if norm == "linf" else size.square()), gap.abs()
    t = (gap / vecdot(slope, (room > 0).to(x.dtype)).clamp(min=1e-30)).clamp(max=1e12)  # no slope: the box forbids it
    for _ in range(x.shape[1]):
        moved = t[:, None] if norm == "linf" else t[:, None] * size
        missing = gap - vecdot(size, torch.minimum(moved, room))
        free = vecdot(slope, (moved < room).to(x.dtype))
        further = (missing / free.clamp(min=1e-30)).clamp(max=1e12)
        further = further.where((missing > 1e-6 * gap) & (free > 0), 0.0)
        t = t + further
        if not further.any():
            break
    moved = t[:, None] if norm == "linf" else t[:, None] * size
    return up.sign().where(~up.isnan(), up) * torch.minimum(moved, room)  # sign(NaN) is 0: it must be seen


def nearest_boundary(leads: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor, norm: str) -> tuple[Tensor, Tensor]:
    """Of each image's classes [B, C], the one whose linearised boundary is nearest (eq. 6): its lead [B] and the lead's gradient [B, N].

    Class by class, so that memory does not grow with their number; of several that are as near, the first. A distance that is NaN counts
    as nearest: the caller must see it.
    """
    ahead, gradients = each_logit_gradient(leads, x, classes)  # type: ignore[arg-type]
    ahead = ahead.gather(1, classes)
    distance, lead, w = ahead.new_full((len(x),), math.inf), ahead[:, 0], torch.zeros_like(x).flatten(1)
    for j, gradient in enumerate(gradients):
        other = gradient.flatten(1)
        dual = other.abs().sum(dim=1) if norm == "linf" else other.norm(dim=1)
        further = ahead[:, j].abs() / dual.clamp(min=1e-12)
        nearer = (~(further >= distance) & ~distance.isnan()) | (j == 0)
        distance, lead = torch.where(nearer, further, distance), torch.where(nearer, ahead[:, j], lead)
        w = torch.where(nearer[:, None], other, w)
    return lead, w


def length(delta: Tensor, norm: str) -> Tensor:
    """The norm of each [..., N], of images' differences flattened."""
    return delta.abs().amax(dim=-1) if norm == "linf" else delta.norm(dim=-1)


@dataclass(frozen=True, kw_only=True)
class FAB(Attack):
    """Algorithm 1 from x, then from random points around it, then a search on the line from the nearest point found to x.

    steps: of each search; a step costs two forward passes, and a backward pass for each class that the search looks at.
    restarts: searches; the first one starts at x, the others half as far from it as the best distance so far or eps, whichever is smaller.
    targets: null: each step goes to the nearest of all boundaries. A number: a search for each of that many classes (all, if there are
    fewer), the likeliest ones beside the true class on the clean image (FAB-T).
    alpha_max: the largest weight of the projection of x, beside that of the iterate. eta: overshoot over the boundary, >= 1. beta: where a
    misclassified iterate goes back to, as a fraction of its distance from x.
    searches: rounds of the final search on the line.

    In a finite ball an image leaves at its first misclassified point inside, if the model decides: distances are upper bounds there.
    """

    needs_finite_ball: ClassVar[bool] = False
    minimal: ClassVar[bool] = True
    steps: Count
    restarts: Count
    targets: Count | None
    alpha_max: Share
    eta: Annotated[float, at_least(1)]
    beta: PositiveShare
    searches: Count

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        with torch.no_grad():
            clean = model(x)
        others = rivals(clean, y, self.targets or clean.shape[1])
        classes = others[:, None] if self.targets is None else others[:, :, None]  # [B, M, C]: M searches per image, C classes in each
        nearest = _Nearest(x, is_wrong(clean, y), budget.norm)
        near_enough = budget.eps if budget.eps < math.inf and decides(model) else 0.0
        box = Budget(budget.norm, math.inf)
        for restart in range(self.restarts):
            stream = rng.fold("restart", restart)
            for ranks in in_turn(classes.shape[1], x.device):
                todo = torch.nonzero(~(nearest.distance <= near_enough))[:, 0]
                for images in split(todo, max(1, len(x) // len(ranks))):  # no more rows at once than images came
                    image, rank = images.repeat_interleave(len(ranks)), ranks.repeat(len(images))
                    start = x[image]
                    if restart > 0:
                        widest = length(torch.ones_like(x[0]).flatten(), budget.norm)  # the box's diameter
                        radius = nearest.distance[image].clamp(max=min(budget.eps, float(widest))) / 2
                        start = away(start, radius, box, stream[image].at(rank))
                    self._walk(model, image, x[image], y[image], classes[image, rank], start, nearest, near_enough, len(ranks))
        todo = torch.nonzero((nearest.distance > near_enough) & nearest.distance.isfinite())[:, 0]
        if len(todo):
            origin, label, clean, found = rows(todo, x, y, clean, nearest.x)
            found = self._on_the_line(model, origin, label, clean, found)
            nearest.offer(todo, found, length((found - origin).flatten(1), budget.norm), 1)
        return torch.where(per_image(nearest.distance <= budget.eps, x), nearest.x, budget.project(nearest.x, x))

    def _walk(
        self, model: nn.Module, image: Tensor, x: Tensor, y: Tensor, classes: Tensor, x_adv: Tensor, nearest: _Nearest, near_enough: float,
        together: int,
    ) -> None:  # fmt: skip
        """Algorithm 1 for each row, from x_adv; `together` neighbouring rows are of one image."""

        def leads(x_adv: Tensor) -> Tensor:
            """How far each class is ahead of the true one."""
            logits = model(x_adv)
            return logits - logits.gather(1, y[:, None])

        for _ in range(self.steps):
            x_adv = self._step(x_adv, x, *nearest_boundary(leads, x_adv, classes, nearest.norm), nearest.norm)
            with torch.no_grad():
                wrong = is_wrong(model(x_adv), y)
            distance = length((x_adv - x).flatten(1), nearest.norm)
            nearest.offer(image, x_adv, distance.masked_fill(~(wrong | distance.isnan()), math.inf), together)
            x_adv = torch.where(per_image(wrong, x), x + self.beta * (x_adv - x), x_adv)
            if near_enough:
                left = nearest.distance[image] > near_enough
                if not left.all():
                    image, x, y, classes, x_adv = rows(left, image, x, y, classes, x_adv)
                    if len(image) == 0:
                        return

    def _step(self, x_adv: Tensor, x: Tensor, lead: Tensor, w: Tensor, norm: str) -> Tensor:
        """From x_adv to beyond a linearised boundary, where lead [B] + w [B, N] times a move is 0, with a bias towards x."""
        here, origin = x_adv.flatten(1), x.flatten(1)
        gap = torch.cat([-lead, -lead - (w * (origin - here)).sum(dim=1)])
        moves = to_hyperplane(torch.cat([here, origin]), torch.cat([w, w]), gap, norm)
        from_here, from_origin = length(moves, norm).clamp(min=1e-8).chunk(2)
        alpha = (from_here / (from_here + from_origin)).clamp(max=self.alpha_max)[:, None]
        to_here, to_origin = (self.eta * moves).chunk(2)
        ahead = (1 - alpha) * (here + to_here) + alpha * (origin + to_origin)
        return Budget(norm, math.inf).project(ahead.view_as(x), x)

    def _on_the_line(self, model: nn.Module, x: Tensor, y: Tensor, clean: Tensor, x_adv: Tensor) -> Tensor:
        """Misclassified points between x and x_adv, nearer to x, by the rule of false position; clean [B, K]: the logits at x.

        It aims half a margin beyond the margin: where the model is linear it would else land on the margin itself, and rounding would
        decide whether that point counts.
        """
        handicap = ROUNDING * clean.abs().amax(dim=1, keepdim=True)
        inner, outer = x, x_adv
        with torch.no_grad():
            inner_logits, outer_logits = (logits.scatter_add(1, y[:, None], handicap) for logits in (clean, model(outer)))
            for _ in range(self.searches):
                pair = torch.stack([y, outer_logits.argmax(dim=1)], dim=1)
                behind, ahead = -inner_logits.gather(1, pair).diff(dim=1)[:, 0], outer_logits.gather(1, pair).diff(dim=1)[:, 0]
                share = ((behind + handicap[:, 0] / 2) / (behind + ahead).clamp(min=1e-10)).clamp(0, 1)
                middle = inner + per_image(share, x) * (outer - inner)
                logits = model(middle).scatter_add(1, y[:, None], handicap)
                wrong = is_wrong(logits, y)[:, None]
                inner_logits, outer_logits = torch.where(wrong, inner_logits, logits), torch.where(wrong, logits, outer_logits)
                wrong = per_image(wrong[:, 0], x)
                inner, outer = torch.where(wrong, inner, middle), torch.where(wrong, middle, outer)
        return outer


class _Nearest:
    """The nearest misclassified point of each image so far, and its distance, infinite where there is none: then x itself."""

    def __init__(self, x: Tensor, wrong: Tensor, norm: str) -> None:
        self.x = x.clone()
        self.distance = torch.where(wrong, 0.0, math.inf).to(x.dtype)
        self.norm = norm

    def offer(self, image: Tensor, x: Tensor, distance: Tensor, together: int) -> None:
        """Rows of which `together` neighbours belong to one image; a distance that is NaN counts as nearer: the caller must see it."""
        distance, which = distance.view(-1, together).min(dim=1)
        image, x = image[::together], x[torch.arange(0, len(x), together, device=x.device) + which]
        nearer = ~(distance >= self.distance[image])
        self.x[image] = torch.where(per_image(nearer, x), x, self.x[image])
        self.distance[image] = torch.where(nearer, distance, self.distance[image])
