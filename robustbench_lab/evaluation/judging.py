"""The attacker and the judge of an evaluation: one searches on what the threat model shows, the other decides on the defended model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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
class Search:
    """One attack on some images: what it sees of the model, and what the judge says of what it found.

    crafted: what was found before on the same view, if that is worth keeping; what is found now is added.
    """

    view: nn.Module
    seed: int
    eot_samples: int
    precision: str
    crafted: Crafted | None = None

    def __post_init__(self) -> None:
        if isinstance(self.base, Defended) and not self.base.stochastic:
            self.base.attach_fast_copy(self.precision)

    @property
    def base(self) -> nn.Module:
        """The model behind the view."""
        return attacked(self.view.model if isinstance(self.view, Queries) else self.view)

    def __call__(
        self, name: str, attack: Attack, judge: Judge, x: Tensor, y: Tensor, ids: Tensor, budget: Budget, rng: ImageRandom
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, int, int]]:
        """x_adv [B, C, H, W]; what the judge says of them, as Judge does; images sent forward, sent backward, and found before."""
        decides = self.base is judge.defended and not judge.defended.stochastic
        if self.crafted is not None:
            x_adv, passes, known = self._looked_up(self.crafted, name, attack, x, y, ids, budget, rng)
            return x_adv, *judge(x_adv, y, ids), (*passes, known)
        with frozen(self.base) as target:
            x_adv, passes = self._searched(target, decides, name, attack, x, y, ids, budget, rng)
            predicted, right = judge(x_adv, y, ids)
            doubtful = torch.zeros_like(right, dtype=torch.bool)
            if decides:  # what the attack saw broken, in another batch or precision, the judge must see broken
                with torch.no_grad():
                    logits = target(x_adv)
                doubtful = (right > 0) & (margin(logits, y) > -DOUBT[self.precision] * logits.abs().amax(dim=1))
        if doubtful.any():
            with frozen(self.base, fast=False) as target:
                model = self._seen(target, decides=False)  # to the end: it may not leave on a verdict that the judge does not share
                x_adv[doubtful] = self._attack(attack, model, x[doubtful], y[doubtful], ids[doubtful], budget, rng[doubtful])
            predicted[doubtful], right[doubtful] = judge(x_adv[doubtful], y[doubtful], ids[doubtful])
            passes = passes[0] + model.forward_images, passes[1] + model.backward_images
        return x_adv, predicted, right, (*passes, 0)

    def _searched(
        self,
        target: nn.Module,
        decides: bool,
        name: str,
        attack: Attack,
        x: Tensor,
        y: Tensor,
        ids: Tensor,
        budget: Budget,
        rng: ImageRandom,
    ) -> tuple[Tensor, tuple[int, int]]:
        """x_adv, and images sent forward and backward."""
        with drawn(is_random(self.base), self.seed, "attack", name, int(ids[0])):
            model = self._seen(target, decides)
            x_adv = self._attack(attack, model, x, y, ids, budget, rng)
        return x_adv, (model.forward_images, model.backward_images)

    def _looked_up(
        self, crafted: Crafted, name: str, attack: Attack, x: Tensor, y: Tensor, ids: Tensor, budget: Budget, rng: ImageRandom
    ) -> tuple[Tensor, tuple[int, int], int]:
        """As `_searched`, and how many images were found before; only the others are attacked."""
        places, (made, examples) = crafted.places(ids), crafted.stage(name)
        new, passes = (~made[places]).nonzero()[:, 0], (0, 0)
        if len(new):
            here = new.to(x.device)
            with frozen(self.base) as target:
                found, passes = self._searched(target, False, name, attack, x[here], y[here], ids[here], budget, rng[here])
            examples[places[new]], made[places[new]] = found.to("cpu", torch.float32), True
        x_adv = examples[places].to(x.device, x.dtype)
        check_images(x_adv, x, budget, f"{type(attack).__name__} (kept in {crafted.path})")
        return x_adv, passes, len(ids) - len(new)

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

    def _attack(self, attack: Attack, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        name = type(attack).__name__
        try:
            x_adv = attack(model, x, y, budget, rng)
        except NotFinite as error:
            if not torch.isfinite(error.x).all():
                raise LabError(NOT_FINITE.format(name)) from error
            nearest = torch.cdist(error.x.flatten(1), x.flatten(1)).argmin(dim=1)  # the images that it set out from
            raise LabError(f"attack {name}: {error}, found on the way from {listed(ids[nearest])}; is the model trained?") from error
        check_images(x_adv, x, budget, name)
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
