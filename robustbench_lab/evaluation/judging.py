"""The attacker and the judge of an evaluation: one searches on what the threat model shows, the other decides on the defended model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, attacked, is_random
from robustbench_lab.attacks.gradients import margin
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.crafted import Crafted
from robustbench_lab.evaluation.views import Averaged, Counted, NotFinite, Queries
from robustbench_lab.models.defended import Defended, frozen
from robustbench_lab.randomness import ImageRandom, stable_hash
from robustbench_lab.threats import Budget

DOUBT = {"fp32": 1e-4, "bf16": 1e-2}  # margins, as shares of the largest logit, below which two passes may disagree
NOT_FINITE = "attack {} returned pixels that are not finite; does the model return finite gradients?"


@dataclass(frozen=True)
class Judge:
    """The verdict: the defended model's predictions in full precision, drawn `draws` times where its output is random.

    The draws come from the global generator, seeded by the evaluation's seed and their number: the same weights' noise for every batch.
    """

    defended: Defended
    draws: int
    seed: int

    def __call__(self, x: Tensor, y: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The first draw's predictions, int64 [B], and the share of draws in which each image is right, float64 [B]."""
        drawn_classes = []
        for draw in range(self.draws):
            with drawn(self.defended.stochastic, self.seed, "verdict", draw):
                drawn_classes.append(predictions(self.defended, x, ids))
        return drawn_classes[0], (torch.stack(drawn_classes) == y).double().mean(dim=0)


@dataclass(frozen=True)
class Task:
    """One attack on some images: x [B, C, H, W] in [0, 1], y and ids int64 [B], in a ball, with the images' random numbers; `name` is the
    attack's among others."""

    name: str
    attack: Attack
    x: Tensor
    y: Tensor
    ids: Tensor
    budget: Budget
    rng: ImageRandom

    def of(self, images: Tensor) -> Task:
        """The same of some of the images: bool [B] or positions."""
        return replace(self, x=self.x[images], y=self.y[images], ids=self.ids[images], rng=self.rng[images])


@dataclass
class Found:
    """x_adv [B, C, H, W]; what the judge says of them, `predicted` and `right` as Judge does; images sent forward, sent backward, and found
    before."""

    x_adv: Tensor
    predicted: Tensor
    right: Tensor
    forward: int
    backward: int
    reused: int = 0


@dataclass(frozen=True)
class Search:
    """What the attacker does: on what it sees of the model, and what the judge says of what it found.

    crafted: what was found before on the same view, if that is worth keeping; what is found now is added.
    """

    view: nn.Module
    seed: int
    eot_samples: int
    precision: str
    crafted: Crafted | None = None

    def attach_fast_copy(self) -> None:
        """Let the search differentiate a fast copy of the model, where that can be."""
        if isinstance(self.base, Defended) and not self.base.stochastic:
            self.base.attach_fast_copy(self.precision)

    @property
    def base(self) -> nn.Module:
        """The model behind the view."""
        return attacked(self.view.model if isinstance(self.view, Queries) else self.view)

    def __call__(self, task: Task, judge: Judge) -> Found:
        decides = self.base is judge.defended and not judge.defended.stochastic
        if self.crafted is not None:
            x_adv, passes, known = self._looked_up(self.crafted, task)
            return Found(x_adv, *judge(x_adv, task.y, task.ids), *passes, known)
        with frozen(self.base) as target:
            x_adv, passes = self._searched(target, decides, task)
            found = Found(x_adv, *judge(x_adv, task.y, task.ids), *passes)
            doubtful = torch.zeros_like(found.right, dtype=torch.bool)
            if decides:  # what the attack saw broken, in another batch or precision, the judge must see broken
                with torch.no_grad():
                    logits = target(x_adv)
                doubtful = (found.right > 0) & (margin(logits, task.y) > -DOUBT[self.precision] * logits.abs().amax(dim=1))
        if doubtful.any():
            again = task.of(doubtful)
            with frozen(self.base, fast=False) as target:
                model = self._seen(target, decides=False)  # to the end: it may not leave on a verdict that the judge does not share
                found.x_adv[doubtful] = self._attack(model, again)
            found.predicted[doubtful], found.right[doubtful] = judge(found.x_adv[doubtful], again.y, again.ids)
            found.forward, found.backward = found.forward + model.forward_images, found.backward + model.backward_images
        return found

    def _searched(self, target: nn.Module, decides: bool, task: Task) -> tuple[Tensor, tuple[int, int]]:
        """x_adv, and images sent forward and backward."""
        with drawn(is_random(self.base), self.seed, "attack", task.name, int(task.ids[0])):
            model = self._seen(target, decides)
            x_adv = self._attack(model, task)
        return x_adv, (model.forward_images, model.backward_images)

    def _looked_up(self, crafted: Crafted, task: Task) -> tuple[Tensor, tuple[int, int], int]:
        """As `_searched`, and how many images were found before; only the others are attacked."""
        places, (made, examples) = crafted.places(task.ids), crafted.stage(task.name)
        new, passes = (~made[places]).nonzero()[:, 0], (0, 0)
        if len(new):
            with frozen(self.base) as target:
                found, passes = self._searched(target, False, task.of(new.to(task.x.device)))
            examples[places[new]], made[places[new]] = found.to("cpu", torch.float32), True
        x_adv = examples[places].to(task.x.device, task.x.dtype)
        check_images(x_adv, task.x, task.budget, f"{type(task.attack).__name__} (kept in {crafted.path})")
        return x_adv, passes, len(task.ids) - len(new)

    def _seen(self, target: nn.Module, decides: bool) -> Counted:
        stochastic = is_random(target)
        if isinstance(self.view, Queries):
            target = Queries(target, self.view.answers)
        elif stochastic:
            if isinstance(target, Defended):
                target = target.one_draw()  # EOT averages single draws; the verdict is the ensemble's
            if self.eot_samples > 1:
                target = Averaged(target, self.eot_samples)
        return Counted(target, decides, stochastic)

    def _attack(self, model: nn.Module, task: Task) -> Tensor:
        name = type(task.attack).__name__
        try:
            x_adv = task.attack(model, task.x, task.y, task.budget, task.rng)
        except NotFinite as error:
            if not torch.isfinite(error.x).all():
                raise LabError(NOT_FINITE.format(name)) from error
            nearest = torch.cdist(error.x.flatten(1), task.x.flatten(1)).argmin(dim=1)  # the images that it set out from
            raise LabError(f"attack {name}: {error}, found on the way from {listed(task.ids[nearest])}; is the model trained?") from error
        check_images(x_adv, task.x, task.budget, name)
        return x_adv


@contextmanager
def drawn(stochastic: bool, *tags: int | str) -> Iterator[None]:
    """For stochastic models: the global random numbers named by `tags`; afterwards the generators are as they were."""
    if not stochastic:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(stable_hash(*tags))
        yield


def listed(ids: Tensor, most: int = 10) -> str:
    """Image indices for a message."""
    found = sorted(set(ids.tolist()))
    return f"image{'s' * (len(found) > 1)} {', '.join(map(str, found[:most]))}{', ...' * (len(found) > most)}"


@torch.no_grad()
def predictions(model: Defended, x: Tensor, ids: Tensor | None = None) -> Tensor:
    """The predicted classes, int64 [B], in eval mode and full precision.

    Raises LabError, naming the images, when an output is not finite.
    """
    was_training = model.training
    logits = model.eval()(x)
    model.train(was_training)
    if not torch.isfinite(logits).all():
        bad = torch.nonzero(~torch.isfinite(logits).all(dim=1))[:, 0]
        which = f"position {bad[0].item()}" if ids is None else listed(ids[bad])
        raise LabError(f"the model's output is not finite for {len(bad)} of {len(x)} images of a batch: {which}; is the model trained?")
    return logits.argmax(dim=1)


def check_images(x_adv: Tensor, x: Tensor, budget: Budget, attack: str) -> None:
    """Stop if an attack left the budget or broke its images: a failed attack is an error, never a score."""
    if x_adv.shape != x.shape:
        raise LabError(f"attack {attack} returned images of shape {tuple(x_adv.shape)}, expected {tuple(x.shape)}")
    if not torch.isfinite(x_adv).all():
        raise LabError(NOT_FINITE.format(attack))
    if not budget.contains(x_adv, x):
        worst = float(budget.distance(x_adv, x).max())
        low, high = float(x_adv.min()), float(x_adv.max())
        raise LabError(f"attack {attack} left the budget: {budget.norm} distance {worst:.8f}, eps {budget.eps}; pixels {low} to {high}")
