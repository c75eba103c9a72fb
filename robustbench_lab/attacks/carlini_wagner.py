"""Carlini and Wagner's l2 attack: Adam on distance^2 + c * hinge(margin) in a space without a box, and a search for the smallest c that
works.

Source: Carlini and Wagner 2017, arXiv:1608.04644, sections V (f6, change of variables) and VI-A; the search for c and the early abort: the
authors' code (carlini/nn_robust_attacks, l2_attack.py).
Where we differ: the early abort looks at each image's own lowest loss so far (the authors and Foolbox at the last loss, summed over the
batch), so that a result does not depend on the batch, and a loss that swings ends no search. With 10 searches or more, the authors' last
one repeats the smallest c that has worked, which would find the same points again: here it goes on halving; an image for which no c has
worked gets `largest_constant` there, as with the authors. Where no point reaches the confidence, the misclassified one of the highest
margin counts: no image is called robust by the measure alone; `ConfidentCarliniWagner` gives the image back instead, as others do.
Limits: pixels at 0 or 1 hardly move at first, for tanh is flat there; a short search with a small step size barely leaves x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, decides, is_wrong, rows
from robustbench_lab.attacks.gradients import margin
from robustbench_lab.knobs import Count, NotNegative, Positive, at_most, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

INSIDE = 0.999999  # what [-1, 1] is shrunk by, so that no pixel lies at infinity
BETAS, TINY = (0.9, 0.999), 1e-8  # Adam's
FALL = 0.9999  # the factor by which the loss must fall between two looks at it


@dataclass(frozen=True, kw_only=True)
class CarliniWagner(Attack):
    """min distance^2 + c * max(confidence - margin, 0) over w with x_adv = (tanh(w) + 1) / 2, for several c.

    confidence: by how much the best other logit must exceed the true one; with 0, it must be misclassified.
    step_size: Adam's, in the space of w.
    steps: of each search, each one forward and one backward pass.
    searches: constants tried: 10 times the last one until one works, then halfway between the largest that fails and the smallest that
    works.
    initial_constant, largest_constant: the first c, and the most that it may be.
    abort_early: after every so many steps, an image whose lowest loss has not fallen by 0.01 % leaves this search; null: never.

    In a finite ball, an image whose verdict the model decides leaves as soon as a point inside is found: its distance is an upper bound.
    """

    norms: ClassVar[tuple[str, ...]] = ("l2",)
    needs_finite_ball: ClassVar[bool] = False
    minimal: ClassVar[bool] = True
    only_confident: ClassVar[bool] = False  # whether a misclassified point below the confidence counts for nothing
    confidence: NotNegative
    step_size: Positive
    steps: Count
    searches: Count
    initial_constant: Positive
    largest_constant: Annotated[Positive, at_most(1e15)]
    abort_early: Count | None

    def __post_init__(self) -> None:
        super().__post_init__()
        first, most = self.initial_constant, self.largest_constant
        require(first <= most, "largest_constant", "a number from initial_constant to 1e15", most)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        best = _Best(x, self.confidence, self.only_confident, budget if budget.eps < math.inf and decides(model) else Budget("l2", 0.0))
        with torch.no_grad():
            logits = model(x)
        everyone = torch.arange(len(x), device=x.device)
        best.offer(everyone, x, x.new_zeros(len(x)), margin(logits, y), is_wrong(logits, y))
        constant = x.new_full((len(x),), self.initial_constant)
        fails, works = torch.zeros_like(constant), torch.full_like(constant, math.inf)  # the largest c that does, the smallest
        for search in range(self.searches):
            if search == self.searches - 1 and self.searches >= 10:
                constant = constant.where(works < math.inf, self.largest_constant)
            todo = everyone[~best.done & (fails < self.largest_constant)]
            if not len(todo):
                break
            reached = torch.zeros_like(best.done)
            reached[todo] = self._descend(model, todo, x[todo], y[todo], constant[todo], best)
            works = torch.where(reached, constant, works)
            fails = torch.where(reached, fails, constant)
            constant = torch.where(works < math.inf, (fails + works) / 2, (10 * constant).clamp(max=self.largest_constant))
        return budget.project(best.x, x)

    def _descend(self, model: nn.Module, todo: Tensor, x: Tensor, y: Tensor, constant: Tensor, best: _Best) -> Tensor:
        """One search; `todo` are the images' positions in the batch. Whether each has reached the confidence: bool [B]."""
        reached, row = torch.zeros_like(y, dtype=torch.bool), torch.arange(len(y), device=y.device)
        w = ((2 * x - 1) * INSIDE).atanh()
        start = (w.tanh() + 1) / 2  # x, up to rounding: what the distance is measured from, so that it has no slope there
        mean, square = torch.zeros_like(w), torch.zeros_like(w)
        lowest = before = torch.full_like(constant, math.inf)  # loss so far, and at the last look
        for step in range(self.steps):
            x_adv = ((w.tanh() + 1) / 2).requires_grad_()
            logits = model(x_adv)
            gap = margin(logits, y)
            hinge = constant * (self.confidence - gap).clamp(min=0)
            gradient = torch.autograd.grad(hinge.sum(), x_adv)[0]
            x_adv = x_adv.detach()
            distance = (x_adv - start).flatten(1).square().sum(dim=1)
            reached[row] |= best.offer(todo, x_adv, distance, gap.detach(), is_wrong(logits, y))
            gradient = (gradient + 2 * (x_adv - start)) * (2 * x_adv * (1 - x_adv))  # the last factor: d x_adv / d w
            mean.mul_(BETAS[0]).add_(gradient, alpha=1 - BETAS[0])
            square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
            scale = square.div(1 - BETAS[1] ** (step + 1)).sqrt_().add_(TINY)
            w.addcdiv_(mean, scale, value=-self.step_size / (1 - BETAS[0] ** (step + 1)))
            out = best.done[todo]
            lowest = torch.minimum(lowest, distance + hinge.detach())
            if self.abort_early is not None and step % self.abort_early == 0:
                out, before = out | ~(lowest <= FALL * before), lowest
            if out.any():
                row, todo, y, constant, start, w, mean, square, lowest, before = rows(
                    ~out, row, todo, y, constant, start, w, mean, square, lowest, before
                )  # fmt: skip
                if not len(row):
                    break
        return reached


@dataclass(frozen=True, kw_only=True)
class ConfidentCarliniWagner(CarliniWagner):
    """The same search; an image for which no point reaches the confidence is returned as it was, and so counts as robust.

    Source: kkew3/pytorch-cw2, cw.py (`_compensate_confidence`; `o_best_advx` begins as the images), which Learn2Perturb recommends. FM 2021
    has its settings from there, and does not say what it counts; that accuracy in its Table 4 hardly falls with the confidence fits this.
    Where we differ: there the perturbation and Adam's state go on from one constant to the next.
    Limits: a model whose logits differ by less than the confidence whatever the image, as FM's distances may, seems robust to it.
    """

    only_confident: ClassVar[bool] = True


class _Best:
    """The answer for each image: of the misclassified points, those nearest to the confidence; of these, the nearest to x.

    only_confident: points below the confidence do not count at all.
    done: images that need no search any more: x has the confidence; or the model decides, and a point inside the ball is misclassified.
    """

    def __init__(self, x: Tensor, confidence: float, only_confident: bool, ball: Budget) -> None:
        self.x, self.clean, self.confidence, self.only_confident, self.ball = x.clone(), x, confidence, only_confident, ball
        self.margin, self.distance = x.new_full((len(x),), -math.inf), x.new_full((len(x),), math.inf)
        self.done = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, todo: Tensor, x_adv: Tensor, distance: Tensor, gap: Tensor, wrong: Tensor) -> Tensor:
        """Points of some images, their squared distances and margins; which of them are misclassified with the confidence, bool [B]."""
        reached = wrong & (gap >= self.confidence)
        wrong, gap = reached if self.only_confident else wrong, gap.clamp(max=self.confidence)
        better = wrong & ((gap > self.margin[todo]) | ((gap == self.margin[todo]) & (distance < self.distance[todo])))
        new = torch.nonzero(better)[:, 0]
        at = todo[new]
        self.x[at], self.distance[at], self.margin[at] = rows(new, x_adv, distance, gap)
        inside = self.ball.distance(self.x[at], self.clean[at]) <= self.ball.eps
        self.done[at] = inside & ((gap[new] >= self.confidence) | (self.ball.eps > 0))  # a ball: the model decides, no confidence is asked
        return reached
