"""Planes: a two-class problem on [0, 1]^2 as models divide it, with the points that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import arrays_of, footer_of
from robustbench_lab.figures.paper import (
    INK,
    MARGIN,
    MUTED,
    SMALL,
    TEXT,
    WIDTH,
    axes_at,
    broken,
    fitting,
    height_of,
    sheet,
    write,
    write_footer,
)
from robustbench_lab.storage.records import PLANE_FILE
from robustbench_lab.tables.drawing import TableFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table

LABEL = 0.9  # inches: the length of a row's label that stands upright
CLASSES = ("#0b3d91", "#9e0b1f")  # darker than every shade beneath them; blue and red, which the colour-blind can tell apart
MOST_ADDED = 600  # added points that one plane shows


@dataclass(frozen=True)
class Planes(TableFigure):
    """A column is a problem in the plane, and a row a model of each."""

    files: ClassVar[Sequence[str]] = (PLANE_FILE,)

    def draw(self, table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
        needed = {"probability", "points", "labels", "extra", "extra_labels"}
        found = arrays_of(cells, PLANE_FILE, needed, output_root)
        shown = [row.label for row in table.rows if all(f"{row.label} / {column.label}" in found for column in table.columns)]
        if not shown:
            return None
        problems = [(column.label, [_plane(found[f"{label} / {column.label}"]) for label in shown]) for column in table.columns]
        return planes_figure(problems, shown, MOST_ADDED, footer_of(table))


def _plane(arrays: dict[str, np.ndarray]) -> Plane:
    added = Points(arrays["extra"], arrays["extra_labels"]) if len(arrays["extra"]) else None
    return Plane(arrays["probability"], Points(arrays["points"], arrays["labels"]), added)


@dataclass(frozen=True)
class Points:
    """x: [N, 2] in [0, 1]; y: [N], 0 or 1."""

    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class Plane:
    """A model on [0, 1]^2: probability [G, G] of class 1, where [i, j] is at the point (j / (G - 1), i / (G - 1)).

    original: the training points; added: those of an augmentation, or None.
    """

    probability: np.ndarray
    original: Points
    added: Points | None = None


def planes_figure(rows: Sequence[tuple[str, Sequence[Plane]]], columns: Sequence[str], most_added: int, footer: str) -> Figure:
    """A grid of planes: datasets beneath each other, (label, planes), and augmentations, `columns`, side by side.

    Of added points at most `most_added` of each plane are drawn, evenly spaced in their order. Raises LabError for arrays that do not fit.
    """
    if not rows or not columns or any(len(planes) != len(columns) for _, planes in rows):
        raise LabError(
            f"planes: expected {len(columns)} planes in each row, as there are columns, got {[len(planes) for _, planes in rows]}"
        )
    for label, planes in rows:
        for column, plane in zip(columns, planes, strict=True):
            _check_plane(f"planes: {label!r}, {column!r}", plane)
    gap = 0.07
    left = MARGIN + max(height_of(label, TEXT, LABEL) for label, _ in rows) + 0.06
    side = min((WIDTH - MARGIN - left) / len(columns) - gap, 2.2)
    across = side + gap
    above = max(height_of(column, TEXT, side) for column in columns) + 0.03
    bottom = MARGIN + above + len(rows) * (side + gap)
    figure = sheet(bottom + 0.44 + height_of(footer, SMALL) + MARGIN)
    for j, column in enumerate(columns):
        words = broken(column, TEXT, side)
        write(figure, left + j * across + side / 2, MARGIN + above - 0.06, words, fitting(column, TEXT, side), ha="center", va="baseline")
    for i, (label, planes) in enumerate(rows):
        y = MARGIN + above + i * (side + gap)
        write(figure, left - 0.06, y + side / 2, broken(label, TEXT, LABEL), ha="right", va="center", rotation=90, multialignment="center")
        for j, plane in enumerate(planes):
            _draw_plane(axes_at(figure, left + j * across, y, side, side), plane, most_added)
    _key(figure, bottom + 0.06, any(plane.added is not None for _, planes in rows for plane in planes))
    write_footer(figure, footer)
    return figure


def _check_plane(where: str, plane: Plane) -> None:
    probability = plane.probability
    if probability.ndim != 2 or probability.shape[0] != probability.shape[1] or len(probability) < 2:
        raise LabError(f"{where}: expected probability [G, G], got {list(probability.shape)}")
    if not (np.isfinite(probability).all() and probability.min() >= 0 and probability.max() <= 1):
        raise LabError(f"{where}: expected probabilities, 0 to 1, got {probability.min():g} to {probability.max():g}")
    for name, points in (("original", plane.original), ("added", plane.added)):
        if points is None:
            continue
        if points.x.ndim != 2 or points.x.shape[1] != 2 or points.y.shape != points.x.shape[:1]:
            raise LabError(f"{where}: expected {name} points x [N, 2], y [N], got {list(points.x.shape)}, {list(points.y.shape)}")
        if not np.isin(points.y, (0, 1)).all():
            raise LabError(f"{where}: expected {name} points of the classes 0 and 1, got {np.unique(points.y).tolist()}")


def thinned(points: Points, most: int) -> Points:
    """At most so many points, evenly spaced in their order."""
    if len(points.y) <= most:
        return points
    kept = np.linspace(0, len(points.y) - 1, most).round().astype(int)
    return Points(points.x[kept], points.y[kept])


def _light() -> Colormap:
    """RdBu without its dark shades, so that the points stand out."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["RdBu_r"](np.linspace(0.22, 0.78, 256)))


def _draw_plane(axes: Axes, plane: Plane, most_added: int) -> None:
    grid = np.linspace(0, 1, len(plane.probability))
    low, high = plane.probability.min(), plane.probability.max()
    axes.contourf(grid, grid, plane.probability, levels=np.linspace(0, 1, 21), cmap=_light(), vmin=0, vmax=1, zorder=1)
    for points, size, edge in ((plane.added and thinned(plane.added, most_added), 1.0, 0.0), (plane.original, 4.0, 0.2)):
        if points is not None:
            colours = np.array(CLASSES)[points.y.astype(int)]
            axes.scatter(points.x[:, 0], points.x[:, 1], size, colours, edgecolors="white", linewidths=edge, zorder=2)
    axes.set_rasterization_zorder(2.5)  # thousands of marks would make the SVG slow, and areas side by side would show seams
    for levels, width in (([level / 10 for level in range(1, 10) if level != 5], 0.35), ([0.5], 1.3)):
        crossed = [level for level in levels if low < level < high]
        if crossed:
            axes.contour(grid, grid, plane.probability, levels=crossed, colors="black", linewidths=width, linestyles="-", zorder=3)
    axes.set(xlim=(0, 1), ylim=(0, 1), xticks=[], yticks=[], aspect="equal")


def _key(figure: Figure, top: float, added: bool) -> None:
    """The points' legend and the bar of colours, side by side."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.lines import Line2D

    def point(colour: str, size: float) -> Line2D:
        return Line2D([], [], linestyle="none", marker="o", color=colour, markersize=size, markeredgewidth=0)

    entries = {"class 0": point(CLASSES[0], 4), "class 1": point(CLASSES[1], 4), "original point": point(MUTED, 4)}
    if added:
        entries["added point"] = point(MUTED, 1.8)
    entries["decision boundary"] = Line2D([], [], color="black", linewidth=1.3)
    figure.legend(
        list(entries.values()), list(entries), loc="upper left", bbox_to_anchor=(MARGIN / WIDTH, 1 - top / figure.get_size_inches()[1]),
        ncols=3, fontsize=TEXT, frameon=False, borderpad=0, borderaxespad=0, labelspacing=0.35, columnspacing=1.2, handlelength=1.2,
        handletextpad=0.4, labelcolor=INK,
    )  # fmt: skip
    axes = axes_at(figure, 4.75, top, 2.1, 0.1)
    bar = figure.colorbar(ScalarMappable(Normalize(0, 1), _light()), cax=axes, orientation="horizontal", ticks=[0, 0.5, 1])
    bar.ax.tick_params(labelsize=TEXT, width=0.6, length=2, pad=1, labelcolor=INK)
    bar.ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    bar.outline.set_linewidth(0.6)
    write(figure, 4.65, top + 0.05, "probability of class 1", ha="right", va="center")
