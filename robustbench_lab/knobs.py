"""The only checks of knobs: one message, key, what was expected and what came."""

from __future__ import annotations

import math

from robustbench_lab.errors import LabError


def require(condition: bool, key: str, expected: str, got: object) -> None:
    """Stop with the key, what was expected and what came."""
    if not condition:
        raise LabError(f"{key}: expected {expected}, got {got!r}")


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def require_flag(value: object, key: str) -> None:
    require(isinstance(value, bool), key, "true or false", value)


def require_positive(value: object, key: str, more: str = "") -> None:
    require(is_number(value) and 0 < value < math.inf, key, f"a finite number > 0{more}", value)  # type: ignore[operator]


def require_not_negative(value: object, key: str, more: str = "") -> None:
    require(is_number(value) and 0 <= value < math.inf, key, f"a finite number >= 0{more}", value)  # type: ignore[operator]


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def require_count(value: object, key: str) -> None:
    require(is_count(value), key, "a whole number >= 1", value)


def require_epoch(value: object, key: str) -> None:
    require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, key, "a whole number of epochs >= 0", value)


def require_bit_depth(value: object, key: str) -> None:
    require(isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 8, key, "a whole number of bits from 1 to 8", value)


def check_whole(key: str, value: object, least: int = 1) -> None:
    """Raise LabError unless the knob is a whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise LabError(f"{key}: expected a whole number of at least {least}, got {value!r}")
