"""What Hydra makes of one choice of a group, without Hydra: read from its files once, as plain values, interpolations as they stand.

A choice that asks for more than a mapping and the choices that it is like or holds (`- pgd`, `- /attack@attack: pgd`,
`- /front@fronts: [bit_depth]`, and `- override /attack@attack: fgsm`) is left to Hydra.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from robustbench_lab.settings.conf import choice_file
from robustbench_lab.settings.packages import Source, sources
from robustbench_lab.settings.values import Unresolved, merged
from robustbench_lab.settings.yaml_files import read_text, read_yaml

Choice = str | tuple[str, ...]  # one, or several side by side

HELD = re.compile(r"(?P<override>override )?/(?P<group>\w+)@(?P<package>[^\W_]\w*(?:\.[^\W_]\w*)*)")  # _here_ and such have meanings


class Piece(NamedTuple):
    """content: of the choice. choices: of the groups within it, by where they are: `defense@defense.source`, as Hydra names them, which
    names no several."""

    content: dict[str, Any]
    choices: dict[str, str]


def piece(group: str, choice: str, *instead: tuple[str, Choice]) -> Piece:
    """A choice, with others than its own within it: `("attack@attack", "fgsm")`. It is only read: everyone is given the same one.

    Raises Unresolved where Hydra must say.
    """
    return _piece(sources(), group, choice, instead)


@functools.cache
def _piece(others: tuple[Source, ...], group: str, choice: str, instead: tuple[tuple[str, Choice], ...]) -> Piece:
    """By the folders that it is found in."""
    content, within = _composed(group, choice, dict(instead))
    choices = {f"{held}@{group}.{package}": name for package, (held, name) in within.items()}
    if not all(choices.get(key.replace("@", f"@{group}.", 1)) == name for key, name in instead):
        raise Unresolved
    return Piece(content, {key: name for key, name in choices.items() if isinstance(name, str)})


def _composed(group: str, choice: str, outer: Mapping[str, Choice]) -> tuple[dict[str, Any], dict[str, tuple[str, Choice]]]:
    """Content, and group and choice of what is held by package; `outer`: what is held instead, by `group@package`."""
    path = choice_file(group, choice)
    if path is None:
        raise Unresolved(f"there is no {group}={choice}")
    read = None if "@package" in read_text(path) else read_yaml(path)
    entries = read.get("defaults", []) if isinstance(read, dict) else None
    if not isinstance(read, dict) or not isinstance(entries, list) or not all(isinstance(entry, str | dict) for entry in entries):
        raise Unresolved("what it does to other keys is not taken")
    own = {key: value for key, value in read.items() if key != "defaults"}
    if "_self_" not in entries:
        entries = [*entries, "_self_"]
    held = [match for entry in entries if isinstance(entry, dict) for match in [_held(entry)]]
    instead = {f"{match['group']}@{match['package']}": choice for match, choice in held if match["override"]} | dict(outer)
    content: dict[str, Any] = {}
    within: dict[str, tuple[str, Choice]] = {}
    for entry in entries:
        if entry == "_self_":
            content = merged(content, own)
        elif isinstance(entry, str):
            more, their = _composed(group, entry, instead)
            content, within = merged(content, more), within | their
        else:
            match, name = _held(entry)
            if match["override"]:
                continue
            package, of = match["package"], match["group"]
            name = instead.get(f"{of}@{package}", name)
            inside = {key.replace(f"@{package}.", "@", 1): chosen for key, chosen in instead.items() if f"@{package}." in key}
            more, their = {}, {}
            for one in (name,) if isinstance(name, str) else name:
                its_own, held_by_it = _composed(of, one, inside)
                more, their = merged(more, its_own), their | held_by_it
            for part in reversed(package.split(".")):
                more = {part: more}
            content = merged(content, more)
            within |= {package: (of, name), **{f"{package}.{further}": chosen for further, chosen in their.items()}}
    return content, within


def _held(entry: Mapping[str, Any]) -> tuple[re.Match[str], Choice]:
    """Raises Unresolved for an entry of a list of defaults that is none of those above."""
    ((key, choice),) = entry.items() if len(entry) == 1 else [("", None)]
    match = HELD.fullmatch(str(key))
    if isinstance(choice, list) and all(isinstance(one, str) for one in choice):
        choice = tuple(choice)
    if match is None or not isinstance(choice, str | tuple):
        raise Unresolved(f"{dict(entry)} is neither")
    return match, choice
