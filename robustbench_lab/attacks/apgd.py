"""Auto-PGD: gradient steps with momentum, halved where the loss stops rising; untargeted, or against one class after another.

Source: Croce and Hein 2020, arXiv:2003.01690, Algorithm 1 and section 3.2; targeted DLR: eq. 7; EOT: the `rand` version of AutoAttack.
Where the authors' code differs from Algorithm 1, which we follow: it halves when at most `rho` of the steps raised the loss (Algorithm 1:
fewer), not by condition 2 at the first checkpoint, and compares the first step after a restart from the best point with the iterate that
this point replaced; and it rounds the checkpoints differently if `steps` is no multiple of 100.
Limits: it differentiates; a defense that hides gradients needs fab's and square's company, as in AutoAttack.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Loss, decides, is_wrong, rows
from robustbench_lab.attacks.gradients import GradientAttack, rivals
from robustbench_lab.knobs import Count, PositiveShare, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image

MOMENTUM = 0.75  # Algorithm 1's alpha: the weight of the gradient step beside that of the last move


def targeted_dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The target's logit minus the true one, over the largest logit minus the mean of the third and fourth largest, [B].

    Source: Croce and Hein 2020, eq. 7. Below four classes there is no fourth logit: with three the scale is the largest minus the third
    largest, with two it is 1 (a plain difference, which shifts but does not scale).
    """
    difference = (logits.gather(1, target[:, None]) - logits.gather(1, y[:, None]))[:, 0]
    if logits.shape[1] == 2:
        return difference
    largest = logits.topk(min(logits.shape[1], 4), dim=1).values
    return difference / (largest[:, 0] - largest[:, 2:].mean(dim=1) + 1e-12)


def away(x: Tensor, radius: float | Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
    """A random point whose distance from x is `radius` (a number or [B]), cut by the ball and the box: where AutoAttack's attacks start."""
    if budget.norm == "linf":
        direction = rng.uniform(*x.shape[1:], low=-1.0, high=1.0).to(x.dtype)
        direction = direction / per_image(direction.flatten(1).abs().amax(dim=1).clamp(min=1e-12), x)
    else:
        direction = budget.steepest(rng.normal(*x.shape[1:]).to(x.dtype))
    return budget.project(x + (per_image(radius, x) if isinstance(radius, Tensor) else radius) * direction, x)


def in_turn(count: int, device: torch.device) -> tuple[Tensor, ...]:
    """Which of an image's targets are searched together: the likeliest alone, as most images that fall, fall to it; then the others."""
    ranks = torch.arange(count, device=device)
    return (ranks[:1], ranks[1:]) if count > 1 else (ranks,)


def split(images: Tensor, size: int) -> tuple[Tensor, ...]:
    """`images` in parts of at most `size`; no part of nothing, where Tensor.split gives an empty one."""
    return images.split(size) if len(images) else ()


def checkpoints(steps: int) -> dict[int, int]:
    """After which step the progress is checked, and how many steps lie behind since the last check (section 3.2).

    At p_1 = .22 of the steps, then p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06), rounded up; in hundredths, so that no rounding shows.
    """
    at, gap, lengths, last = 22, 22, {}, 0
    while at <= 100:
        step = math.ceil(at * steps / 100)
        if step > last:
            lengths[step], last = step - last, step
        gap = max(gap - 3, 6)
        at += gap
    return lengths


@dataclass(frozen=True, kw_only=True)
class APGD(GradientAttack):
    """Algorithm 1 from random points on the ball's edge; an image's first misclassified iterate counts, else that of the highest loss.

    steps: gradient steps of each search; one more gradient is taken at its start.
    restarts: searches from independent starts; an image that one of them breaks is spared the later ones.
    rho: the share of steps between two checkpoints that must raise the loss for the step size to stay.
    targets: null: climb `loss`. A number: climb the targeted DLR loss against each of that many classes (all, if there are fewer), the
    likeliest ones beside the true class on the clean image (APGD-T); `loss` is then dlr.

    A model that does not decide (transfer, random output) keeps its images to the end: of the misclassified iterates the one of the highest
    loss counts.
    """

    steps: Count
    restarts: Count
    rho: PositiveShare
    targets: Count | None

    def __post_init__(self) -> None:
        super().__post_init__()
        targeted = self.targets is None or self.loss == "dlr"
        require(targeted, "loss", "dlr, the loss that has a targeted form, with attack.targets", self.loss)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        y = self.labels_for(model, x, y)
        goals, loss = y[:, None], self.loss_of(model)  # goals [B, M, ...]: what the loss takes in place of y, for M searches per image
        if self.targets is not None:
            with torch.no_grad():
                target = rivals(model(x), y, self.targets)
            goals, loss = torch.stack([y[:, None].expand_as(target), target], dim=2), _targeted
        answer = _Answer(x)
        for restart in range(self.restarts):
            stream = rng.fold("restart", restart)
            for ranks in in_turn(goals.shape[1], x.device):
                todo = torch.nonzero(~(answer.wrong & decides(model)))[:, 0]
                for images in split(todo, max(1, len(x) // len(ranks))):  # no more rows at once than images came
                    image, rank = images.repeat_interleave(len(ranks)), ranks.repeat(len(images))
                    start = away(x[image], budget.eps, budget, stream[image].at(rank))
                    state = _State.at(start, image, x[image], y[image], goals[image, rank], 2 * budget.eps)
                    self._climb(model, state, loss, budget, len(ranks), answer)
        return answer.x

    def _climb(self, model: nn.Module, s: _State, loss: Loss, budget: Budget, together: int, answer: _Answer) -> None:
        """One search for each row; `together` neighbouring rows are of one image, and leave together."""
        lengths = checkpoints(self.steps)
        for step in range(self.steps + 1):
            gradient, value, logits = self.gradient(model, s.x_adv, s.goal, loss)
            s.see(gradient, value)
            wrong = is_wrong(logits, s.y)
            fallen = wrong.view(-1, together).any(dim=1)
            if fallen.any():
                row = fallen.repeat_interleave(together)
                image, x_adv, value, wrong = rows(row, s.image, s.x_adv, value, wrong)
                answer.offer(image, x_adv, value, wrong, together)
                if decides(model):
                    s.keep(~row)
            if step == self.steps or len(s.x) == 0:
                break
            if step in lengths:
                s.check(self.rho * lengths[step])
            ahead = budget.project(s.x_adv + per_image(s.step_size, s.x) * budget.steepest(s.gradient), s.x)
            if step > 0:
                ahead = budget.project(s.x_adv + MOMENTUM * (ahead - s.x_adv) + (1 - MOMENTUM) * (s.x_adv - s.previous), s.x)
            s.x_adv, s.previous = ahead, s.x_adv
        if len(s.x):
            answer.offer(s.image, s.best, s.best_loss, torch.zeros_like(s.y, dtype=torch.bool), together)


def _targeted(logits: Tensor, goal: Tensor) -> Tensor:
    return targeted_dlr(logits, goal[:, 0], goal[:, 1])


@dataclass
class _State:
    """What Algorithm 1 remembers, one entry for each search that still runs."""

    image: Tensor  # position in the batch
    x: Tensor
    y: Tensor
    goal: Tensor
    x_adv: Tensor
    previous: Tensor  # the iterate before x_adv
    gradient: Tensor
    loss: Tensor
    best: Tensor  # x_max, with its gradient and loss
    best_gradient: Tensor
    best_loss: Tensor
    step_size: Tensor
    rises: Tensor  # steps since the last checkpoint that raised the loss
    last_best_loss: Tensor  # at the last checkpoint
    halved: Tensor  # there

    @classmethod
    def at(cls, start: Tensor, image: Tensor, x: Tensor, y: Tensor, goal: Tensor, step_size: float) -> _State:
        number, nothing = x.new_zeros(len(x)), torch.zeros_like(x)
        return cls(
            image, x, y, goal, start, start, nothing, number + math.inf, start, nothing, number - math.inf, number + step_size, number,
            number - math.inf, number > 0,
        )  # fmt: skip

    def see(self, gradient: Tensor, loss: Tensor) -> None:
        """Take in the gradient and the loss at x_adv."""
        self.rises = self.rises + (loss > self.loss)
        self.gradient, self.loss = gradient, loss
        better = ~(loss <= self.best_loss)  # a loss that is NaN counts as better: the caller must see it
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best = torch.where(per_image(better, self.x), self.x_adv, self.best)
        self.best_gradient = torch.where(per_image(better, self.x), gradient, self.best_gradient)

    def check(self, enough: float) -> None:
        """Halve the steps and go back to the best point where fewer than `enough` steps were rises (condition 1), or where neither the step
        size nor the best loss has changed since the last checkpoint (condition 2)."""
        self.halved = (self.rises < enough) | (~self.halved & (self.last_best_loss == self.best_loss))
        self.step_size = torch.where(self.halved, self.step_size / 2, self.step_size)
        self.x_adv = torch.where(per_image(self.halved, self.x), self.best, self.x_adv)
        self.gradient = torch.where(per_image(self.halved, self.x), self.best_gradient, self.gradient)
        self.loss = torch.where(self.halved, self.best_loss, self.loss)
        self.last_best_loss, self.rises = self.best_loss, torch.zeros_like(self.rises)

    def keep(self, row: Tensor) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[row])


class _Answer:
    """The result of each image of the batch: a misclassified point before any other, then the one of higher loss."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self.loss = x.new_full((len(x),), -math.inf)
        self.wrong = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    def offer(self, image: Tensor, x: Tensor, loss: Tensor, wrong: Tensor, together: int) -> None:
        """Rows of which `together` neighbours belong to one image."""
        any_wrong = wrong.view(-1, together).any(dim=1, keepdim=True)
        eligible = loss.view(-1, together).where(wrong.view(-1, together) | ~any_wrong, -math.inf)
        first = torch.arange(0, len(image), together, device=x.device)
        image, x, loss, wrong = rows(first + eligible.argmax(dim=1), image, x, loss, wrong)
        was_wrong = self.wrong[image]
        better = (wrong & ~was_wrong) | ((wrong == was_wrong) & ~(loss <= self.loss[image]))  # NaN as in _State.see
        image, x, loss, wrong = rows(better, image, x, loss, wrong)
        self.x[image], self.loss[image], self.wrong[image] = x, loss, wrong
