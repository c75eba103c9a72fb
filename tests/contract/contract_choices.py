"""What is behind the choices of a config group: which of their objects differ in more than numbers."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from built_kinds import KINDS
from hydra import compose, initialize_config_dir

from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import CONF, HYDRA_VERSION_BASE, plain


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def described(group: str, name: str) -> dict[str, Any]:
    """The choice's own config, on the embedded digits; composed alone, in a fifth of the time that a verb's whole config takes."""
    with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION_BASE):
        return plain(compose(None, ["+dataset=digits", f"+{group}={name}"]), group)[group]


def made(group: str, name: str) -> Any:
    return build(described(group, name), group, KINDS[group])


def kind(value: object) -> object:
    """What of an object a contract may depend on: its class and its knobs; of numbers whether they are 0, 1 or another one.

    A list of attacks is a list of attacks, whatever the attacks are: each keeps the contract by itself.
    """
    if isinstance(value, WorstOf):
        return type(value)
    if is_dataclass(value):
        return type(value), tuple(kind(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, bool) or not isinstance(value, int | float | Mapping | Sequence) or isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return tuple((key, kind(entry)) for key, entry in value.items())
    return tuple(kind(entry) for entry in value) if isinstance(value, Sequence) else value if value in (0, 1) else "a number"


def firsts(of: Mapping[str, object]) -> list[str]:
    """Of the names with equal values, the first."""
    first: dict[object, str] = {}
    for name, value in of.items():
        first.setdefault(value, name)
    return list(first.values())


@functools.cache
def classes(group: str) -> list[str]:
    """One choice of each class."""
    return firsts({name: type(made(group, name)) for name in names(group)})


@functools.cache
def kinds(group: str) -> list[str]:
    """One choice of each kind; those of `classes` are among them."""
    return firsts({name: kind(made(group, name)) for name in names(group)})


def others(group: str) -> list[str]:
    """One choice of each kind, without one for each class."""
    return [name for name in kinds(group) if name not in classes(group)]
