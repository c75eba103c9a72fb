"""Attack a split, one outcome per image.

Robust accuracy is per image: an image counts as robust if it is classified correctly both clean and attacked. The attack differentiates
whatever the threat model shows it; the verdict always falls on the defended model, in full precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import Attack, is_random, margin
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.metrics.measures import Measure, Seen
from robustbench_lab.models import Defended, frozen, full_precision
from robustbench_lab.progress import progress
from robustbench_lab.randomness import ImageRandom, stable_hash
from robustbench_lab.threats import Budget
from robustbench_lab.views import Averaged, Counted, NotFinite, Queries

SAVE_EVERY = 30.0  # seconds between partial outcomes
EXAMPLES = 6  # how many images are kept with what the attack made of them
DOUBT = {"fp32": 1e-4, "bf16": 1e-2}  # margins, as shares of the largest logit, below which two passes may disagree
NOT_FINITE = "attack {} returned pixels that are not finite; does the model return finite gradients?"


@dataclass
class Examples:
    """The first images of the split, whatever their verdict: nobody picks them.

    index int64 [E]: their ids; x uint8 [E, C, H, W]; delta float16 [E, C, H, W]: what was added to pixels in [0, 1], zero for images that
    were not attacked; label, clean_prediction, prediction int64 [E]: the class, and the defended model's answer on x and on x + delta (of
    several draws, the first). Of several attacks, delta is of the one that the verdict rests on: that which hurt the image most, or
    the last one where none did. Images that are not done yet are zero, and their predictions -1.
    """

    index: np.ndarray
    x: np.ndarray
    delta: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    prediction: np.ndarray

    @classmethod
    def empty(cls, ids: np.ndarray, shape: tuple[int, ...]) -> Examples:
        index = ids[:EXAMPLES]
        images = (len(index), *shape)
        return cls(
            index, np.zeros(images, np.uint8), np.zeros(images, np.float16), *(np.full(len(index), -1, np.int64) for _ in range(3)),
        )  # fmt: skip

    def keep(self, rows: np.ndarray, x: Tensor, x_adv: Tensor, y: Tensor, clean_prediction: Tensor, prediction: Tensor) -> None:
        """Take images, where `rows` say, and what became of them."""
        self.x[rows], self.delta[rows] = (255 * x).round().cpu().numpy(), (x_adv - x).cpu().numpy()
        self.label[rows], self.clean_prediction[rows] = y.cpu().numpy(), clean_prediction.cpu().numpy()
        self.prediction[rows] = prediction.cpu().numpy()


@dataclass
class Outcome:
    """One entry per image, in the order of the split, and one per stage of the attack; and the first images themselves.

    ids int64; clean bool: right without an attack (of several draws, the first); clean_right, right float64: the share of the verdict's
    draws in which the image is right without an attack, and under the attack that hurt it most; distance float64, in the budget's norm,
    NaN for images that were not attacked; broken_by int64: the stage after which no draw was right any more, -1 if none; done bool.
    forward, backward int64, seconds float64, one entry per stage: images sent through the attacker's view, and time.
    metrics float64 [M, N]: other measures than accuracy, NaN for images that do not count. examples: what became of the first images.
    """

    ids: np.ndarray
    clean: np.ndarray
    clean_right: np.ndarray
    right: np.ndarray
    distance: np.ndarray
    broken_by: np.ndarray
    done: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    seconds: np.ndarray
    metrics: np.ndarray
    examples: Examples

    @classmethod
    def empty(cls, ids: np.ndarray, shape: tuple[int, ...], stages: int = 1, metrics: int = 0) -> Outcome:
        """Nothing done yet, of images of the shape [C, H, W]."""
        n = len(ids)
        return cls(
            ids, np.zeros(n, bool), np.zeros(n), np.zeros(n), np.full(n, np.nan), np.full(n, -1), np.zeros(n, bool),
            np.zeros(stages, np.int64), np.zeros(stages, np.int64), np.zeros(stages),
            np.full((metrics, n), np.nan), Examples.empty(ids, shape),
        )  # fmt: skip

    @property
    def robust(self) -> np.ndarray:
        """Right in every draw, clean and attacked: bool."""
        return self.right == 1

    def survivors(self) -> list[int]:
        """How many images each stage left with a draw in which they are right."""
        attacked = int((self.clean_right > 0).sum())
        return [attacked - int(((self.broken_by >= 0) & (self.broken_by <= stage)).sum()) for stage in range(len(self.forward))]


def evaluate(
    defended: Defended,
    view: nn.Module,
    data: ImageSet,
    attack: Attack,
    budget: Budget,
    *,
    seed: int,
    batch_size: int,
    draws: int = 1,
    eot_samples: int = 1,
    precision: str = "fp32",
    measures: Sequence[Measure] = (),
    train: Tensor | None = None,
    outcome: Outcome | None = None,
    save: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Attack every image that is right when clean; go on from `outcome` where one is given, and hand partial ones to `save`.

    Images are [B, C, H, W] in [0, 1] on the models' device. Against a deterministic model an image's result depends on its identity and
    `seed`, not on its batch; the noise of a stochastic one may belong to a place in the batch.
    draws: how often a stochastic model is asked for its verdict; eot_samples: passes that the attack averages on one. precision: of the
    search, fp32 or bf16; the verdict is always in full precision, and an image that is right by so little that the search may have seen it
    broken is attacked again in full precision, to the end.
    measures: metrics beside accuracy; train [M, C, H, W]: the training images, for those that ask for them.
    Raises LabError, naming the attack, when it returns images that are not finite or lie outside the budget by more than 1e-6, and when
    the model returns values that are not finite.
    """
    attack.check(budget)
    stages = attack.stages()
    outcome = outcome or Outcome.empty(data.ids.cpu().numpy(), data.shape, len(stages), len(measures))
    assert np.array_equal(outcome.ids, data.ids.cpu().numpy()), "an outcome goes on with the images that it began with"
    todo = torch.from_numpy(np.flatnonzero(~outcome.done))
    chunks = todo.split(batch_size) if len(todo) else ()  # split gives one empty chunk of nothing
    judge = Judge(defended, draws if defended.stochastic else 1, seed)
    search = Search(view, seed, eot_samples, precision)
    saved = time.perf_counter()
    with progress(total=len(data), initial=len(data) - len(todo), unit="image", desc=type(attack).__name__) as bar, full_precision():
        for chunk, (x, y, ids) in zip(chunks, data.batches(todo, batch_size), strict=True):
            rows = chunk.numpy()
            clean_prediction, clean_right = judge(x, y, ids)
            right, distance = clean_right.clone(), torch.full(y.shape, torch.nan, dtype=torch.float64, device=x.device)
            shown, prediction = x.clone(), clean_prediction.clone()
            broken_by = torch.full_like(y, -1)
            for number, (name, stage) in enumerate(stages):
                left = torch.nonzero(right > 0)[:, 0]
                if not len(left):
                    break
                started = time.perf_counter()
                rng = ImageRandom.of(ids[left], seed, "attack")
                rng = rng.fold("stage", name) if len(stages) > 1 else rng
                x_adv, predicted, now, passes = search(name, stage, judge, x[left], y[left], ids[left], budget, rng)
                worse = now < right[left]
                tells = worse | (right[left] == clean_right[left])  # what hurt most, or the last where nothing did
                shown[left[tells]], prediction[left[tells]] = x_adv[tells], predicted[tells]
                distance[left] = torch.where(worse | distance[left].isnan(), budget.distance(x_adv, x[left]), distance[left])
                right[left] = torch.minimum(now, right[left])
                broken_by[left[right[left] == 0]] = number
                outcome.forward[number] += passes[0]
                outcome.backward[number] += passes[1]
                outcome.seconds[number] += time.perf_counter() - started
            few = int((rows < EXAMPLES).sum())  # rows ascend: a batch's examples are its first images
            outcome.examples.keep(rows[:few], x[:few], shown[:few], y[:few], clean_prediction[:few], prediction[:few])
            if measures:
                seen = Seen(defended, x, shown, y, (clean_right > 0) & (right == 0), train)
                with drawn(defended.stochastic, seed, "metric", int(ids[0])):
                    outcome.metrics[:, rows] = torch.stack([measure(seen) for measure in measures]).cpu().numpy()
            outcome.clean[rows], outcome.clean_right[rows] = (clean_prediction == y).cpu().numpy(), clean_right.cpu().numpy()
            outcome.right[rows], outcome.broken_by[rows] = right.cpu().numpy(), broken_by.cpu().numpy()
            outcome.distance[rows], outcome.done[rows] = distance.cpu().numpy(), True
            bar.update(len(x))
            if time.perf_counter() - saved > SAVE_EVERY and not outcome.done.all():
                save(outcome)
                saved = time.perf_counter()
    return outcome


@dataclass(frozen=True)
class Judge:
    """The verdict: the defended model's predictions in full precision, drawn `draws` times where its output is random.

    The draws come from the global generator, seeded by their number alone: the same weights' noise for every batch.
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
    """One attack on some images: what it sees of the model, and what the judge says of what it found."""

    view: nn.Module
    seed: int
    eot_samples: int
    precision: str

    def __post_init__(self) -> None:
        if isinstance(self.base, Defended) and not self.base.stochastic:
            self.base.attach_fast_copy(self.precision)

    @property
    def base(self) -> nn.Module:
        """The model behind the view."""
        return self.view.model if isinstance(self.view, Queries) else self.view

    def __call__(
        self, name: str, attack: Attack, judge: Judge, x: Tensor, y: Tensor, ids: Tensor, budget: Budget, rng: ImageRandom
    ) -> tuple[Tensor, Tensor, Tensor, tuple[int, int]]:
        """x_adv [B, C, H, W]; what the judge says of them, as Judge does; images sent forward and backward."""
        decides = self.base is judge.defended and not judge.defended.stochastic
        with frozen(self.base) as target, drawn(is_random(self.base), self.seed, "attack", name, int(ids[0])):
            model = self._seen(target, decides)
            x_adv = self._attack(attack, model, x, y, ids, budget, rng)
            predicted, right = judge(x_adv, y, ids)
            doubtful = torch.zeros_like(right, dtype=torch.bool)
            if decides:  # what the attack saw broken, in another batch or precision, the judge must see broken
                with torch.no_grad():
                    logits = target(x_adv)
                doubtful = (right > 0) & (margin(logits, y) > -DOUBT[self.precision] * logits.abs().amax(dim=1))
        passes = model.forward_images, model.backward_images
        if doubtful.any():
            with frozen(self.base, fast=False) as target:
                model = self._seen(target, decides=False)  # to the end: it may not leave on a verdict that the judge does not share
                x_adv[doubtful] = self._attack(attack, model, x[doubtful], y[doubtful], ids[doubtful], budget, rng[doubtful])
            predicted[doubtful], right[doubtful] = judge(x_adv[doubtful], y[doubtful], ids[doubtful])
            passes = passes[0] + model.forward_images, passes[1] + model.backward_images
        return x_adv, predicted, right, passes

    def _seen(self, target: nn.Module, decides: bool) -> Counted:
        stochastic = is_random(target)
        if isinstance(self.view, Queries):
            target = Queries(target, self.view.answers)
        elif stochastic and self.eot_samples > 1:
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
