"""From a config to the objects that it describes: the only place where a `_target_` becomes an object.

An object may be named only by a class or function that is defined in one of `PACKAGES`, or in a package of the user's
(settings/packages.py), and only where the place takes its kind: the type of the knob that it is for. So a config cannot call what is not
meant to be built, wherever in it a `_target_` stands.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from types import FunctionType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from robustbench_lab.errors import LabError, said
from robustbench_lab.knobs import BY_NAME, PLAIN, Knobs, check, check_of, is_finite, require
from robustbench_lab.settings.packages import NAME, packages
from robustbench_lab.settings.packages import PACKAGES as VARIABLE

PACKAGES = ("robustbench_lab", "torch.optim")
WORDS = ("_target_", "_partial_", "_stochastic_")  # of a mapping that describes an object; the last is for the names of evaluations
LARGEST = 3e38  # about what float32 holds


def build(node: object, key: str, kind: Any) -> Any:
    """The object, of this kind (a type, as those of knobs), that a config describes; errors carry the full config key.

    A mapping with `_target_` becomes that callable's result (`_partial_: true`: the callable with its arguments bound). Raises LabError for
    an object that may not be named, or not there, an unknown or missing knob, or one that the object itself refuses.
    """
    value = _built(node, key, kind)
    check(key, value, kind)
    return value


def dataset_of(config: Mapping[str, Any], kind: Any) -> Any:
    """The dataset object of a resolved run: how its images are read. `budget` is for others to refer to, `normalise` the model's, and
    `space` the evaluation's."""
    own = {name: entry for name, entry in config["dataset"].items() if name not in ("budget", "normalise", "space")}
    return build(own, "dataset", kind)


def named(target: object, key: str, within: Sequence[str] | None = None) -> Callable[..., Any]:
    """The class or function that a text names. Raises LabError for one that is not defined in these packages, whatever imports it.

    within: `PACKAGES` and the user's where it is not said.
    """
    within = (*PACKAGES, *packages()) if within is None else within
    module, _, name = str(target).rpartition(".")
    expected = f"a class or function that {' or '.join(within)} defines"
    if isinstance(target, str) and module and NAME.fullmatch(module) and not _within(module, within):
        allowed = ",".join([*packages(), module.partition(".")[0]])
        raise LabError(f"{key}: expected {expected}, got {target!r}; {VARIABLE}={allowed} allows its package")
    require(isinstance(target, str) and _within(module, within), key, expected, target)
    try:
        found = getattr(import_module(module), name, None)
    except (ImportError, ValueError) as error:
        raise LabError(f"{key}: expected {expected}, got {target!r}: {error}") from error
    except Exception as error:  # somebody's module, as it is imported
        if _within(module, PACKAGES):
            raise
        raise LabError(f"{key}: {module} cannot be imported: {said(error)}") from error
    require(isinstance(found, type | FunctionType) and _within(found.__module__, within), key, expected, target)
    return found  # type: ignore[return-value]


def called(name: object, key: str) -> Callable[..., Any]:
    """The class or function that a text names, where a knob takes one by name: what others' networks are made by. Of torchvision, only
    its models: other functions of it fetch and write files. Raises LabError as `named` does."""
    return named(name, key, (*PACKAGES, *packages(), "torchvision.models"))


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _built(node: object, key: str, kind: Any) -> Any:
    if isinstance(node, list):
        return [_built(entry, f"{key}[{index}]", _entries(kind, Sequence)) for index, entry in enumerate(node)]
    if isinstance(node, str) and BY_NAME in getattr(kind, "__metadata__", ()):
        return called(node, key)
    if not isinstance(node, Mapping):
        return node
    if "_target_" in node:
        return _object(node, key, kind)
    if _taken(kind).classes and _entries(kind, Mapping) is Any:
        raise LabError(f"{key}._target_: expected the class of {check_of(kind).words}, got none")
    return {name: _built(entry, f"{key}.{name}", _entries(kind, Mapping)) for name, entry in node.items()}


def _object(node: Mapping[str, Any], key: str, kind: Any) -> Any:
    target, bound = node["_target_"], node.get("_partial_", False)
    if not any(_taken(kind)):
        raise LabError(f"{key}: expected {check_of(kind).words}, got an object ({target})")
    require(isinstance(bound, bool), f"{key}._partial_", "true or false", bound)
    callee = named(target, f"{key}._target_")
    if not _makes(callee, kind, bound):
        makers = [] if bound else [made for _, made in _taken(kind).functions if isinstance(made, type) and _results(callee, made)]
        expected = f"what makes {check_of(makers[0]).words}, with _partial_: true" if makers else check_of(kind).words
        raise LabError(f"{key}: expected {expected}, got {'what makes ' if bound else ''}{target}")
    kinds = _kinds(callee)
    knobs = {name: _built(entry, f"{key}.{name}", kinds.get(name, Any)) for name, entry in node.items() if name not in WORDS}
    signature = inspect.signature(callee)
    try:
        (signature.bind_partial if bound else signature.bind)(**knobs)
    except TypeError as error:
        raise LabError(f"{key}: {target} does not take these knobs: {error}") from error
    if not (isinstance(callee, type) and issubclass(callee, Knobs)):  # which checks its own
        for name, value in knobs.items():
            _check_plain(f"{key}.{name}", value, kinds.get(name, Any))
    if bound:
        return partial(callee, **knobs)
    try:
        return callee(**knobs)
    except LabError as error:
        whole = (f"{key.partition('.')[0]}.", "dataset.")  # a backbone's images are the dataset's: no key of its own
        told = str(error) if str(error).startswith(whole) else f"{key}.{error}"
        raise LabError(told) from error


class Taken(NamedTuple):
    """What objects a type takes: those of `classes`, and functions of so many arguments (None: any) with a result of such a type."""

    classes: tuple[type, ...] = ()
    functions: tuple[tuple[int | None, Any], ...] = ()


def _taken(kind: Any) -> Taken:
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _taken(parts[0])
    if origin in (Union, UnionType):
        several = [_taken(part) for part in parts]
        return Taken(sum((one.classes for one in several), ()), sum((one.functions for one in several), ()))
    if origin is Callable or origin is get_origin(Callable[..., Any]):
        arguments, result = parts
        return Taken(functions=((None if arguments is ... else len(arguments), result),))
    return Taken((kind,)) if isinstance(kind, type) and origin is None and kind not in PLAIN else Taken()


def _entries(kind: Any, of: type) -> Any:
    """The type of what is in a list or mapping of this type; Any, which takes no object, where the type is of neither."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _entries(parts[0], of)
    if origin in (Union, UnionType):
        return next((found for part in parts if (found := _entries(part, of)) is not Any), Any)
    return parts[-1] if isinstance(origin, type) and parts and issubclass(origin, of) else Any


def _makes(callee: Callable[..., Any], kind: Any, bound: bool) -> bool:
    """Whether calling it, or with `bound` itself, gives what the type takes."""
    taken = _taken(kind)
    if bound:
        return any(isinstance(result, type) and _results(callee, result) for _, result in taken.functions)
    if any(_results(callee, cls) for cls in taken.classes):
        return True
    own = getattr(callee, "__call__", None) if isinstance(callee, type) else None  # noqa: B004
    if not isinstance(own, FunctionType):
        return False
    arguments = len(inspect.signature(own).parameters) - 1
    return any(count in (None, arguments) and get_type_hints(own).get("return") is result for count, result in taken.functions)


def _results(callee: Callable[..., Any], cls: type) -> bool:
    made = callee if isinstance(callee, type) else get_type_hints(callee).get("return")
    return isinstance(made, type) and issubclass(made, cls)


@functools.cache
def _kinds(callee: Callable[..., Any]) -> Mapping[str, Any]:
    """The types of what it is called with, by name."""
    of = callee if not isinstance(callee, type) or dataclasses.is_dataclass(callee) else callee.__init__  # type: ignore[misc]
    return get_type_hints(of, include_extras=True)


def _check_plain(key: str, value: Any, kind: Any) -> None:
    """A knob of a class that does not check its own: backbones check more than this, torch's optimisers take what they cannot use."""
    if get_origin(kind) is tuple:
        count = len(get_args(kind))
        require(isinstance(value, list) and len(value) == count, key, f"a list of {count} numbers", value)
    if isinstance(value, list):
        for index, entry in enumerate(value):
            _check_plain(f"{key}[{index}]", entry, Any)
    elif isinstance(value, int | float) and kind is not bool:
        require(is_finite(value) and abs(value) <= LARGEST, key, "a number", value)
    elif value is None:
        require(kind is Any or type(None) in get_args(kind), key, "a value", value)
    elif kind in PLAIN:
        check(key, value, kind)
