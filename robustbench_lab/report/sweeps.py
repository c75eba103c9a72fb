"""What the page shows of sweeps: the best in a line, a chart that fits what was swept, and the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from robustbench_lab.errors import LabError
from robustbench_lab.report.charts import LINES, Spot, bars_chart, map_chart, spots_chart
from robustbench_lab.settings.conf import FRACTION
from robustbench_lab.tables.sweep import SHARES, Line, Sweep, sweeps_in
from robustbench_lab.tables.sweep_pages import grid, headline, shown, title

MOST_BARS, MOST_SIDES = 24, 12  # bars of a chart, and cells along a side of a map: more cannot be read


@dataclass(frozen=True)
class SweepArticle:
    """A sweep on the page; name: its folder's."""

    name: str
    sweep: Sweep
    headline: str
    head: Sequence[str]
    body: Sequence[Sequence[str]]
    chart: Markup | None

    @property
    def anchor(self) -> str:
        return f"sweep-{self.name}"

    @property
    def title(self) -> str:
        return f"{self.sweep.verb} over {', '.join([*self.sweep.names, *self.sweep.seeds]) or 'nothing'}"


def articles_of(root: Path) -> tuple[list[SweepArticle], dict[Path, str]]:
    """Every sweep under an output folder that has a finished or failed job, and why others cannot be read."""
    found, problems = [], {}
    for folder, sweep in sweeps_in(root):
        if isinstance(sweep, LabError):
            problems[folder] = str(sweep)
        elif sweep.trials:
            head, body = grid(sweep)
            article = SweepArticle(folder.name, sweep, headline(sweep), head, body, None)
            found.append(SweepArticle(folder.name, sweep, article.headline, head, body, chart_of(sweep, article.anchor, article.title)))
    return found, problems


def chart_of(sweep: Sweep, key: str, told: str) -> Markup | None:
    """Points over one numeric key, with a line for each value of another; a map over two; bars otherwise. None where there is nothing to
    compare."""
    figure = (sweep.ranked_by or next((name for name in sweep.figures if name in SHARES), "")).lstrip("-")
    lines = [line for line in sweep.lines if line.mean(figure) is not None]
    if len(lines) < 2 or not sweep.keys:
        return None
    measure = title(figure) + (", mean ± deviation over seeds" if sweep.seeds else "")
    numeric = [place for place in range(len(sweep.keys)) if all(number(line.values[place]) is not None for line in lines)]
    if len(sweep.keys) == 2 and len(numeric) == 2:
        sides = [sorted({line.values[place] for line in lines}, key=lambda value: number(value) or 0.0) for place in (0, 1)]
        if max(map(len, sides)) <= MOST_SIDES and len(lines) > max(map(len, sides)):
            return _map(key, told, measure, sweep, figure, lines, sides)
    others = [place for place in range(len(sweep.keys)) if place not in numeric[:1]]
    groups: dict[str, list[Line]] = {}
    for line in lines:
        groups.setdefault(", ".join(shown(line.values[place]) for place in others), []).append(line)
    if numeric and len(groups) <= LINES and len(lines) > len(groups):
        spots = {label: [_spot(line, figure, numeric[0]) for line in group] for label, group in groups.items()}
        named = len(spots) > 1  # a line alone needs no name
        curves = [(label if named else "", sorted(points, key=lambda spot: spot.x)) for label, points in spots.items()]
        return spots_chart(key, told, measure, sweep.names[numeric[0]], curves, joined=not sweep.searched)
    bars = [(", ".join(map(shown, line.values)), _spot(line, figure, None)) for line in lines[:MOST_BARS]]
    return bars_chart(key, told, measure, bars)


def _map(key: str, told: str, measure: str, sweep: Sweep, figure: str, lines: Sequence[Line], sides: Sequence[list[str]]) -> Markup:
    cells = {(line.values[0], line.values[1]): _spot(line, figure, None).value for line in lines}
    rows = [[cells.get((across, down)) for across in sides[0]] for down in reversed(sides[1])]
    across, down = list(map(shown, sides[0])), list(map(shown, reversed(sides[1])))
    return map_chart(key, told, measure, (sweep.names[0], across), (sweep.names[1], down), rows)


def _spot(line: Line, figure: str, place: int | None) -> Spot:
    factor = 100 if figure in SHARES else 1
    middle, deviation, interval = line.mean(figure) or 0.0, line.deviation(figure), line.interval(figure)
    low, high = interval or (middle - (deviation or 0), middle + (deviation or 0))
    return Spot((number(line.values[place]) or 0.0) if place is not None else 0.0, factor * middle, factor * low, factor * high)


def number(value: str) -> float | None:
    """What a word's value is, where it is a finite number or a fraction."""
    if match := FRACTION.fullmatch(value):
        above, below = map(float, match.groups())
        return above / below if below else None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None
