"""Weights and training states on disk: safetensors only, with a digest, so that a damaged file is never half-loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Epoch
from robustbench_lab.settings.images import NO_IMAGES, other_images, told
from robustbench_lab.storage.files import from_json, reading, write_bytes
from robustbench_lab.storage.forms import misfit
from robustbench_lab.storage.weights import REMEDY, metadata
from robustbench_lab.training.state import State

GROUPS = ("model", "best", "optimizers", "averaged")  # of a training state: its tensors
PROGRESS = "progress"  # of a training state: its epoch and history, as the bytes of JSON


class Progress(TypedDict):
    epoch: Epoch
    history: list[dict[str, Any]]


def digest(tensors: dict[str, Tensor]) -> str:
    """A hash over names, shapes, types and values."""
    total = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, object]) -> str:
    """Write tensors and JSON metadata into one file; returns the digest. Raises LabError when the disk fails."""
    checksum = digest(tensors)
    # Copies, because safetensors refuses tensors that share memory (the best weights may be the last).
    content = save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()},
                   {"lab": json.dumps({**meta, "digest": checksum})})  # fmt: skip
    write_bytes(path, content)
    return checksum


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Raises LabError, naming the file, when it is missing, truncated, damaged or of another kind."""
    meta = metadata(path)
    with reading(path, REMEDY):
        return load_file(path), meta


def load_weights(model: nn.Module, tensors: dict[str, Tensor], path: Path | str) -> None:
    """Load all weights or none. Raises LabError, naming what does not fit, for a checkpoint of another architecture."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if expected != found:
        differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        first = differing[0]
        raise LabError(
            f"{path} holds another architecture than the settings describe: {len(differing)} tensors differ, the first is {first!r} "
            f"(expected {expected.get(first)}, found {found.get(first)}); check backbone, dataset and defense, or train with force=true"
        )
    model.load_state_dict(tensors)


class OfOtherImages(LabError):
    """A training state that has seen other images than there are now."""


def save_state(path: Path, state: State, run: str, images: Mapping[str, str] = NO_IMAGES) -> None:
    """Write a training state under the run's fingerprint and the digests of its images, in one file. Raises LabError when its weights are
    not finite."""
    for name, tensor in state.model.items():
        if not torch.isfinite(tensor).all():
            raise LabError(
                f"the weights {name!r} are not finite at the end of epoch {state.epoch}; the checkpoint of epoch {state.epoch - 1} is "
                "kept; a lower training.optimizer.lr or training.precision=fp32 may help"
            )
    groups = {name: getattr(state, name) for name in GROUPS}
    tensors = {f"{group}/{name}": tensor for group, entries in groups.items() for name, tensor in entries.items()}
    # A tensor like the others, so that the digest covers it: a flipped bit in the epoch would end at other weights without a word.
    progress = json.dumps({"epoch": state.epoch, "history": state.history}).encode()
    write_tensors(path, {**tensors, PROGRESS: torch.frombuffer(bytearray(progress), dtype=torch.uint8)}, {"run": run, **told(images)})


def load_state(path: Path, run: str, images: Mapping[str, str] = NO_IMAGES) -> State:
    """Raises LabError when the file is damaged, or belongs to another run, and OfOtherImages."""
    tensors, meta = read_tensors(path)
    if meta.get("run") != run:
        raise LabError(f"{path} belongs to run {meta.get('run')}, not to {run}; delete it and train again")
    if (others := other_images(meta, images)) is not None:
        raise OfOtherImages(f"{path}: {others}")
    try:
        state = State(**_progress(tensors.pop(PROGRESS)))
        for name, tensor in tensors.items():
            group, _, key = name.partition("/")
            if group not in GROUPS or not key:
                raise ValueError(f"{name} belongs to nothing")
            getattr(state, group)[key] = tensor
    except (KeyError, ValueError) as error:
        raise LabError(f"{path} is no training state that this version reads ({error}); delete it and train again") from error
    return state


def _progress(tensor: Tensor) -> dict[str, Any]:
    """Epoch and history. Raises ValueError where they are none."""
    content = from_json(bytes(tensor.reshape(-1).to(torch.uint8).tolist()).decode())
    problem = misfit(content, Progress)
    if problem is None and len(content["history"]) != content["epoch"]:
        problem = f"it tells of {len(content['history'])} epochs after epoch {content['epoch']}"
    if problem is None and (more := sorted(content.keys() - Progress.__annotations__.keys())):
        problem = f"it tells of {', '.join(more)}"
    if problem is not None:
        raise ValueError(problem)
    return dict(content)
