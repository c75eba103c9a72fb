"""What a run begins from: its seed's weights, a file's, or its teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.storage.files import file_digest, reading, there
from robustbench_lab.training.checkpoints import load_weights
from robustbench_lab.training.recipe import Recipe


def begin(model: Defended, recipe: Recipe, teacher: nn.Module | None) -> None:
    """Load what the recipe says that the model begins from, if anything. Raises LabError for weights that are missing or do not fit."""
    if recipe.weights is not None:
        path = Path(recipe.weights)
        tensors = read_weights(path, recipe.weights_digest)
        load_weights(part_of(model, tensors), tensors, path)
    elif recipe.start is not None:
        require(teacher is not None, "training.start", "null for a run without a teacher", recipe.start)
        assert teacher is not None
        load_weights(model, teacher.state_dict(), "the teacher of this run")


def check_start(model: nn.Module, other: nn.Module, name: str, other_name: str) -> None:
    """Raises LabError, naming both runs, where one cannot begin from the other's weights."""
    ours, theirs = ({key: tuple(tensor.shape) for key, tensor in one.state_dict().items()} for one in (model, other))
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if differing:
        first = differing[0]
        raise LabError(
            f"training.start: expected a run of the same architecture as {name}, got {other_name}: {len(differing)} tensors differ, the "
            f"first is {first!r} (here {ours.get(first)}, there {theirs.get(first)}); leave backbone and dataset out of its words"
        )


def read_weights(path: Path, digest: str | None) -> dict[str, Tensor]:
    """The tensors of a safetensors file, or of a state_dict that torch saved, which is read without executing anything.

    digest: of the whole file (storage.files.file_digest), where it is known. Raises LabError when the file is missing, damaged, another
    than the digest says, or no mapping of names to tensors.
    """
    if not there(path):
        raise LabError(f"training.weights: expected a file of weights, but there is no {path}")
    if digest is not None and (found := file_digest(path)) != digest:
        raise LabError(f"training.weights: {path} is another file than this run was named by: its digest is {found}, expected {digest}")
    with reading(path, "choose another file with training.weights"):
        try:
            tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged file makes of two libraries
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise LabError(f"training.weights: {path} is damaged, or holds more than tensors ({reason})") from error
    if isinstance(tensors, Mapping) and isinstance(tensors.get("state_dict"), Mapping):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, Mapping) or not tensors or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise LabError(f"training.weights: expected names and tensors in {path}, a state_dict; save it as safetensors, for example")
    return dict(tensors)


def part_of(model: Defended, tensors: Mapping[str, Tensor]) -> nn.Module:
    """What the tensors are named as: the whole model, its network, or the backbone in it; the whole where none has just these names."""
    network = model.network
    parts = [model, network, *([network.backbone] if isinstance(network, Classifier) else [])]
    return next((part for part in parts if part.state_dict().keys() == tensors.keys()), model)
