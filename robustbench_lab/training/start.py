"""What a run begins from: its seed's weights, a file's, or its teacher's."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended
from robustbench_lab.training.checkpoints import load_weights
from robustbench_lab.training.matching import load, matched
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.weights import read_weights

log = logging.getLogger("robustbench_lab")


def begin(model: Defended, recipe: Recipe, teacher: nn.Module | None) -> None:
    """Load what the recipe says that the model begins from, if anything. Raises LabError for weights that are missing or do not fit."""
    if recipe.weights is not None:
        found = matched(model, read_weights(Path(recipe.weights), recipe.weights_digest), recipe.rename)
        load(found)
        if found.by == "order":
            log.warning("%s: %s", recipe.weights, found.told)
    elif recipe.start is not None:
        require(teacher is not None, "training.start", "null for a run without a teacher", recipe.start)
        assert teacher is not None
        load_weights(model, {**_of_fronts_alone(model, teacher), **teacher.state_dict()}, "the teacher of this run")


def _of_fronts_alone(model: nn.Module, other: nn.Module) -> dict[str, Tensor]:
    """What the model's fronts hold that the other has no name for, such as a bank of patches: it stays as it is."""
    theirs = other.state_dict()
    return {key: tensor for key, tensor in model.state_dict().items() if key.startswith("fronts.") and key not in theirs}


def check_start(model: nn.Module, other: nn.Module, name: str, other_name: str) -> None:
    """Raises LabError, naming both runs, where one cannot begin from the other's weights, but for what its fronts alone hold."""
    own = _of_fronts_alone(model, other)
    ours, theirs = ({key: tuple(tensor.shape) for key, tensor in one.state_dict().items()} for one in (model, other))
    differing = sorted(key for key in (ours.keys() | theirs.keys()) - own.keys() if ours.get(key) != theirs.get(key))
    if differing:
        first = differing[0]
        raise LabError(
            f"training.start: expected a run of the same architecture as {name}, got {other_name}: {len(differing)} tensors differ, the "
            f"first is {first!r} (here {ours.get(first)}, there {theirs.get(first)}); leave backbone and dataset out of its words"
        )
