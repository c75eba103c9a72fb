"""Charts as SVG text for a page, in the page's own colours and fonts: what is on their axes is worked out here, templates/charts.svg.j2
draws it. A chart is as wide as a phone; its figures stand in the page's tables too.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

WIDTH = 340  # CSS pixels
MARGIN = 10
LINES = 8  # curves in one chart; more cannot be told apart
LONGEST = 44  # characters of a label
SPAN = 30  # between the largest and the smallest number of an axis, from which on it goes by the logarithm
STEPS = (1, 2, 2.5, 5)  # between ticks, times a power of ten
DASHES = ("none", "8 3.2", "1.6 2.4", "9.6 3.2 2.4 3.2")
SHAPES = {  # around (0, 0)
    "circle": "M3 0A3 3 0 1 1 -3 0A3 3 0 1 1 3 0Z",
    "diamond": "M0 -4.2L4.2 0L0 4.2L-4.2 0Z",
    "square": "M-3 -3H3V3H-3Z",
    "triangle": "M-3.7 -3.7H3.7L0 3.7Z",
}


@dataclass(frozen=True)
class Point:
    """A figure with its 95 % interval, all in percent."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Reach:
    """One model in one ball: the paper's figure, ours under the paper's attack, and ours under the strongest attack that was tried."""

    label: str
    strongest_label: str
    claimed: float | None
    ours: Point | None
    strongest: Point

    @property
    def ends(self) -> list[float]:
        """What the strongest attack is held against."""
        return [value for value in (self.claimed, self.ours.value if self.ours else None) if value is not None]


@dataclass(frozen=True)
class Pair:
    """A cell's published figure, in percent, and ours."""

    published: float
    ours: Point
    agrees: bool


def reaches_chart(key: str, title: str, reaches: Sequence[Reach]) -> Markup:
    """Claimed against strongest: a track from 0 to 100 % for each model, its name above it.

    key: a name that no other chart of the page has.
    """
    told = "; ".join(
        f"{reach.label}: "
        + (f"paper {reach.claimed:.2f}, " if reach.claimed is not None else "")
        + (f"ours {reach.ours.value:.2f}, " if reach.ours else "")
        + f"strongest attack ({reach.strongest_label}) {reach.strongest.value:.2f}"
        for reach in reaches
    )
    x = scale(0, 100, MARGIN, WIDTH - MARGIN)
    return _drawn("reaches", key, title, f"Robust accuracy in percent. {told}.", reaches=reaches, x=x)


def pairs_chart(key: str, title: str, pairs: Sequence[Pair], band: float | None) -> Markup:
    """Ours against the published figure, a point for each cell; on the diagonal they are the same. band: None where cells have several."""
    figures = [value for pair in pairs for value in (pair.published, pair.ours.value)]
    low, high = max(0, 10 * math.floor(min(figures) / 10)), min(100, 10 * math.ceil(max(figures) / 10))
    low, high = (low, high) if high > low else (low - 5, high + 5)
    left, top, side = 34, 24, WIDTH - 34 - MARGIN
    within = sum(pair.agrees for pair in pairs)
    furthest = max(pairs, key=lambda pair: abs(pair.ours.value - pair.published))
    told = (
        f"{within} of {len(pairs)} cells lie within {'their band' if band is None else f'{band:g} points'} of the published figure. "
        f"The largest difference is {furthest.ours.value - furthest.published:+.2f}: ours {furthest.ours.value:.2f}, "
        f"published {furthest.published:.2f}."
    )
    x, y = scale(low, high, left, left + side), scale(low, high, top + side, top)
    return _drawn("pairs", key, title, told, pairs=pairs, band=band, x=x, y=y, low=low, high=high, ticks=ticks(low, high, 5))


def curves_chart(key: str, title: str, measure: str, curves: Sequence[tuple[str, Sequence[float], Sequence[float]]]) -> Markup:
    """Label, epochs and values of each run, at most LINES of them; `measure` names the values and their unit."""
    curves = curves[:LINES]
    values = [value for _, _, line in curves for value in line]
    marked = ticks(min(values), max(values), 5)
    low, high = min(*values, *marked), max(*values, *marked)
    if high == low:
        low, high = low - 1, high + 1
    last = max(2, *(epoch for _, epochs, _ in curves for epoch in epochs))
    whole = [tick for tick in ticks(1, last, 6) if tick == int(tick)]
    told = "; ".join(f"{label}: {line[0]:.4g} at first, {line[-1]:.4g} after epoch {epochs[-1]:g}" for label, epochs, line in curves)
    return _drawn(
        "curves", key, title, f"{measure}, epoch by epoch. {told}.", measure=measure, curves=curves, ticks=marked, low=low, high=high,
        x=scale(1, last, 40, WIDTH - MARGIN), y=scale(low, high, 24 + 190, 24), epochs=whole,
    )  # fmt: skip


@dataclass(frozen=True)
class Spot:
    """A figure of a sweep at x, with its interval or spread, in the unit of its axis."""

    x: float
    value: float
    low: float
    high: float


def spots_chart(key: str, title: str, measure: str, across: str, curves: Sequence[tuple[str, Sequence[Spot]]], joined: bool) -> Markup:
    """Figures over a number, `across`, for each label, with their intervals; joined: by lines. Numbers that span much go by their
    logarithm."""
    spots = [spot for _, points in curves for spot in points]
    marked = ticks(min(spot.low for spot in spots), max(spot.high for spot in spots), 5)
    low, high = min(*(spot.low for spot in spots), *marked), max(*(spot.high for spot in spots), *marked)
    low, high = (low, high) if high > low else (low - 1, high + 1)
    first, last = min(spot.x for spot in spots), max(spot.x for spot in spots)
    first, last = (first, last) if last > first else (first - 1, last + 1)
    by_logarithm = first > 0 and last / first > SPAN
    below = [10.0**power for power in range(math.ceil(math.log10(first)), math.floor(math.log10(last)) + 1)] if by_logarithm else []
    below = below if len(below) > 1 else [first, last] if by_logarithm else ticks(first, last, 6)
    place = (lambda value: math.log10(value)) if by_logarithm else (lambda value: value)
    straight = scale(place(first), place(last), 48, WIDTH - MARGIN - 8)
    told = "; ".join(
        f"{label + ': ' * bool(label)}{', '.join(f'{spot.value:.4g} at {spot.x:.4g}' for spot in points)}" for label, points in curves
    )
    return _drawn(
        "spots", key, title, f"{measure} over {across}. {told}.", measure=measure, across=across, curves=curves, joined=joined,
        ticks=marked, low=low, high=high, below=below, x=lambda value: straight(place(value)), y=scale(low, high, 24 + 190, 24),
    )  # fmt: skip


def bars_chart(key: str, title: str, measure: str, bars: Sequence[tuple[str, Spot]]) -> Markup:
    """A figure for each label, the best first, with its interval."""
    low, high = min(0.0, *(spot.low for _, spot in bars)), max(0.0, *(spot.high for _, spot in bars))
    marked = ticks(low, high, 4)
    x = scale(low, max(high, marked[-1]) if high > low else low + 1, MARGIN, WIDTH - MARGIN - 8)
    told = "; ".join(f"{label}: {spot.value:.4g}" for label, spot in bars)
    return _drawn("bars", key, title, f"{measure}. {told}.", measure=measure, bars=bars, x=x, ticks=marked)


def map_chart(
    key: str,
    title: str,
    measure: str,
    across: tuple[str, Sequence[str]],
    down: tuple[str, Sequence[str]],
    rows: Sequence[Sequence[float | None]],
) -> Markup:
    """A figure for each pair of two numbers: the name of each and its values, the rows from above."""
    values = [value for row in rows for value in row if value is not None]
    low, high = min(values), max(values)
    depth = scale(low, high, 0.08, 0.85) if high > low else (lambda value: 0.4)
    told = f"{measure}, {low:.4g} to {high:.4g}, over {across[0]} and {down[0]}."
    return _drawn("map", key, title, told, measure=measure, across=across, down=down, rows=rows, depth=depth)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """From a figure between `low` and `high` to its place between `start` and `end`."""
    return lambda value: start + (end - start) * (value - low) / (high - low)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`, with at most `most` steps between them."""
    if high <= low:
        return [low]
    if (high - low) / most < sys.float_info.min:  # too near to zero for a power of ten
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / most) - 1)
    for step in (power * 10**i * step for i in count() for step in STEPS):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first <= most:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]


def px(value: float) -> str:
    """A length in the fewest digits that a screen can show."""
    return f"{value:.1f}".removesuffix(".0")


def cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1].rstrip() + "…"


def _drawn(macro: str, key: str, title: str, description: str, **parts: Any) -> Markup:
    return Markup(getattr(_template(), macro)(key, title, description, **parts))


@cache
def _template() -> Any:
    """The macros of charts.svg.j2."""
    loader = PackageLoader("robustbench_lab.report", "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(px=px, cut=cut)
    environment.globals.update(width=WIDTH, margin=MARGIN, longest=LONGEST, shapes=SHAPES, dashes=DASHES)
    return environment.get_template("charts.svg.j2").module
