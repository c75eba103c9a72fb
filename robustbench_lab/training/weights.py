"""Files of weights that other people made: read without executing anything of theirs, as names and tensors."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import file_digest, reading, there

# Under which of its keys a checkpoint has the weights, the first that is there: averages of them (ema) where there are no others.
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "ema", "model_ema", "state_dict_ema")
# What public checkpoints hold beside tensors, and what makes no more than a value of it: options, and numpy's numbers under the names
# that its versions 1 and 2 pickle.
VALUES: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
SAFE = "safetensors.torch.save_file(torch.load('FILE', weights_only=False)['state_dict'], 'NEW.safetensors')"


@dataclass(frozen=True)
class WeightsFile:
    """What a file of weights holds: tensors by name, in the order of the file; entry: the key that they were under, None for the file's
    own."""

    path: Path
    tensors: dict[str, Tensor]
    entry: str | None


def read_weights(path: Path, digest: str | None = None) -> WeightsFile:
    """A safetensors file, or a state_dict that torch saved, plain or within a checkpoint (ENTRIES).

    digest: of the whole file (storage.files.file_digest), where it is known. Raises LabError when the file is missing, damaged, another
    than the digest says, needs code to be read, holds no state_dict, or numbers that are not finite.
    """
    if not there(path):
        raise LabError(f"training.weights: expected a file of weights, but there is no {path}")
    if digest is not None and (found := file_digest(path)) != digest:
        raise LabError(f"training.weights: {path} is another file than this run was named by: its digest is {found}, expected {digest}")
    with reading(path, "choose another file with training.weights"):
        content = _ordered(_loaded(path, load_file)) if path.suffix == ".safetensors" else _loaded(path, _torch_load)
    entry, tensors = next(_state_dicts(content), (None, {}))
    if not tensors:
        keys = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        expected = f"a state_dict, names and tensors, plain or under {', '.join(ENTRIES[:-1])} or {ENTRIES[-1]}"
        raise LabError(f"training.weights: expected {expected}, in {path}, got {keys}; save model.state_dict() alone, for example")
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise LabError(f"training.weights: expected finite numbers in {path}, but {name} has others; its training has diverged")
    return WeightsFile(path, tensors, entry)


def _torch_load(path: Path) -> Any:
    with torch.serialization.safe_globals(VALUES):
        return torch.load(path, map_location="cpu", weights_only=True)


def _loaded(path: Path, load: Any) -> Any:
    try:
        return load(path)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        what = f" ({needs[1]})" if needs else ""
        raise LabError(
            f"training.weights: {path} is damaged, or holds objects{what} that only code could make, which is not run: it could do "
            f"anything. If you trust its maker, save the tensors alone: {SAFE.replace('FILE', path.name).replace('NEW', path.stem)}"
        ) from error
    except Exception as error:  # whatever a damaged file makes of two libraries
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise LabError(f"training.weights: {path} is damaged, cut short, or no file of weights ({reason})") from error


def _state_dicts(content: Any) -> Iterator[tuple[str | None, dict[str, Tensor]]]:
    """Those that a file's content is or holds, the likeliest first, with their key; numbers beside tensors are passed over."""
    if not isinstance(content, Mapping):
        return
    for entry in ENTRIES:
        for _, tensors in _state_dicts(content.get(entry)):
            yield entry, tensors
    if any(isinstance(value, Tensor) for value in content.values()):
        yield None, {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _ordered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By name, numbers in it as numbers: safetensors keeps no order, and layer10 comes after layer9."""

    def key(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]

    return {name: tensors[name] for name in sorted(tensors, key=key)}
