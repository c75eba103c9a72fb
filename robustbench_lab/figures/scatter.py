"""One metric against another: a point for each model, with its 95 % intervals, and a curve through those that differ in one setting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import footer_of, images_of, subject_of
from robustbench_lab.figures.paper import INK, MARGIN, RULE, SMALL, TEXT, WIDTH, axes_at, broken, height_of, sheet, write_footer
from robustbench_lab.figures.styles import STYLES, Style, legend_lines, write_styles
from robustbench_lab.tables.checks import require
from robustbench_lab.tables.drawing import TableFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table


@dataclass(frozen=True)
class Scatter(TableFigure):
    """A row is a point: its figure in the first column is x, that in the second is y. Rows whose labels are alike up to the last comma are
    a curve, in their order; one without both figures is left out."""

    def check(self, table: Table, path: Path) -> None:
        labels = [column.label for column in table.columns]
        require(len(labels) == 2, path, "columns", "two, x and y, for a scatter plot", labels)
        groups = list(dict.fromkeys(group_of(row.label) for row in table.rows))
        meant = f"at most {len(STYLES)} curves and single points for a scatter plot; rows are one curve if alike up to the last comma"
        require(len(groups) <= len(STYLES), path, "rows", meant, groups)

    def draw(self, table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
        curves: dict[str, list[Point]] = {group_of(row.label): [] for row in table.rows}
        for x, y in zip(cells[::2], cells[1::2], strict=True):
            if x.value is not None and y.value is not None:
                curves[group_of(x.row)].append(Point(x.value, y.value, x.interval, y.interval))
        if not any(curves.values()):
            return None
        bars = "over training seeds" if any(cell.seeds for cell in cells) else "over the images, one trained model each"
        first = " Hollow: the first point of a curve." if any(len(points) > 1 for points in curves.values()) else ""
        footer = footer_of(table, f"{images_of(cells)} Bars: 95 % intervals {bars}.{first}")
        x_label, y_label = (metric.title for metric in table.metrics)
        return scatter_figure(subject_of(table), curves, x_label, y_label, footer)


def group_of(label: str) -> str:
    """The curve that a row belongs to: what stands before the last comma, `lambda 15` of `lambda 15, c 25`; all of it where none does."""
    return (label.rpartition(",")[0] or label).strip()


@dataclass(frozen=True)
class Point:
    """In the units of the axes, with the ends of the 95 % intervals, None where there is none."""

    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None


def scatter_figure(title: str, curves: dict[str, list[Point]], x_label: str, y_label: str, footer: str) -> Figure:
    """One panel with a legend; a curve without points has none in it, but keeps its style, so that the others keep theirs.

    Raises LabError where there is no point, and for more curves than there are styles.
    """
    if not any(curves.values()) or len(curves) > len(STYLES):
        raise LabError(f"scatter: expected a point, and at most {len(STYLES)} curves, got {[len(points) for points in curves.values()]}")
    styles = {label: style for (label, points), style in zip(curves.items(), STYLES, strict=False) if points}
    left, height, above = 0.62, 3.4, height_of(title, TEXT, weight="bold") + 0.05
    width = WIDTH - left - 0.2 - 2 * MARGIN  # room for half of the last tick's number
    bottom = MARGIN + above + height + 0.28 + height_of(x_label, TEXT, width)
    across, key = legend_lines(list(styles))
    figure = sheet(bottom + key + height_of(footer, SMALL) + MARGIN)
    axes = axes_at(figure, left + MARGIN, MARGIN + above, width, height)
    axes.set_title(broken(title, TEXT, width, "bold"), fontsize=TEXT, fontweight="bold", color=INK, pad=4, parse_math=False)
    axes.set_xlabel(broken(x_label, TEXT, width), fontsize=TEXT, color=INK, labelpad=2, parse_math=False)
    axes.set_ylabel(y_label, fontsize=TEXT, color=INK, labelpad=3, parse_math=False)
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    for label, style in styles.items():
        _draw(axes, label, curves[label], style)
    _number(axes)
    write_styles(figure, {label: style if len(curves[label]) > 1 else _single(style) for label, style in styles.items()}, across, bottom)
    write_footer(figure, footer)
    return figure


def _single(style: Style) -> Style:
    """Without a line."""
    return style[0], "none", style[2]


def _draw(axes: Axes, label: str, points: Sequence[Point], style: Style) -> None:
    """The curve through its points, the first of several hollow, over their intervals."""
    colour, dashes, marker = style
    for point in points:
        if point.x_interval is not None:
            axes.hlines(point.y, *point.x_interval, color=colour, alpha=0.3, linewidth=1.2, zorder=2)
        if point.y_interval is not None:
            axes.vlines(point.x, *point.y_interval, color=colour, alpha=0.3, linewidth=1.2, zorder=2)
    x, y = [point.x for point in points], [point.y for point in points]
    axes.plot(x, y, color=colour, linestyle=dashes, linewidth=1, marker=marker, markersize=5, markeredgewidth=0.9, label=label, zorder=3)
    if len(points) > 1:
        axes.plot(x[:1], y[:1], color=colour, linestyle="none", marker=marker, markersize=5, markeredgewidth=0.9, markerfacecolor="white",
                  label=f"{label}, first", zorder=4)  # fmt: skip


def _number(axes: Axes) -> None:
    """Few ticks at round places, whose numbers stand as they are; a little room around the points."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.margins(0.05)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
