"""Plain mappings treated as OmegaConf treats its own, as far as they are simple; what is not is left to OmegaConf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

REFERENCE = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")
MISSING = "???"


class Unresolved(Exception):
    """What only OmegaConf, or Hydra, can say."""


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `more` says, mapping by mapping, as OmegaConf merges."""
    result = dict(base)
    for key, value in more.items():
        old = result.get(key)
        if isinstance(value, Mapping) and isinstance(old, str):
            raise Unresolved  # an interpolation, perhaps to a mapping
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            result[key] = merged(old, value)
        elif not (value == MISSING and key in result):
            result[key] = value
    return result


def with_value(config: dict[str, Any], key: str, value: object) -> None:
    """Set a key that is there. Only mappings on the way to it are changed, each a copy. Raises Unresolved where it is not there, or is a
    mapping, which takes no list."""
    *way, last = key.split(".")
    for part in way:
        if not isinstance(config.get(part), dict):
            raise Unresolved
        config[part] = config = dict(config[part])
    if last not in config or isinstance(value, dict) or (isinstance(value, list) and isinstance(config[last], dict | str)):
        raise Unresolved
    config[last] = value


def resolved(value: Any, config: Mapping[str, Any], depth: int = 0) -> Any:
    """A copy with each `${a.b}` replaced by what stands there. Raises Unresolved for a missing value and other interpolations."""
    if isinstance(value, dict):
        return {key: resolved(entry, config, depth) for key, entry in value.items()}
    if isinstance(value, list):
        return [resolved(entry, config, depth) for entry in value]
    if not isinstance(value, str):
        return value
    if value == MISSING:
        raise Unresolved
    if "${" not in value:
        return value
    match = REFERENCE.fullmatch(value)
    if match is None or depth > 9:
        raise Unresolved
    node: Any = config
    for part in match[1].split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise Unresolved
        node = node[part]
    return resolved(node, config, depth + 1)
