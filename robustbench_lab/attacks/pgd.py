"""Projected gradient descent inside a norm ball.

Source: Madry et al. 2018, arXiv:1706.06083, section 2.1 (inner maximisation).
Limits: a defense that hides gradients can survive it; a step size far from eps * 2.5 / steps wastes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import decides, is_random, is_wrong, rows
from robustbench_lab.attacks.gradients import GradientAttack, require_step_size
from robustbench_lab.knobs import Count, Positive, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Steps of fixed length along the steepest direction, each followed by a projection.

    steps: gradient steps of each restart.
    step_size, relative_step_size: length of a step as a fraction of the pixel range, or of eps; exactly one is given.
    random_start: none (from x), uniform (from the ball), gaussian (x + start_scale * N(0, 1), as TRADES starts).
    start_scale: standard deviation of the gaussian start; null otherwise.
    restarts: independent searches; the best one counts, image by image. Without a random start they would be equal: an error.
    keep: last, the last iterate; best, the best one of the whole search (better = misclassified, then higher loss); first, the first
        misclassified one, whereupon the image leaves the batch, or the last where none is: the verdict of `best` in fewer passes. Where the
        model does not decide the verdict (`decides`), first is last.

    A search that comes back to an iterate would go round in circles from there on: its last iterate is known, and it ends.
    """

    steps: Count
    step_size: Annotated[Positive | None, "such as 2/255"]
    relative_step_size: Annotated[Positive | None, "such as 2/255"]
    random_start: Literal["none", "uniform", "gaussian"]
    start_scale: float | None
    restarts: Count
    keep: Literal["last", "best", "first"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_step_size(self.step_size, self.relative_step_size)
        needs_scale = self.random_start == "gaussian"
        expected = "a finite number" if needs_scale else f"null with random_start={self.random_start}"
        require((self.start_scale is not None) == needs_scale, "start_scale", expected, self.start_scale)
        require(
            self.restarts == 1 or self.random_start != "none",
            "restarts", "1 with random_start=none, because all restarts would be equal", self.restarts,
        )  # fmt: skip

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        y = self.labels_for(model, x, y)
        if self.keep == "first" and decides(model):
            x_adv, todo = x.clone(), torch.arange(len(x), device=x.device)
            for restart in range(self.restarts):
                if not len(todo):
                    break
                found, broken = self._climb(model, x[todo], y[todo], budget, rng[todo].fold("restart", restart), leave=True)
                x_adv[todo] = found
                if restart + 1 < self.restarts and not broken.all():  # the last iterates have not been asked about yet
                    with torch.no_grad():
                        broken[~broken] = is_wrong(model(found[~broken]), y[todo[~broken]])
                todo = todo[~broken]
            return x_adv
        if self.restarts == 1 and self.keep != "best":
            return self._climb(model, x, y, budget, rng.fold("restart", 0))[0]
        best = _Best(x)
        for restart in range(self.restarts):
            last, _ = self._climb(model, x, y, budget, rng.fold("restart", restart), best if self.keep == "best" else None)
            with torch.no_grad():
                passes = [model(last) for _ in range(self.eot_samples)]
                loss = self.loss_of(model)
                best.offer(last, torch.stack([loss(p, y) for p in passes]).mean(0), is_wrong(torch.stack(passes).mean(0), y))
        return best.x

    def _climb(
        self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom, best: _Best | None = None, leave: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The last iterate, or with `leave` the first misclassified one, and whether it is one that left: bool [B]."""
        loss = self.loss_of(model)
        step = self.step_size if self.step_size is not None else budget.eps * (self.relative_step_size or 0.0)
        result, left = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        todo = torch.arange(len(x), device=x.device)
        x_adv = self._start(x, budget, rng)
        circles = _Circles(self.steps) if self.steps > 10 and best is None and not is_random(model) else None  # short searches find none
        for number in range(1, self.steps + 1):
            if not len(todo):
                break
            gradient, value, logits = self.gradient(model, x_adv, y, loss)
            if best is not None:
                best.offer(x_adv, value, is_wrong(logits, y))
            if leave and (wrong := is_wrong(logits, y)).any():
                result[todo[wrong]], left[todo[wrong]] = x_adv[wrong], True
                todo, x, y, x_adv, gradient = rows(~wrong, todo, x, y, x_adv, gradient)
                if circles is not None:
                    circles.keep(~wrong)
            x_adv = budget.project(x_adv + step * budget.steepest(gradient), x)
            if circles is not None and (done := circles.ended(x_adv, number)).any():
                result[todo[done]] = x_adv[done]
                todo, x, y, x_adv = rows(~done, todo, x, y, x_adv)
                circles.keep(~done)
        result[todo] = x_adv
        return result, left

    def _start(self, x: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        if self.random_start == "uniform":
            return budget.random_start(x, rng)
        if self.random_start == "gaussian":
            return budget.project(x + (self.start_scale or 0.0) * rng.normal(*x.shape[1:]).to(x.dtype), x)
        return x


class _Best:
    """The best iterate so far of each image: a misclassified one before any other, then the one of higher loss."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self.loss = x.new_full((len(x),), -torch.inf)
        self.wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, x: Tensor, loss: Tensor, wrong: Tensor) -> None:
        # A loss that is NaN counts as better: the caller sees it, instead of an image that looks robust.
        better = (wrong & ~self.wrong) | ((wrong == self.wrong) & ~(loss <= self.loss))
        self.x = torch.where(per_image(better, x), x, self.x)
        self.loss = torch.where(better, loss.to(self.loss.dtype), self.loss)
        self.wrong = self.wrong | wrong


class _Circles:
    """Which searches have come back to an iterate: what they will do is known, for a step depends on the iterate alone.

    Source: R. P. Brent 1980, "An improved Monte Carlo factorization algorithm", section 2: each iterate is compared with the one that was
    kept at the last power of two, so that a circle of any length is found with one kept iterate.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.kept: Tensor | None = None
        self.kept_at = 0
        self.last: Tensor | None = None  # after which step each search ends, int64 [B]

    def keep(self, index: Tensor) -> None:
        """Go on with some of the searches."""
        if self.kept is not None and self.last is not None:
            self.kept, self.last = rows(index, self.kept, self.last)

    def ended(self, x_adv: Tensor, number: int) -> Tensor:
        """Which of the searches, after so many steps, stand where they would stand after all of them: bool [B]."""
        if self.kept is None or self.last is None:
            self.last = torch.full((len(x_adv),), self.steps, device=x_adv.device)
        else:
            back = (x_adv == self.kept).flatten(1).all(dim=1) & (self.last == self.steps)
            self.last = torch.where(back, number + (self.steps - number) % (number - self.kept_at), self.last)
        if number & (number - 1) == 0:  # a power of two
            self.kept, self.kept_at = x_adv, number
        return self.last <= number
