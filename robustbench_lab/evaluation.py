"""Attack a split, one outcome per image.

Robust accuracy is per image: an image counts as robust if it is classified correctly both clean and attacked. The attack differentiates
whatever the threat model shows it; the verdict always falls on the defended model, in full precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import Attack, own_loss
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.models import Defended, frozen, full_precision
from robustbench_lab.progress import progress
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, ThreatModel

SAVE_EVERY = 30.0  # seconds between partial outcomes


NO_GRADIENT = (
    "threat_model.sees=queries gives no gradient, but the attack asks for one; choose an attack that only queries, or threat_model=white"
)


class _NoGradient(torch.autograd.Function):
    """The identity, whose gradient is an error."""

    @staticmethod
    def forward(ctx, logits: Tensor, x: Tensor) -> Tensor:
        return logits

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, None]:
        raise LabError(NO_GRADIENT)


class Queries(nn.Module):
    """A model that answers with logits or labels (as one-hot logits), and whose gradient is an error."""

    def __init__(self, model: nn.Module, answers: str) -> None:
        super().__init__()
        self.model = model
        self.answers = answers
        self.own_loss = own_loss(model)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.model(x)
            if self.answers == "labels":
                logits = nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(x.dtype)
        return _NoGradient.apply(logits, x)


class Counted(nn.Module):
    """A model that counts how many images went through it forward and backward."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.own_loss = own_loss(model)
        self.forward_images = 0
        self.backward_images = 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_images += len(x)
        logits = self.model(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_images += len(gradient)


def check_view(threat_model: ThreatModel, attack: Attack) -> None:
    """Stop, before anything is loaded, if the attack needs what the threat model hides."""
    if threat_model.sees == "queries" and attack.needs_gradients:
        raise LabError(NO_GRADIENT)


def attacker_view(threat_model: ThreatModel, defended: Defended, source: Defended | None, undefended: bool) -> nn.Module:
    """What the attacker may query or differentiate.

    source: the other run's model, for `twin` and `substitute`. undefended: whether `defended` is standard training, for which `learned`
    equals `defended`. Raises LabError where `learned` hides nothing of a defense.
    """
    if threat_model.sees == "queries":
        return Queries(defended, threat_model.answers)
    if threat_model.sees == "learned":
        fixed = [front for front in defended.fronts if not front.learned]
        if not fixed and not undefended:
            raise LabError(
                "threat_model.sees=learned hides the fixed pre-processing, but this defense has none; use threat_model=white or "
                "threat_model=gray_twin"
            )
        return defended.without_fixed_fronts() if fixed else defended
    if threat_model.sees == "defended":
        return defended
    assert source is not None, "the job loads the source that the threat model names"
    return source


@dataclass
class Outcome:
    """One entry per image, in the order of the split: NaN and False where not reached yet.

    ids int64; clean, robust bool; distance float64, in the budget's norm, NaN for images that were wrong already and so not attacked;
    done bool. forward, backward: images that the attack sent through its view of the model. seconds: time spent attacking.
    """

    ids: np.ndarray
    clean: np.ndarray
    robust: np.ndarray
    distance: np.ndarray
    done: np.ndarray
    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, ids: np.ndarray) -> Outcome:
        n = len(ids)
        return cls(ids, np.zeros(n, bool), np.zeros(n, bool), np.full(n, np.nan), np.zeros(n, bool))


def evaluate(
    defended: Defended,
    view: nn.Module,
    data: ImageSet,
    attack: Attack,
    budget: Budget,
    *,
    seed: int,
    batch_size: int,
    outcome: Outcome | None = None,
    save: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Attack every image that is right when clean; go on from `outcome` where one is given, and hand partial ones to `save`.

    Images are [B, C, H, W] in [0, 1] on the models' device. An image's result depends on its identity and `seed`, not on its batch.
    Raises LabError, naming the attack, when it returns images that are not finite or lie outside the budget by more than 1e-6, and when
    the model returns values that are not finite.
    """
    attack.check(budget)
    outcome = outcome or Outcome.empty(data.ids.cpu().numpy())
    assert np.array_equal(outcome.ids, data.ids.cpu().numpy()), "an outcome goes on with the images that it began with"
    todo = torch.from_numpy(np.flatnonzero(~outcome.done))
    chunks = todo.split(batch_size) if len(todo) else ()  # split gives one empty chunk of nothing
    name = type(attack).__name__
    started = saved = time.perf_counter()
    earlier = outcome.seconds
    if isinstance(view, Defended) and not view.stochastic:
        view.attach_fast_copy()
    with progress(total=len(data), initial=len(data) - len(todo), unit="image", desc=name) as bar, full_precision():
        for chunk, (x, y, ids) in zip(chunks, data.batches(todo, batch_size), strict=True):
            clean = predictions(defended, x) == y
            robust = torch.zeros_like(clean)
            distance = torch.full(clean.shape, torch.nan, dtype=torch.float64, device=x.device)
            if clean.any():
                with frozen(view) as target:
                    counted = Counted(target)
                    x_adv = attack(counted, x[clean], y[clean], budget, ImageRandom.of(ids[clean], seed, "attack"))
                outcome.forward += counted.forward_images
                outcome.backward += counted.backward_images
                check_images(x_adv, x[clean], budget, name)
                robust[clean] = predictions(defended, x_adv) == y[clean]
                distance[clean] = budget.distance(x_adv, x[clean])
            rows = chunk.numpy()
            outcome.clean[rows], outcome.robust[rows] = clean.cpu().numpy(), robust.cpu().numpy()
            outcome.distance[rows], outcome.done[rows] = distance.cpu().numpy(), True
            outcome.seconds = earlier + time.perf_counter() - started
            bar.update(len(x))
            if time.perf_counter() - saved > SAVE_EVERY and not outcome.done.all():
                save(outcome)
                saved = time.perf_counter()
    return outcome


@torch.no_grad()
def predictions(model: Defended, x: Tensor) -> Tensor:
    """The predicted classes, int64 [B], in eval mode and full precision. Raises LabError when an output is not finite."""
    was_training = model.training
    logits = model.eval()(x)
    model.train(was_training)
    if not torch.isfinite(logits).all():
        bad = torch.nonzero(~torch.isfinite(logits).all(dim=1))[:, 0].tolist()
        raise LabError(f"the model's output is not finite for {len(bad)} of {len(x)} images of a batch, the first at position {bad[0]}")
    return logits.argmax(dim=1)


def check_images(x_adv: Tensor, x: Tensor, budget: Budget, attack: str) -> None:
    """Stop if an attack left the budget or broke its images: a failed attack is an error, never a score."""
    if x_adv.shape != x.shape:
        raise LabError(f"attack {attack} returned images of shape {tuple(x_adv.shape)}, expected {tuple(x.shape)}")
    if not torch.isfinite(x_adv).all():
        raise LabError(f"attack {attack} returned pixels that are not finite; does the model return finite gradients?")
    if not budget.contains(x_adv, x):
        worst = float(budget.distance(x_adv, x).max())
        low, high = float(x_adv.min()), float(x_adv.max())
        raise LabError(f"attack {attack} left the budget: {budget.norm} distance {worst:.8f}, eps {budget.eps}; pixels {low} to {high}")
