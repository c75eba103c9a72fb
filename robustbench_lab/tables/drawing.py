"""The kinds of figures that a table may be drawn as: a file of conf/figure/ each, which names the class that draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Knobs
from robustbench_lab.settings.build import build, named
from robustbench_lab.settings.conf import choice_file, choices
from robustbench_lab.settings.yaml_files import read_yaml


@dataclass(frozen=True)
class TableFigure(Knobs):
    """A kind of figure; its fields are the keys of a table's `figure:` node beside `kind`, and conf/figure/<kind>.yaml names the class.

    files: of an evaluation, that it is drawn from beside the record. thinned: whether a short profile may leave out columns between the
    first and the last.
    """

    files: ClassVar[Sequence[str]] = ()
    thinned: ClassVar[bool] = False

    def check(self, table: Any, path: Path) -> None:
        """Raises LabError, with file and line, for a table that it cannot draw."""

    def draw(self, table: Any, cells: Sequence[Any], output_root: Path) -> Any:
        """The figure, matplotlib's; None where nothing that it shows is measured. Raises LabError for a damaged file."""
        raise NotImplementedError


def figure_kinds() -> list[str]:
    return list(choices("figure"))


def kind_of(figure: Mapping[str, Any]) -> TableFigure:
    """What draws a table, by its `figure:` node. Raises LabError, the key first, for an unknown kind or keys that do not fit it."""
    kind = figure.get("kind")
    if kind not in figure_kinds():
        raise LabError(f"figure.kind: expected one of {', '.join(figure_kinds())}, got {kind!r}")
    file = choice_file("figure", kind)
    assert file is not None
    usual = read_yaml(file)
    target, given = usual.pop("_target_"), {key: value for key, value in figure.items() if key != "kind"}
    every = set(signature(named(target, "figure._target_")).parameters)
    if not every - usual.keys() <= given.keys() <= every:
        needed = f"for {kind} {', '.join(['kind', *sorted(every - usual.keys())])}"
        meant = needed + "".join(f", perhaps {key}" for key in sorted(every & usual.keys()))
        raise LabError(f"figure: expected {meant}, got {sorted(figure)!r}")
    return build({"_target_": target, **usual, **given}, "figure", TableFigure)
