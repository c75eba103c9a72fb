"""How curves are told apart, by colour, dashes and marker, and the legend that says which is which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from robustbench_lab.figures.paper import LEGEND_LINE, MARGIN, MUTED, TEXT, WIDTH, width_of, write_legend

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Style = tuple[str, Any, str]
# Colour, dashes and marker: each alone tells curves apart, so that they do in grey. Colours that the colour-blind can tell apart: Okabe and
# Ito 2008 without their yellow, which is too light for a line; the last two are Paul Tol's ("muted").
STYLES: list[Style] = [
    ("#000000", "-", "o"), ("#d55e00", (0, (5, 1.5)), "s"), ("#0072b2", (0, (1, 1.2)), "^"), ("#009e73", (0, (6, 1.5, 1, 1.5)), "D"),
    ("#cc79a7", (0, (3, 1.2)), "v"), ("#e69f00", (0, (8, 2)), "P"), ("#56b4e9", (0, (4, 1.2, 1, 1.2, 1, 1.2)), "X"),
    ("#882255", (0, (2, 2)), "<"), ("#999933", (0, (9, 2, 3, 2)), ">"),
]  # fmt: skip
PAPER: Style = (MUTED, "none", "o")  # hollow; its shape and colour are those of the curve


def legend_lines(labels: Sequence[str]) -> tuple[int, float]:
    """How many entries stand side by side, so that lines are of the same length, and the legend's height in inches."""
    across = max(1, min(len(labels), int((WIDTH - 2 * MARGIN) / (max(width_of(label, TEXT) for label in labels) + 0.62))))
    lines = math.ceil(len(labels) / across)
    return math.ceil(len(labels) / lines), lines * LEGEND_LINE


def write_styles(figure: Figure, styles: Mapping[str, Style | None], across: int, top: float) -> None:
    """`top`: inches from the figure's top. A label without a style stands for the paper's hollow markers."""
    from matplotlib.lines import Line2D

    handles = []
    for style in styles.values():
        colour, dashes, marker = style or PAPER
        size, edge, fill = (3.4, 0, colour) if style else (6, 0.9, "none")
        handle = Line2D([], [], color=colour, linestyle=dashes, linewidth=1.2, marker=marker, markersize=size, markeredgewidth=edge)
        handle.set_markerfacecolor(fill)
        handles.append(handle)
    write_legend(figure, handles, list(styles), across, top, handlelength=3.0, handletextpad=0.5, columnspacing=1.4)
