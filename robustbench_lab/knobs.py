"""What a knob may be: types that say it, checked in one place, with one message.

To a type checker `steps: Count` is an int; a `Knobs` class that is built with another value stops with `steps: expected a whole number
>= 1, got 0`. Besides the names below, a knob's type may be bool, int (a boolean is none), float (finite; an int is one), str, a class,
`Literal[...]`, `Sequence[...]`, `Mapping[str, ...]`, `Callable[...]`, or several of these joined by `|`. `Annotated` narrows it with
bounds, and a text in it ends the message: `Annotated[Positive | None, "such as 2/255"]`.
"""

from __future__ import annotations

import functools
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from robustbench_lab.errors import LabError


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Stop with the key, what was expected and what came."""
    if not condition:
        raise LabError(f"{key}: expected {expected}, got {got!r}")


@dataclass(frozen=True)
class Check:
    """What a value must be, in words that follow "expected", and whether it is."""

    words: str
    holds: Callable[[Any], bool]


class Bound(Check):
    """What a value must be besides what its type says, such as ">= 1"."""


def above(bound: float) -> Bound:
    return Bound(f"> {bound}", lambda value: value > bound)


def at_least(bound: float) -> Bound:
    return Bound(f">= {bound}", lambda value: value >= bound)


def below(bound: float) -> Bound:
    return Bound(f"< {bound}", lambda value: value < bound)


def at_most(bound: float) -> Bound:
    return Bound(f"<= {bound}", lambda value: value <= bound)


BY_NAME = "the name of a function or class, such as torchvision.models.resnet18"  # Annotated with it, a callable is what a text names
NOT_EMPTY = Bound("of one or more", lambda value: len(value) > 0)


def one_of(options: Iterable[object]) -> Check:
    """One of these; True is not 1."""
    known = tuple(options)
    words = " or ".join(map(str, known)) if len(known) < 3 else f"one of {', '.join(map(str, known))}"
    return Check(words, lambda value: any(type(value) is type(option) and value == option for option in known))


def is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a number, maybe inf; a boolean and nan are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -math.inf <= value <= math.inf


def is_finite(value: object) -> bool:
    return is_number(value) and -math.inf < value < math.inf  # type: ignore[operator]


Count = Annotated[int, at_least(1)]
Epoch = Annotated[int, at_least(0)]
Bits = Annotated[int, at_least(1), at_most(8)]
Seed = Annotated[int, at_least(0), below(2**32)]  # what numpy takes
Positive = Annotated[float, above(0)]
NotNegative = Annotated[float, at_least(0)]
Share = Annotated[float, at_least(0), at_most(1)]
PositiveShare = Annotated[float, above(0), at_most(1)]
ShareBelowOne = Annotated[float, at_least(0), below(1)]

PLAIN: dict[Any, Check] = {
    bool: Check("true or false", lambda value: isinstance(value, bool)),
    int: Check("a whole number", is_whole),
    float: Check("a finite number", is_finite),
    str: Check("a text", lambda value: isinstance(value, str)),
    types.NoneType: Check("null", lambda value: value is None),
    Any: Check("anything", lambda value: True),
}


def check_of(kind: Any) -> Check:
    """What a type asks of a value. Raises TypeError for a type that says nothing which could be checked."""
    origin, parts = get_origin(kind), get_args(kind)
    if kind in PLAIN:
        return PLAIN[kind]
    if origin is Annotated:
        return _narrowed(*parts)
    if origin is Literal:
        return one_of(parts)
    if origin in (Union, types.UnionType):
        several = [check_of(part) for part in parts]
        return Check(", or ".join(one.words for one in several), lambda value: any(one.holds(value) for one in several))
    if origin in (Sequence, list, tuple) and parts[1:] in ((), (...,)):
        entry = check_of(parts[0])
        return Check(
            f"a list (each {entry.words})",
            lambda value: isinstance(value, origin) and not isinstance(value, str) and all(map(entry.holds, value)),
        )
    if origin in (Mapping, dict):
        named = check_of(parts[1])
        return Check(
            f"a mapping from names (each {named.words})",
            lambda value: isinstance(value, origin) and all(map(named.holds, value.values())),
        )
    if origin is Callable:
        return Check("a function", callable)
    if isinstance(kind, type):
        name = kind.__name__
        return Check(f"{'an' if name[0] in 'AEIOU' else 'a'} {name}", lambda value: isinstance(value, kind))
    raise TypeError(f"{kind} says nothing that could be checked; robustbench_lab/knobs.py lists what does")


def _narrowed(kind: Any, *said: object) -> Check:
    whole = [one for one in said if isinstance(one, Check) and not isinstance(one, Bound)]
    bounds = [one for one in said if isinstance(one, Bound)]
    base = whole[0] if whole else check_of(kind)
    words = f"{base.words} {' and '.join(bound.words for bound in bounds)}".strip()
    return Check(
        ", ".join([words, *(one for one in said if isinstance(one, str))]),
        lambda value: base.holds(value) and all(bound.holds(value) for bound in bounds),
    )


def check(key: str, value: object, kind: Any) -> None:
    """Stop unless the value is what the type says: `check("backbone.depth", depth, Count)`."""
    asked = check_of(kind)
    require(asked.holds(value), key, asked.words, value)


class Knobs:
    """A dataclass whose fields are checked when it is built, each by its type.

    What must hold between several of them a class checks in a `__post_init__` of its own, after `super().__post_init__()`.
    """

    def __post_init__(self) -> None:
        for key, asked in _checks(type(self)).items():  # type: ignore[arg-type]  # mypy takes a class's hash for its objects'
            value = getattr(self, key)
            require(asked.holds(value), key, asked.words, value)


@functools.cache
def _checks(knobs: type[Any]) -> dict[str, Check]:
    kinds = get_type_hints(knobs, include_extras=True)
    return {field.name: check_of(kinds[field.name]) for field in fields(knobs) if field.init}
