"""DeepFool: steps to the nearest boundary of the model as it looks when linearised, until the image has crossed it.

Source: Moosavi-Dezfooli et al. 2016, arXiv:1511.04599, Algorithm 2 (l2) and section 3.3 (other norms). As in the authors' Python code
(LTS4/DeepFool) and Foolbox, the steps add up to one perturbation, and the model is asked at x + (1 + overshoot) times that sum: what is
returned is what was seen to cross. Algorithm 2 asks at x + the sum and stretches it once, at the end, as ART does. Where the model is
linearised is a choice (`linearise_at`): where it was asked, or, as in Algorithm 2 and in the authors' code, at x + the sum.
Where we differ: each step goes further by NUDGE (Foolbox: 1e-4), so that it crosses without an overshoot, too. The sum is cut by the pixel
box only where the model is asked, as in Foolbox: for a linear model the cut sum leads to the nearest point of the box, which steps that are
cut one by one (ART) miss.
Limits: it stops at the first boundary that it crosses, which need not be the nearest: its distances are upper bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, is_wrong, rows
from robustbench_lab.attacks.gradients import rivals
from robustbench_lab.knobs import Count, NotNegative, at_least
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image

NUDGE = 1e-5  # fractions of the pixel range; above what float32 rounds away beside a pixel


@dataclass(frozen=True, kw_only=True)
class DeepFool(Attack):
    """The sum of the shortest steps to the nearest linearised boundary, in l2 or linf.

    steps: most steps; an image leaves as soon as it has crossed.
    candidates: classes whose boundaries count, the likeliest of the clean image and its own among them; with fewer classes, all of them.
    overshoot: by which share the sum of the steps is stretched.
    labels: ground_truth (away from y; an image that is misclassified as it is stays as it is), or predicted (away from the prediction).
    linearise_at: sum (x + the sum of the steps, never cut by the box), or asked (where it was asked; null is the same).

    An image that never crosses keeps its last point, as in the authors' code: the norm of the sum is what DeepFool reports of an image.
    """

    needs_finite_ball: ClassVar[bool] = False
    minimal: ClassVar[bool] = True
    steps: Count
    candidates: Annotated[int, at_least(2), "the image's own class and another"]
    overshoot: NotNegative
    labels: Literal["ground_truth", "predicted"]
    linearise_at: Literal["sum", "asked"] | None = None

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        away_from = y if self.labels == "ground_truth" else None
        search = walked if self.linearise_at == "sum" else deepfool
        return budget.project(search(model, x, away_from, budget.norm, self.steps, self.candidates, self.overshoot), x)


def deepfool(model: nn.Module, x: Tensor, y: Tensor | None, norm: str, steps: int, candidates: int, overshoot: float) -> Tensor:
    """Where the search of `DeepFool` ends, [B, C, H, W] in the pixel box: at the point where each image was first seen to have another
    class than y (None: than the model's prediction), or where its last step led.

    x [B, C, H, W] is a constant; the model is taken as it is, in whatever mode.
    """
    x = x.detach()
    box, result = Budget(norm, math.inf), x.clone()
    todo, total = torch.arange(len(x), device=x.device), torch.zeros_like(x)
    point, logits = _asked(model, x)
    y = logits.argmax(dim=1) if y is None else y
    goals = rivals(logits.detach(), y, candidates - 1)
    for _ in range(steps):
        crossed = is_wrong(logits, y)
        result = result.index_copy(0, todo[crossed], point.detach()[crossed])
        if goals.shape[1] * crossed.sum() > (~crossed).sum():  # cheaper: a pass of the others alone than all backward passes of all
            todo, x, y, goals, total, point = rows(~crossed, todo, x, y, goals, total, point)
            if not len(todo):
                break
            point, logits = _asked(model, point)
            crossed = torch.zeros_like(y, dtype=torch.bool)
        total = total + _step(point, logits, y, goals, box, NUDGE)
        if crossed.any():
            todo, x, y, goals, total = rows(~crossed, todo, x, y, goals, total)
        point, logits = _asked(model, box.project(x + (1 + overshoot) * total, x))
    return result.index_copy(0, todo, point.detach())


def walked(model: nn.Module, x: Tensor, y: Tensor | None, norm: str, steps: int, candidates: int, overshoot: float) -> Tensor:
    """The same with the model linearised at x + the sum of the steps, which the pixel box cuts only where the model is asked."""
    with torch.no_grad():
        logits = model(x)
    y = logits.argmax(dim=1) if y is None else y
    away = torch.nonzero(~is_wrong(logits, y))[:, 0]
    delta = perturbation(lambda point, rows: model(point), x[away], y[away], norm, steps, candidates, overshoot, clip=True)
    return Budget(norm, math.inf).project(x.detach().index_add(0, away, delta), x)


def perturbation(
    model: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    norm: str,
    steps: int,
    candidates: int,
    overshoot: float,
    towards: bool = False,
    clip: bool = False,
    create_graph: bool = False,
    through_steps: bool = True,
) -> Tensor:
    """DeepFool's perturbation, [B, C, H, W], not cut by the pixel box: 1 + overshoot times the sum r of the steps.

    Each is the shortest one to the nearest boundary of the model linearised at x + r; an image leaves once its prediction at
    x + (1 + overshoot) r has crossed.

    model: points [M, C, H, W] and, int64 [M], which images they are of, to logits [M, K]. x is a constant.
    y int64 [B]: the class that each image has, and leaves; the rivals are the `candidates` - 1 that are likeliest at x. With `towards`: the
    class that each image has not, and goes to, from whatever class the model gives it at each step. clip: the model is asked at that point
    cut by the pixel box, which decides whether an image has crossed.
    create_graph: keep the graph of all steps, so that the result can be differentiated by the model's parameters, as Deep Defense does (Yan
    et al. 2018, arXiv:1803.00404, section 3.2): through the logits, their gradients and, unless `through_steps` is false, the points at
    which they were taken. Which boundary is nearest and when an image leaves are constants there. The rivals' gradients are taken without a
    graph, one after another, and that of the nearest once more with it: memory is that of a forward and a backward pass a step, whatever
    `candidates`.
    """
    x = x.detach()
    box, todo, total = Budget(norm, math.inf), torch.arange(len(x), device=x.device), torch.zeros_like(x)
    goals = y[:, None]
    for number in range(steps if len(x) else 0):
        point = x[todo] + total[todo]
        if not (create_graph and through_steps and number):
            point = point.detach().requires_grad_()
        logits = model(point, todo)
        if number == 0 and not towards:
            goals = rivals(logits.detach(), y, candidates - 1)
        leaving = logits.argmax(dim=1) if towards else y[todo]
        total = total.index_add(0, todo, _step(point, logits, leaving, goals[todo], box, 0.0, create_graph))
        if number + 1 < steps:
            with torch.no_grad():
                reached = x[todo] + (1 + overshoot) * total[todo]
                elsewhere = is_wrong(model(box.project(reached, x[todo]) if clip else reached, todo), y[todo])
            todo = todo[elsewhere if towards else ~elsewhere]
            if not len(todo):
                break
    return (1 + overshoot) * total


def _step(point: Tensor, logits: Tensor, y: Tensor, goals: Tensor, box: Budget, nudge: float, create_graph: bool = False) -> Tensor:
    """The shortest step onto the nearest linearised boundary, and `nudge` further; [B, C, H, W].

    One backward pass for each goal [B, M]: that of its logit less the label's; with a graph, one more for the nearest alone.
    """
    ahead = logits.gather(1, goals) - logits.gather(1, y[:, None])
    nearest, best, chosen = ahead.new_full((len(y),), math.inf), torch.zeros_like(point), torch.zeros_like(y)
    for j, difference in enumerate(ahead.unbind(dim=1)):
        if create_graph and goals.shape[1] == 1:
            break  # there is nothing to choose
        gradient = torch.autograd.grad(difference.sum(), point, retain_graph=create_graph or j + 1 < goals.shape[1])[0]
        distance = _distance(difference.detach(), gradient, box)
        nearer = ~(distance >= nearest)  # a distance that is NaN counts as nearer: the caller must see it
        nearest = torch.where(nearer, distance, nearest)
        best = torch.where(per_image(nearer, point), gradient, best)
        chosen = torch.where(nearer, j, chosen)
    if create_graph:
        difference = ahead.gather(1, chosen[:, None])[:, 0]
        best = torch.autograd.grad(difference.sum(), point, create_graph=True)[0]
        nearest = _distance(difference, best, box)
    return box.steepest(best) * per_image(nearest + nudge, point)


def _distance(difference: Tensor, gradient: Tensor, box: Budget) -> Tensor:
    """How far off the linearised boundary is, [B]: the difference of logits over its slope in the dual norm."""
    slope = gradient.flatten(1).norm(p=2 if box.norm == "l2" else 1, dim=1)
    return difference.abs() / slope.clamp(min=1e-12)


def _asked(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf of the graph, and the logits there: the pass that shows what has crossed is the one that is differentiated."""
    x = x.detach().requires_grad_()
    return x, model(x)
