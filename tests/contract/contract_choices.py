"""What is behind the choices of a group: which of their objects differ in more than numbers, and which clauses are tried with each."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
from built_kinds import KINDS

from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.contract import Clause
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import CONF


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@functools.cache
def described(group: str, name: str) -> dict[str, Any]:
    """The choice's own config, on the embedded digits."""
    return alone(group, name)


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


def tried(group: str, name: str, clauses: Iterable[Clause]) -> list[Any]:
    """Of a choice's clauses, as parameters of a test, those that one with an equal class or kind before it has not been tried with."""
    asked = {"choice": True, "kind": name in kinds(group), "class": name in classes(group)}
    return [pytest.param(clause, id=f"{name}-{clause}") for clause in clauses if asked[clause.depends_on]]
