"""Attack a split, one outcome per image.

Robust accuracy is per image: an image counts as robust if it is classified correctly both clean and attacked. The attack differentiates
whatever the threat model shows it; the verdict always falls on the defended model, in full precision.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.evaluation.judging import Found, Judge, Search, Task, drawn
from robustbench_lab.evaluation.keepers.base import Shown
from robustbench_lab.evaluation.outcome import Outcome, Store
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.metrics.base import Seen
from robustbench_lab.models.defended import Defended, full_precision
from robustbench_lab.progress import progress
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

SAVE_EVERY = 30.0  # seconds between partial outcomes
NOTHING = Store()


def evaluate(
    defended: Defended, view: nn.Module, data: ImageSet, attack: Attack, budget: Budget, protocol: Protocol, store: Store = NOTHING
) -> Outcome:
    """Attack every image that is right when clean; go on from the store's outcome where there is one, and hand it partial ones.

    A later stage of the attack sees what the earlier ones have left right, or every image, where they go separately.

    Images are [B, C, H, W] in [0, 1] on the models' device. Against a deterministic model an image's result depends on its identity and the
    protocol's seed, not on its batch; the noise of a stochastic one may belong to a place in the batch. An image that is right by so little
    that the search may have seen it broken is attacked again in full precision, to the end.
    Raises LabError, naming the attack, when it returns images that are not finite or lie outside the budget by more than 1e-6, and when
    the model returns values that are not finite.
    """
    attack.check(budget)
    protocol.check(attack)
    protocol.check_model(defended)
    ids, stages = data.ids.cpu().numpy(), attack.stages()
    runs = len(stages) if attack.separately else 0
    outcome = store.outcome or Outcome.empty(ids, len(stages), len(protocol.measures), runs)
    assert np.array_equal(outcome.ids, ids), "an outcome goes on with the images that it began with"
    batch_size = len(data) if attack.whole_split else protocol.batch_size
    todo = torch.from_numpy(np.flatnonzero(~outcome.done))
    chunks = todo.split(batch_size) if len(todo) else ()  # split gives one empty chunk of nothing
    judge = Judge(defended, protocol.draws if defended.stochastic else 1, protocol.seed)
    search = Search(view, protocol.seed, protocol.eot_samples, protocol.precision, store.crafted)
    search.attach_fast_copy()
    saved = time.perf_counter()
    with progress(total=len(data), initial=len(data) - len(todo), unit="image", desc=type(attack).__name__) as bar, full_precision():
        for chunk, (x, y, ids_here) in zip(chunks, data.batches(todo, batch_size), strict=True):
            batch = _Batch(chunk.numpy(), x, y, ids_here, judge)
            for number, (name, stage) in enumerate(stages):
                left = batch.left(attack.separately, protocol.misclassified)
                if not len(left):
                    break
                started = time.perf_counter()
                rng = ImageRandom.of(ids_here[left], protocol.seed, "attack")
                rng = rng.fold("stage", name) if len(stages) > 1 else rng
                found = search(Task(name, stage, x[left], y[left], ids_here[left], budget, rng), judge)
                batch.take(left, found, number, budget, protocol.misclassified)
                if attack.separately:
                    outcome.runs[number, batch.rows[left.cpu().numpy()]] = batch.alone(left, found)
                outcome.forward[number] += found.forward
                outcome.backward[number] += found.backward
                outcome.reused[number] += found.reused
                outcome.seconds[number] += time.perf_counter() - started
            for keeper in protocol.keepers:
                keeper.keep(batch.shown)
            if protocol.measures:
                outcome.metrics[:, batch.rows] = batch.measured(defended, protocol)
            batch.write(outcome)
            bar.update(len(x))
            if time.perf_counter() - saved > SAVE_EVERY and not outcome.done.all():
                store.save(outcome)
                saved = time.perf_counter()
    return outcome


class _Batch:
    """The images of one batch and what is known of each so far: a row of the outcome to be, as `Outcome` has it."""

    def __init__(self, rows: np.ndarray, x: Tensor, y: Tensor, ids: Tensor, judge: Judge) -> None:
        self.rows, self.x, self.y, self.ids = rows, x, y, ids
        self.clean_prediction, self.clean_right = judge(x, y, ids)
        self.right, self.after = self.clean_right.clone(), self.clean_right.clone()
        self.distance = torch.full(y.shape, torch.nan, dtype=torch.float64, device=x.device)
        self.broken_by = torch.full_like(y, -1)
        self.x_adv, self.prediction = x.clone(), self.clean_prediction.clone()

    def left(self, separately: bool, misclassified: bool) -> Tensor:
        """The images that the next stage attacks: positions in the batch."""
        return torch.nonzero(((self.clean_right if separately else self.right) > 0) | misclassified)[:, 0]

    def take(self, left: Tensor, found: Found, number: int, budget: Budget, misclassified: bool) -> None:
        """What a stage made of the images that were left."""
        worse = found.right < self.right[left]
        tells = worse | (self.right[left] == self.clean_right[left])  # what hurt most, or the last where nothing did
        self.x_adv[left[tells]], self.prediction[left[tells]] = found.x_adv[tells], found.predicted[tells]
        before = self.distance[left]
        self.distance[left] = torch.where(worse | before.isnan(), budget.distance(found.x_adv, self.x[left]), before)
        self.right[left] = torch.minimum(found.right, self.right[left])
        self.after[left] = found.right if misclassified else self.right[left]
        self.broken_by[left[(self.right[left] == 0) & (self.clean_right[left] > 0) & (self.broken_by[left] < 0)]] = number

    def alone(self, left: Tensor, found: Found) -> np.ndarray:
        """The share of draws in which images are right after this stage alone."""
        return torch.minimum(found.right, self.clean_right[left]).cpu().numpy()

    @property
    def shown(self) -> Shown:
        return Shown(self.rows, self.ids, self.y, self.x, self.x_adv, self.clean_prediction, self.prediction)

    def measured(self, defended: Defended, protocol: Protocol) -> np.ndarray:
        """The protocol's measures, float64 [M, B]."""
        broken, flipped = (self.clean_right > 0) & (self.right == 0), self.clean_prediction != self.prediction
        seen = Seen(defended, self.x, self.x_adv, self.y, broken, flipped, protocol.train)
        with drawn(defended.stochastic, protocol.seed, "metric", int(self.ids[0])):
            return torch.stack([measure(seen) for measure in protocol.measures.values()]).cpu().numpy()

    def write(self, outcome: Outcome) -> None:
        rows, clean = self.rows, self.clean_prediction == self.y
        outcome.clean[rows], outcome.clean_right[rows] = clean.cpu().numpy(), self.clean_right.cpu().numpy()
        outcome.right[rows], outcome.after[rows] = self.right.cpu().numpy(), self.after.cpu().numpy()
        outcome.broken_by[rows], outcome.distance[rows] = self.broken_by.cpu().numpy(), self.distance.cpu().numpy()
        outcome.done[rows] = True
