"""YAML as OmegaConf reads it, by libyaml's parser where there is one: ten times quicker."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader


def read_yaml(path: Path) -> Any:
    """The content of a file, interpolations as they stand, as `OmegaConf.to_container(OmegaConf.load(path))`.

    Raises what that raises: whatever is not a plain mapping is read by it.
    """
    try:
        text = path.read_text(encoding="utf-8")
        plain = not any(mark in text for mark in ("${", "\t"))  # OmegaConf checks the one; libyaml takes the other where PyYAML stops
        content = yaml.load(text, Loader=_loader()) if plain else None
    except (yaml.YAMLError, ValueError):
        content = None
    return content if isinstance(content, dict) else OmegaConf.to_container(OmegaConf.load(path))


@functools.cache
def _loader() -> Any:
    """OmegaConf's loader (which refuses a key twice, and reads 1e-3 as a number) on top of libyaml's parser."""
    theirs = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return theirs
    parser = yaml.CSafeLoader.__mro__[1]

    def start(loader: Any, stream: str) -> None:
        parser.__init__(loader, stream)  # type: ignore[misc]
        yaml.constructor.SafeConstructor.__init__(loader)
        yaml.resolver.Resolver.__init__(loader)

    return type("Loader", (parser, theirs), {"__init__": start})
