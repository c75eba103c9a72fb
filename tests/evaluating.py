"""An evaluation as a job asks for it, in one call: models, images and attack, and how it asks by name."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from torch import nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Defense
from robustbench_lab.evaluation.keepers.base import Evaluated, Keeper
from robustbench_lab.evaluation.loop import evaluate
from robustbench_lab.evaluation.outcome import Outcome, Store
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.models.defended import Defended
from robustbench_lab.threats import Budget


def judged(
    model: Defended, data: ImageSet, attack: Attack, budget: Budget, view: nn.Module | None = None, keepers: Sequence[Keeper] = (),
    kept: Mapping[str, Mapping[str, np.ndarray]] | None = None, **how: Any,
) -> Outcome:  # fmt: skip
    """`how`: the fields of Protocol and Store. kept: what keepers held when an evaluation was interrupted, by their names."""
    how = {"seed": 0, **how}
    for keeper in keepers:
        keeper.begin(Evaluated(model, Defense(), data, how["seed"], lambda: data, lambda: None, 0))
        if kept is not None:
            keeper.restore(kept[keeper.name])
    store = Store(**{f.name: how.pop(f.name) for f in fields(Store) if f.name in how})
    return evaluate(model, view or model, data, attack, budget, Protocol(keepers=keepers, **how), store)
