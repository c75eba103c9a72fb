"""YAML as OmegaConf reads it, by libyaml's parser where there is one: ten times quicker; not more of it than anybody writes."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

COMMAND = re.compile(r"\s*(@package|python -m |make |figure: )")
SENTENCE = re.compile(r"(?<!\bal)(?<!\bcf)[.](?=\s+[A-Z(]|\s*$)")  # its end; `et al. 2018` goes on
MOST, DEEPEST = 100_000, 50  # entries of a file, one within another; what an alias stands for counts as often as it stands there


def read_yaml(path: Path) -> Any:
    """The content of a file, interpolations as they stand, as `OmegaConf.to_container(OmegaConf.load(path))`.

    Raises what that raises: whatever is not a plain mapping is read by it. And YAMLError for more than MOST entries, or DEEPEST levels.
    """
    text = read_text(path)
    try:
        plain = not any(mark in text for mark in ("${", "\t"))  # OmegaConf checks the one; libyaml takes the other where PyYAML stops
        content = yaml.load(text, Loader=_loader()) if plain else None
    except TooMuch:
        raise
    except (yaml.YAMLError, ValueError):
        content = None
    if isinstance(content, dict):
        return content
    for loader in (_loader(), type("Loader", (_Bounded, get_yaml_loader()), {})):
        try:
            yaml.compose(text, Loader=loader)
            break
        except TooMuch:
            raise
        except yaml.YAMLError:  # OmegaConf says so, with its place; libyaml and PyYAML do not refuse quite the same
            continue
    return OmegaConf.to_container(OmegaConf.load(path))


class TooMuch(yaml.YAMLError):
    """More than anybody writes, such as aliases of aliases."""


def read_text(path: Path) -> str:
    """Raises YAMLError where it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise yaml.YAMLError(f"it is not UTF-8: {error}") from error


def summary(path: Path) -> str:
    """The first sentence of a choice's header: of the comment that it opens with, behind the command. Nothing where it has none."""
    told: list[str] = []
    command = False
    for line in read_text(path).splitlines():
        if not line.startswith("#"):
            break
        text = line[1:]
        command = COMMAND.match(text) is not None or (command and text.startswith("  "))  # a long one goes on, indented
        if told and not text.strip():
            break
        if not command and text.strip():
            told.append(text.strip())
    end = SENTENCE.search(whole := " ".join(told))
    return whole[: end.end()] if end else whole


def nodes_of(text: str) -> yaml.Node | None:
    """The nodes of a document, with their lines. Raises YAMLError."""
    return yaml.compose(text, Loader=_loader())


class _Bounded:
    """A loader that counts a document's entries before it makes them."""

    def get_single_node(self) -> yaml.Node | None:
        try:
            node: yaml.Node | None = super().get_single_node()  # type: ignore[misc]
        except RecursionError:
            raise TooMuch(f"more than {DEEPEST} entries within one another") from None
        if node is not None:
            _measured(node, {}, DEEPEST)
        return node


def _measured(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]], levels: int) -> tuple[int, int]:
    """How many entries a node has, and it, and how many are within one another; each is looked at once. Raises TooMuch."""
    if node not in known:
        if levels == 0:
            raise TooMuch(f"more than {DEEPEST} entries within one another")
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        sizes = [_measured(part, known, levels - 1) for part in parts] if isinstance(node, yaml.CollectionNode) else []
        known[node] = 1 + sum(size for size, _ in sizes), 1 + max((height for _, height in sizes), default=0)
    size, height = known[node]
    if size > MOST or height > levels:
        raise TooMuch(f"more than {MOST} entries, or {DEEPEST} within one another; what an alias stands for counts wherever it stands")
    return size, height


@functools.cache
def _loader() -> Any:
    """OmegaConf's loader (which refuses a key twice, and reads 1e-3 as a number) on top of libyaml's parser."""
    theirs = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return type("Loader", (_Bounded, theirs), {})
    parser = yaml.CSafeLoader.__mro__[1]

    def start(loader: Any, stream: str) -> None:
        parser.__init__(loader, stream)  # type: ignore[misc]
        yaml.constructor.SafeConstructor.__init__(loader)
        yaml.resolver.Resolver.__init__(loader)

    return type("Loader", (_Bounded, parser, theirs), {"__init__": start})
