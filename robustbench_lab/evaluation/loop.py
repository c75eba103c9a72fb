"""Attack a split, one outcome per image.

Robust accuracy is per image: an image counts as robust if it is classified correctly both clean and attacked. The attack differentiates
whatever the threat model shows it; the verdict always falls on the defended model, in full precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.evaluation.crafted import Crafted
from robustbench_lab.evaluation.judging import Judge, Search, drawn
from robustbench_lab.evaluation.keepers.features import Features
from robustbench_lab.evaluation.outcome import EXAMPLES, Outcome
from robustbench_lab.knobs import require
from robustbench_lab.metrics.measures import Measure, Seen
from robustbench_lab.models.defended import Defended, full_precision
from robustbench_lab.progress import progress
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

SAVE_EVERY = 30.0  # seconds between partial outcomes


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
    misclassified: bool = False,
    keep_features: int | None = None,
    crafted: Crafted | None = None,
    outcome: Outcome | None = None,
    save: Callable[[Outcome], None] = lambda outcome: None,
) -> Outcome:
    """Attack every image that is right when clean; go on from `outcome` where one is given, and hand partial ones to `save`.

    A later stage of the attack sees what the earlier ones have left right, or every image, where they go separately.

    Images are [B, C, H, W] in [0, 1] on the models' device. Against a deterministic model an image's result depends on its identity and
    `seed`, not on its batch; the noise of a stochastic one may belong to a place in the batch.
    draws: how often a stochastic model is asked for its verdict; eot_samples: passes that the attack averages on one. precision: of the
    search, fp32 or bf16; the verdict is always in full precision, and an image that is right by so little that the search may have seen it
    broken is attacked again in full precision, to the end.
    measures: metrics beside accuracy; train [M, C, H, W]: the training images, for those that ask for them.
    misclassified: attack images that are wrong when clean too, as many papers do; they count as broken all the same, and what becomes of
    them stands in `after`. keep_features: of how many images of each class, the first ones, features are kept. crafted: what the same
    attack found on the same view before, which is not searched again.
    Raises LabError, naming the attack, when it returns images that are not finite or lie outside the budget by more than 1e-6, and when
    the model returns values that are not finite.
    """
    attack.check(budget)
    stages = attack.stages()
    batch_size = len(data) if attack.whole_split else batch_size
    require(not misclassified or len(stages) == 1, "attack_misclassified", "false for a list of attacks, which has one verdict", True)
    runs = len(stages) if attack.separately else 0
    outcome = outcome or Outcome.empty(data.ids.cpu().numpy(), data.shape, len(stages), len(measures), runs)
    assert np.array_equal(outcome.ids, data.ids.cpu().numpy()), "an outcome goes on with the images that it began with"
    if keep_features and outcome.features is None:
        outcome.features = Features.empty(defended, data, keep_features, seed)
    todo = torch.from_numpy(np.flatnonzero(~outcome.done))
    chunks = todo.split(batch_size) if len(todo) else ()  # split gives one empty chunk of nothing
    judge = Judge(defended, draws if defended.stochastic else 1, seed)
    search = Search(view, seed, eot_samples, precision, crafted)
    saved = time.perf_counter()
    with progress(total=len(data), initial=len(data) - len(todo), unit="image", desc=type(attack).__name__) as bar, full_precision():
        for chunk, (x, y, ids) in zip(chunks, data.batches(todo, batch_size), strict=True):
            rows = chunk.numpy()
            clean_prediction, clean_right = judge(x, y, ids)
            right, after, distance = (
                clean_right.clone(),
                clean_right.clone(),
                torch.full(y.shape, torch.nan, dtype=torch.float64, device=x.device),
            )
            shown, prediction = x.clone(), clean_prediction.clone()
            broken_by = torch.full_like(y, -1)
            for number, (name, stage) in enumerate(stages):
                left = torch.nonzero(((clean_right if attack.separately else right) > 0) | misclassified)[:, 0]
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
                after[left] = now if misclassified else right[left]
                broken_by[left[(right[left] == 0) & (clean_right[left] > 0) & (broken_by[left] < 0)]] = number
                if attack.separately:
                    outcome.runs[number, rows[left.cpu().numpy()]] = torch.minimum(now, clean_right[left]).cpu().numpy()
                outcome.forward[number] += passes[0]
                outcome.backward[number] += passes[1]
                outcome.reused[number] += passes[2]
                outcome.seconds[number] += time.perf_counter() - started
            few = int((rows < EXAMPLES).sum())  # rows ascend: a batch's examples are its first images
            outcome.examples.keep(rows[:few], x[:few], shown[:few], y[:few], clean_prediction[:few], prediction[:few])
            if outcome.features is not None:
                outcome.features.keep(defended, x, shown, ids, (clean_prediction, prediction), seed)
            if measures:
                seen = Seen(defended, x, shown, y, (clean_right > 0) & (right == 0), clean_prediction != prediction, train)
                with drawn(defended.stochastic, seed, "metric", int(ids[0])):
                    outcome.metrics[:, rows] = torch.stack([measure(seen) for measure in measures]).cpu().numpy()
            outcome.clean[rows], outcome.clean_right[rows] = (clean_prediction == y).cpu().numpy(), clean_right.cpu().numpy()
            outcome.right[rows], outcome.after[rows] = right.cpu().numpy(), after.cpu().numpy()
            outcome.broken_by[rows], outcome.distance[rows], outcome.done[rows] = broken_by.cpu().numpy(), distance.cpu().numpy(), True
            bar.update(len(x))
            if time.perf_counter() - saved > SAVE_EVERY and not outcome.done.all():
                save(outcome)
                saved = time.perf_counter()
    return outcome
