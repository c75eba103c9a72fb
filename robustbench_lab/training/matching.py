"""Which tensor of a file of weights belongs where in a model.

By name, where the names are those of the model, its network or its backbone, after what wrappers put before them. Else by kind and shape,
in their order: the public implementations of a network call its layers differently, and list them alike. Whether that was right, no name
can tell: the accuracy does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.training.weights import WeightsFile

MEANS, DEVIATIONS = ("mean", "mu", "_mean"), ("std", "sigma", "_std")  # how buffers of a normalisation are called, at the end of a name
COUNTER = "num_batches_tracked"  # of BatchNorm: old files have none, and nothing that we compute depends on it
LISTED = 4  # names told of each kind of misfit

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Matched:
    """part: of the model, which `state`, its whole state_dict, is for. by: `name`, or `order`, with `pairs` of names, the file's and ours.

    without: what was taken off the names. normalisation: mean and std, per channel in units of the pixel range, that the file brings along
    and no part of the model has a place for. whole: the file says everything of the model, its first layer too.
    """

    part: nn.Module
    state: Tensors
    by: str
    pairs: list[tuple[str, str]]
    without: str
    normalisation: tuple[list[float], list[float]] | None
    whole: bool

    @property
    def told(self) -> str:
        """How it was done, in a line."""
        if self.by == "name":
            return "every tensor by its name" + (f", without {self.without}" if self.without else "")
        first = ", ".join(f"{theirs} -> {ours}" for theirs, ours in self.pairs[:3])
        return f"names differ: {len(self.pairs)} tensors matched by kind and shape, in their order ({first}, ...)"


def matched(model: Defended, file: WeightsFile, rename: Mapping[str, str] | None = None) -> Matched:
    """Where each tensor of the file belongs, of the whole model or of the largest part of it that the file is of.

    rename: from patterns of the file's names to ours, in which each * stands for the same text as in the pattern. Raises LabError, with
    what is missing, not expected or of another shape, where the file is of another network, and where a pattern fits no name.
    """
    network = model.network
    parts = [model, network, *([network.backbone] if isinstance(network, Classifier) else [])]
    inner = getattr(parts[-1], "module", None)  # the module of a callable, as its own maker would name its tensors
    parts += [inner] if isinstance(inner, nn.Module) else []
    unused = set(rename or ())
    for tensors, without, normalisation in _unwrapped(file.tensors):
        renamed = _renamed(tensors, rename or {}, unused)
        for part in parts:
            if (state := _by_name(part, renamed)) is not None:
                _check_used(unused, file, tensors)
                return Matched(part, state, "name", [], without, normalisation, part is model)
    _check_used(unused, file, tensors)
    part = parts[2] if len(parts) > 2 else network
    pairs, left, theirs_left = _in_order(part, renamed)
    if left or theirs_left:
        raise LabError(_misfit(file, part, left, theirs_left))
    own = part.state_dict()
    state = own | {ours: _as(renamed[theirs], own[ours]) for theirs, ours in pairs}
    return Matched(part, state, "order", pairs, without, normalisation, False)


def _unwrapped(tensors: Tensors) -> Iterator[tuple[Tensors, str, tuple[list[float], list[float]] | None]]:
    """The tensors as they are; then without the buffers of a normalisation; then with names that all begin alike cut by one part more each
    time (`module.`, `_orig_mod.`, `model.`, `1.`)."""
    yield tensors, "", None
    rest, normalisation = _without_normalisation(tensors)
    without = ""
    while True:
        yield rest, without, normalisation
        first = {name.partition(".")[0] for name in rest}
        if len(first) != 1 or not all("." in name for name in rest):
            return
        without += first.pop() + "."
        rest = {name.partition(".")[2]: tensor for name, tensor in rest.items()}


def _without_normalisation(tensors: Tensors) -> tuple[Tensors, tuple[list[float], list[float]] | None]:
    found = {}
    for kind, ends in (("mean", MEANS), ("std", DEVIATIONS)):
        for name, tensor in tensors.items():
            if name.rpartition(".")[2] in ends and tensor.numel() in (1, 3) and tensor.is_floating_point():
                found[kind] = name
    if len(found) < 2:
        return tensors, None
    mean, std = (tensors[found[kind]].double().flatten() for kind in ("mean", "std"))
    scale = 255 if max(mean.abs().max(), std.max()) > 1.5 else 1  # of bytes
    rest = {name: tensor for name, tensor in tensors.items() if name not in found.values()}
    return rest, ([round(value / scale, 8) for value in mean.tolist()], [round(value / scale, 8) for value in std.tolist()])


def _renamed(tensors: Tensors, rename: Mapping[str, str], unused: set[str]) -> Tensors:
    """Raises LabError where two names become one."""
    result: Tensors = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, to in rename.items():
            fits = re.fullmatch("(.*)".join(map(re.escape, pattern.split("*"))), new)
            if fits:
                unused.discard(pattern)
                stars = iter(fits.groups())
                new = "".join(next(stars, "") if part == "*" else part for part in re.split(r"(\*)", to))
        if new in result:
            raise LabError(f"training.rename: expected names that stay different, got {new} twice")
        result[new] = tensor
    return result


def _check_used(unused: set[str], file: WeightsFile, tensors: Tensors) -> None:
    if unused:
        pattern = min(unused)
        near = get_close_matches(pattern, tensors, 3, 0.3)
        raise LabError(f"training.rename: expected patterns of names in {file.path}, but {pattern!r} fits none; near it: {', '.join(near)}")


def _by_name(part: nn.Module, tensors: Tensors) -> Tensors | None:
    """The whole state_dict of a part whose names and shapes are those of the tensors."""
    own = part.state_dict()
    needed, given = ({name: tuple(tensor.shape) for name, tensor in one.items() if not name.endswith(COUNTER)} for one in (own, tensors))
    return own | {name: _as(tensor, own[name]) for name, tensor in tensors.items() if name in own} if needed == given else None


def _as(tensor: Tensor, own: Tensor) -> Tensor:
    """In the model's own precision: half is stored to save space."""
    return tensor.detach().to(own.dtype if own.is_floating_point() else tensor.dtype)


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Tensors]:
    """The tensors of each layer, by the layer's name."""
    found: dict[str, Tensors] = {}
    for name, tensor in tensors.items():
        layer, _, own = name.rpartition(".")
        if own != COUNTER:
            found.setdefault(layer, {})[own] = tensor
    return found


def _in_order(part: nn.Module, tensors: Tensors) -> tuple[list[tuple[str, str]], Tensors, Tensors]:
    """Pairs of names, the file's and ours: layers of the same kind and shape, in their order. And what is left of ours, and of theirs."""
    ours, theirs = _layers(part.state_dict()), _layers(tensors)
    pairs: list[tuple[str, str]] = []
    left = dict(theirs)
    missing: dict[str, Tensors] = {}
    for name, layer in ours.items():
        same = name in left and _form(left[name]) == _form(layer)
        found = name if same else next((other for other in left if _form(left[other]) == _form(layer)), None)
        if found is None:
            missing[name] = layer
            continue
        del left[found]
        pairs += [(_joined(found, own), _joined(name, own)) for own in layer]
    return pairs, _flat(missing), _flat(left)


def _form(layer: Tensors) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((own, tuple(tensor.shape)) for own, tensor in layer.items())


def _joined(layer: str, own: str) -> str:
    return f"{layer}.{own}" if layer else own


def _flat(layers: dict[str, Tensors]) -> Tensors:
    return {_joined(name, own): tensor for name, layer in layers.items() for own, tensor in layer.items()}


def _misfit(file: WeightsFile, part: nn.Module, missing: Tensors, unexpected: Tensors) -> str:
    """Why a file is not of this network: what has another shape, is missing, or is not expected, with the nearest name."""

    def shape(tensor: Tensor) -> list[int]:
        return list(tensor.shape)

    def alike(name: str) -> Callable[[str], bool]:
        return lambda other: other.rpartition(".")[2] == name.rpartition(".")[2] and unexpected[other].ndim == missing[name].ndim

    reshaped = []
    told: list[str] = []
    for name in list(missing):
        if (other := name if name in unexpected else next(filter(alike(name), unexpected), None)) is not None:
            reshaped.append((name, shape(missing.pop(name)), other, shape(unexpected.pop(other))))
    if reshaped:
        listed = [
            f"{name} is {ours}, in the file {theirs}{f' ({other})' if other != name else ''}" for name, ours, other, theirs in reshaped
        ]
        told.append(f"of another shape: {_some(listed)}")
    if missing:
        told.append(f"missing in it: {_some([_near(name, unexpected) for name in missing])}")
    if unexpected:
        told.append(f"not expected: {_some([_near(name, missing) for name in unexpected])}")
    last = [name for name, tensor in part.state_dict().items() if tensor.ndim == 2][-1:]
    classes = [(ours[0], theirs[0]) for name, ours, _, theirs in reshaped if last == [name] and ours[1:] == theirs[1:]]
    if classes and len(reshaped) <= 2 and not missing and not unexpected:
        remedy = f"it has {classes[0][1]} classes, the dataset {classes[0][0]}: choose the dataset that it was trained on"
    else:
        remedy = "choose the backbone that it was trained with, or map names by training.rename={old: new}, where * stands for any text"
    return f"training.weights: {file.path} does not fit this network: {'; '.join(told)}; {remedy}"


def _near(name: str, others: Mapping[str, Tensor]) -> str:
    near = get_close_matches(name, others, 1, 0.5)
    return f"{name} (nearest: {near[0]})" if near else name


def _some(entries: list[str]) -> str:
    more = len(entries) - LISTED
    return ", ".join(entries[:LISTED]) + (f" and {more} more" if more > 0 else "")


def load(matched: Matched) -> None:
    """Put the tensors where they belong."""
    with torch.no_grad():
        matched.part.load_state_dict(matched.state)
