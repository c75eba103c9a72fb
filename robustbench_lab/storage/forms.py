"""What the content of a file must be like before anybody reads it: a form is a type, and one function checks any content by it.

A form is a TypedDict (keys that may be absent are NotRequired; others than it names are nobody's business), `list[...]`, `dict[str, ...]`,
`tuple[...]` (a list of just so many), one of these or None, or any type that a knob may have (knobs.py).
"""

from __future__ import annotations

import functools
import reprlib
import types
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from robustbench_lab.knobs import Check, check_of


def misfit(content: object, form: Any, where: str = "") -> str | None:
    """The first place where a content is not as its form says, such as `warnings[0].code: expected a text, got 3`; None for none."""
    origin, parts = get_origin(form), get_args(form)
    if is_typeddict(form):
        return _misfit_of_keys(content, form, where)
    if origin is dict:
        entries = content.items() if isinstance(content, dict) else None
        return _first(entries, parts[1], where, ".", "a mapping from names", content)
    if origin is list:
        return _first(enumerate(content) if isinstance(content, list) else None, parts[0], where, "", "a list", content)
    if origin is tuple:
        if not isinstance(content, list) or len(content) != len(parts):
            return _told(where, f"a list of {len(parts)}", content)
        return next((found for i, part in enumerate(parts) if (found := misfit(content[i], part, f"{where}[{i}]")) is not None), None)
    if origin in (Union, types.UnionType) and any(map(_is_whole, parts)):
        if content is None and types.NoneType in parts:
            return None
        wrong = [misfit(content, part, where) for part in parts if part is not types.NoneType]
        return None if None in wrong else wrong[0]
    asked = _leaf(form)
    return None if asked.holds(content) else _told(where, asked.words, content)


@functools.cache
def _leaf(form: Any) -> Check:
    return check_of(form)


@functools.cache
def _keys(form: Any) -> dict[str, tuple[bool, Any]]:
    """Of each key: whether it must be there, and its form."""
    hints = get_type_hints(form, include_extras=True)
    optional = {key: get_origin(hint) is NotRequired for key, hint in hints.items()}
    return {key: (not optional[key], get_args(hint)[0] if optional[key] else hint) for key, hint in hints.items()}


def _misfit_of_keys(content: object, form: Any, where: str) -> str | None:
    if not isinstance(content, dict):
        return _told(where, "a mapping from names", content)
    for key, (needed, part) in _keys(form).items():
        path = f"{where}.{key}" if where else key
        if key in content:
            if (found := misfit(content[key], part, path)) is not None:
                return found
        elif needed:
            return f"{path} is missing"
    return None


def _first(entries: Any, form: Any, where: str, dot: str, words: str, content: object) -> str | None:
    if entries is None:
        return _told(where, words, content)
    names = ((f"{where}{dot}{name}" if dot else f"{where}[{name}]", entry) for name, entry in entries)
    return next((found for name, entry in names if (found := misfit(entry, form, name)) is not None), None)


def _is_whole(form: Any) -> bool:
    """Whether it has parts of its own, so that what is wrong can be told by its place."""
    return is_typeddict(form) or get_origin(form) in (dict, list, tuple)


def _told(where: str, words: str, content: object) -> str:
    return f"{f'{where}: ' if where else ''}expected {words}, got {reprlib.repr(content)}"
