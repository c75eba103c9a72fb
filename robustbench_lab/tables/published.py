"""The figures that papers print: alone or with a deviation, measured by the paper itself or taken from another one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

WITH_DEVIATION = re.compile(r"(-?\d+(?:\.\d+)?) ± (\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class PublishedFigure:
    """In the unit of its column. value: the mean, where `std`, the deviation that the paper prints behind it, is not None.
    quoted_from: where the paper took it from; None: it is the paper's own."""

    value: float
    std: float | None
    quoted_from: str | None


def published_figure(entry: float | str, quoted_from: str | None) -> PublishedFigure | None:
    """An entry of `published.values`, a number or "80.03 ± 0.15"; None for a text that is neither."""
    if not isinstance(entry, str):
        return PublishedFigure(float(entry), None, quoted_from)
    found = WITH_DEVIATION.fullmatch(entry)
    return PublishedFigure(float(found[1]), float(found[2]), quoted_from) if found else None


def source_of(cell: str, quoted: Sequence[Mapping[str, str]]) -> str | None:
    """Where the figure of a cell, `row / column`, is quoted from: the first of the globs that fits counts."""
    return next((entry["source"] for entry in quoted if fits(cell, entry["cells"])), None)


def fits(cell: str, glob: str) -> bool:
    """Whether a glob of * and ? has the cell; brackets stand for themselves, because labels have them."""
    return fnmatchcase(cell, glob.replace("[", "[[]"))
