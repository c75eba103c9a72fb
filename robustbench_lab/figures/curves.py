"""Curves of a metric as papers draw them: panels side by side, one curve for each model, the 95 % interval as a light band."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import footer_of, images_of, subject_of
from robustbench_lab.figures.paper import (
    INK,
    MARGIN,
    RULE,
    SMALL,
    TEXT,
    WIDTH,
    axes_at,
    broken,
    height_of,
    sheet,
    write_footer,
)
from robustbench_lab.figures.styles import STYLES, Style, legend_lines, write_styles
from robustbench_lab.tables.checks import require
from robustbench_lab.tables.drawing import TableFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table

MARKS = 14  # markers on one curve; more would hide its dashes


@dataclass(frozen=True)
class Curves(TableFigure):
    """A row is a curve, and a column's label a place on the axis. x: the axis's name and unit; scale: log, or None. from_zero: whether the
    other axis begins at 0; else it holds the figures alone, and the footer says so."""

    x: str
    scale: Literal["log"] | None
    from_zero: bool
    thinned: ClassVar[bool] = True

    def check(self, table: Table, path: Path) -> None:
        labels = [column.label for column in table.columns]
        places = [_place_on_axis(label) for label in labels]
        rising = None not in places and places == sorted(set(places))  # type: ignore[type-var]
        require(rising, path, "columns", "labels that are numbers, rising, for a figure of curves", labels)
        metrics = table.metrics
        alike = all(metric.accuracy for metric in metrics) or all(metric == metrics[0] for metric in metrics)
        meant = "accuracies, or one metric in all of them, for a figure of curves"
        require(alike, path, "columns", meant, [metric.name for metric in metrics])

    def draw(self, table: Table, cells: Sequence[Cell], output_root: Path) -> Figure:
        series = []
        for row in table.rows:
            own = [cell for cell in cells if cell.row == row.label]
            points = [(float(cell.column), cell.published) for cell in own if cell.published is not None]
            if row.not_run is not None and not points:
                continue  # nothing of it is left: a profile shows no published figures
            low, high = ([_end(cell, i) for cell in own] for i in (0, 1))
            series.append(Series(row.label, [float(cell.column) for cell in own], [cell.value for cell in own], low, high, points))
        bands = " over training seeds" if any(cell.seeds for cell in cells) else " over the images, one trained model each"
        cut = "" if self.from_zero else " The upright axis does not begin at 0."
        footer = footer_of(table, f"{images_of(cells)} Bands: 95 % intervals{bands}.{cut}")
        metrics = table.metrics
        shown = "accuracy, %" if all(metric.accuracy for metric in metrics) else metrics[0].title
        top = 100.0 if metrics[0].in_percent else None
        return curves_figure([Panel(subject_of(table), series)], 1, self.x, shown, footer, self.scale == "log", top, self.from_zero)


def _place_on_axis(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _end(cell: Cell, end: int) -> float | None:
    """An end of the interval, which holds the value: at 0 and 100 % rounding may have put it a hair on the wrong side, and that of a mean
    over seeds may reach beyond the axis."""
    if cell.interval is None or cell.value is None:
        return None
    top = 100.0 if cell.in_percent else math.inf
    return max(0.0, min(cell.interval[0], cell.value)) if end == 0 else min(top, max(cell.interval[1], cell.value))


@dataclass(frozen=True)
class Series:
    """A curve: x in the unit of the axis, rising; y and the ends of its 95 % interval, 0 or more, None where nothing was measured.

    published: a paper's points, (x, y).
    """

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    low: Sequence[float | None]
    high: Sequence[float | None]
    published: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Panel:
    title: str
    series: Sequence[Series]


def curves_figure(
    panels: Sequence[Panel],
    columns: int,
    x_label: str,
    y_label: str,
    footer: str,
    log_x: bool = False,
    top: float | None = 100,
    from_zero: bool = True,
) -> Figure:
    """Panels in rows of `columns`, with one legend: the same label looks the same in every panel.

    log_x: a logarithmic axis; where a panel begins at 0, a straight piece of it leads from there to the smallest x above. top: of the
    other axis, which begins at 0: 100 for percent; None: a little above the largest figure. Without `from_zero` that axis holds the figures
    alone.
    Raises LabError for lengths that differ, figures below 0 or above the top, x that does not rise (or is negative, on a logarithmic
    axis), a label twice in a panel, and more labels than there are styles.
    """
    if not panels or columns < 1:
        raise LabError(f"curves: expected one panel and one column or more, got {len(panels)} panels, columns={columns}")
    for panel in panels:
        _check(panel, log_x, math.inf if top is None else top)
    figures = [y for panel in panels for series in panel.series for y in _figures_of(series)]
    if top is None:
        top = 1.05 * max(figures, default=0.0) or 1.0
    limits = (0.0, top)
    if not from_zero and figures and min(figures) < max(figures):
        room = 0.05 * (max(figures) - min(figures))
        limits = (max(0.0, min(figures) - room), min(top, max(figures) + room))
    labels = list(dict.fromkeys(series.label for panel in panels for series in panel.series))
    if not 1 <= len(labels) <= len(STYLES):
        raise LabError(f"curves: expected 1 to {len(STYLES)} labels, got {len(labels)}: {', '.join(labels)}")
    styles = dict(zip(labels, STYLES, strict=False))

    columns = min(columns, len(panels))
    left, gap = 0.52, 0.22
    width = (WIDTH - left - 2 * MARGIN - gap * (columns - 1)) / columns
    height = min(0.75 * width, 2.5)
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    above = [max(height_of(panel.title, TEXT, width, "bold") for panel in row) + 0.05 for row in rows]
    named = 0.28 + height_of(x_label, TEXT, width)  # inches beneath panels with, and without, the axis's name
    beneath = [named if i + 1 == len(rows) or len(rows[i + 1]) < len(row) else 0.24 for i, row in enumerate(rows)]
    tops = [MARGIN + sum(above[: i + 1]) + height * i + sum(beneath[:i]) for i in range(len(rows))]
    entries = [*labels, "paper"] if any(series.published for panel in panels for series in panel.series) else labels
    across, key = legend_lines(entries)
    bottom = tops[-1] + height + beneath[-1]
    figure = sheet(bottom + key + height_of(footer, SMALL) + MARGIN)

    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        axes = axes_at(figure, left + MARGIN + column * (width + gap), tops[row], width, height)
        _draw(axes, panel, styles, log_x, limits)
        axes.set_title(broken(panel.title, TEXT, width, "bold"), fontsize=TEXT, fontweight="bold", color=INK, pad=4, parse_math=False)
        if i + columns >= len(panels):
            axes.set_xlabel(broken(x_label, TEXT, width), fontsize=TEXT, color=INK, labelpad=2, parse_math=False)
        if column == 0:
            axes.set_ylabel(y_label, fontsize=TEXT, color=INK, labelpad=3, parse_math=False)
        else:
            axes.tick_params(labelleft=False)
    write_styles(figure, {label: styles.get(label) for label in entries}, across, bottom)
    write_footer(figure, footer)
    return figure


def _figures_of(series: Series) -> list[float]:
    """All that has a place on the other axis."""
    return [y for y in [*series.y, *series.low, *series.high, *(y for _, y in series.published)] if y is not None]


def _check(panel: Panel, log_x: bool, top: float) -> None:
    labels = [series.label for series in panel.series]
    if len(set(labels)) < len(labels):
        raise LabError(f"curves: panel {panel.title!r}: expected each label once, got {', '.join(labels)}")
    for series in panel.series:
        where = f"curves: panel {panel.title!r}, {series.label!r}"
        lengths = [len(series.x), len(series.y), len(series.low), len(series.high)]
        if len(set(lengths)) > 1:
            raise LabError(f"{where}: expected as many y, low and high as x, got {lengths[0]} x, {lengths[1:]}")
        if any(not math.isfinite(x) for x in series.x) or any(a >= b for a, b in zip(series.x, series.x[1:], strict=False)):
            raise LabError(f"{where}: expected finite x that rises, got {list(series.x)}")
        points = series.published
        if log_x and any(x < 0 for x in [*series.x, *(x for x, _ in points)]):
            raise LabError(f"{where}: a logarithmic axis has no place for x < 0, got {[*series.x, *(x for x, _ in points)]}")
        if wrong := [y for y in _figures_of(series) if not (0 <= y <= top and y < math.inf)]:
            meant = "numbers >= 0" if top == math.inf else f"percent, 0 to {top:g}"
            raise LabError(f"{where}: expected {meant}, or None, got {wrong}")
        for x, y, low, high in zip(series.x, series.y, series.low, series.high, strict=True):
            known = [value for value in (low, y, high) if value is not None]
            if known != sorted(known) or (y is None and known):
                raise LabError(f"{where}: expected low <= y <= high, and no interval without y, got {low}, {y}, {high} at {x:g}")


def _draw(axes: Axes, panel: Panel, styles: Mapping[str, Style], log_x: bool, limits: tuple[float, float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, SymmetricalLogLocator

    if log_x:
        places = {x for series in panel.series for x in [*series.x, *(x for x, _ in series.published)]}
        if 0 in places:
            least = min(places - {0}, default=1.0)
            axes.set_xscale("symlog", linthresh=least, linscale=0.3)
            axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=least, subs=[1.0, 3.0]))
        else:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if limits == (0, 100):
        axes.set_yticks([0, 20, 40, 60, 80, 100])
    else:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    for depth, series in enumerate(reversed(panel.series)):  # the first lies on top
        colour, dashes, marker = styles[series.label]
        x, y, low, high = (_numbers(values) for values in (series.x, series.y, series.low, series.high))
        axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)
        alone = _alone(y)  # a band of one point has no width
        axes.vlines(
            [x[i] for i in alone], [low[i] for i in alone], [high[i] for i in alone], color=colour, alpha=0.3, linewidth=3, zorder=2
        )
        axes.plot(
            x, y, color=colour, linestyle=dashes, linewidth=1.2, marker=marker, markersize=3.4, markeredgewidth=0, label=series.label,
            markevery=_marked(y, list(styles).index(series.label)), clip_on=False, zorder=3 + 0.01 * depth,
        )  # fmt: skip
        if series.published:
            points = zip(*series.published, strict=True)
            axes.plot(
                *points, color=colour, linestyle="none", marker=marker, markersize=6, markerfacecolor="none", markeredgewidth=0.9,
                label=f"{series.label}, paper", clip_on=False, zorder=4,
            )  # fmt: skip
    axes.margins(x=0.02)
    axes.set_ylim(*limits)


def _numbers(values: Sequence[float | None]) -> list[float]:
    """What is missing becomes a gap."""
    return [math.nan if value is None else float(value) for value in values]


def _alone(y: Sequence[float]) -> list[int]:
    """Indices of the points whose neighbours are missing."""
    there = [False, *(math.isfinite(value) for value in y), False]
    return [i for i in range(len(y)) if there[i + 1] and not (there[i] or there[i + 2])]


def _marked(y: Sequence[float], shift: int) -> list[int]:
    """Indices that get a marker: evenly spread, not the same for every curve, and each point that stands alone."""
    every = math.ceil(len(y) / MARKS)
    return sorted({*(i for i in range(len(y)) if i % every == shift % every), *_alone(y)})
