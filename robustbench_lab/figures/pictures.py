"""Papers' pictures: strips of test images, clean and attacked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import arrays_of, footer_of, images_of
from robustbench_lab.figures.paper import (
    CLEAN,
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
    width_of,
    write,
    write_footer,
)
from robustbench_lab.storage.records import EXAMPLES_FILE
from robustbench_lab.tables.drawing import TableFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table

CAPTION = 6.0  # points, and less where a word would not fit
LARGEST = 0.62  # inches: a picture of 28 pixels needs no more


@dataclass(frozen=True)
class Pictures(TableFigure):
    """Beneath the clean images, a row's cells as strips of what its attack made of them."""

    files: ClassVar[Sequence[str]] = (EXAMPLES_FILE,)

    def draw(self, table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
        needed = {"index", "x", "delta", "label", "clean_prediction", "prediction"}
        found = arrays_of(cells, EXAMPLES_FILE, needed, output_root)
        if not found:
            return None
        first = next(iter(found.values()))
        groups = [Group("", [Row("clean", first["x"], [str(label) for label in first["label"]], marked=True)])]
        for row in table.rows:
            strips = []
            for cell in cells:
                if cell.row == row.label and cell.name in found:
                    arrays = found[cell.name]
                    if not np.array_equal(arrays["index"], first["index"]):
                        raise LabError(
                            f"{table.path}: figure: the cells show other images than each other; give all of them the same test_first"
                        )
                    strips.append(Row(cell.column, _attacked(arrays), _captions(arrays)))
            if strips:
                groups.append(Group(row.label, strips))
        about = " Beneath each picture: prediction before and after, and the length of the change over that of the image (l2)."
        return strips_figure(groups, footer_of(table, images_of(cells) + about))


def _attacked(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.clip(np.round(arrays["x"] + 255 * arrays["delta"].astype(np.float32)), 0, 255).astype(np.uint8)


def _captions(arrays: dict[str, np.ndarray]) -> list[str]:
    """Prediction before and after, and the change's length over the image's, both l2."""
    x = arrays["x"].reshape(len(arrays["x"]), -1).astype(np.float64) / 255
    change = arrays["delta"].reshape(len(x), -1).astype(np.float64)
    sizes = np.linalg.norm(change, axis=1) / np.maximum(np.linalg.norm(x, axis=1), 1e-12)
    both = zip(arrays["clean_prediction"].tolist(), arrays["prediction"].tolist(), sizes.tolist(), strict=True)
    return [f"{before} → {after} {size:.2f}" for before, after, size in both]


@dataclass(frozen=True)
class Row:
    """Pictures side by side: images uint8 [N, C, H, W], C 1 or 3; a caption for each; `marked` frames them in green."""

    label: str
    images: np.ndarray
    captions: Sequence[str]
    marked: bool = False


@dataclass(frozen=True)
class Group:
    """Rows under a heading, which may be empty."""

    heading: str
    rows: Sequence[Row]


def strips_figure(groups: Sequence[Group], footer: str) -> Figure:
    """Rows of pictures, the same number in each, with their pixels as squares. Raises LabError for rows that do not fit each other."""
    rows = [row for group in groups for row in group.rows]
    _check_rows(rows)
    count = len(rows[0].images)
    labels = min(max(width_of(row.label, TEXT) for row in rows), 1.3)
    left = MARGIN + labels + 0.1
    step = min((WIDTH - MARGIN - left) / count, LARGEST + 0.06)
    side = 0.92 * step
    small = min(fitting(caption, CAPTION, step) for row in rows for caption in row.captions)
    beneath = {id(row): max(height_of(caption, small, step) for caption in row.captions) + 0.04 for row in rows}
    headings = [height_of(group.heading, TEXT, weight="bold") + 0.05 for group in groups]
    height = 2 * MARGIN + height_of(footer, SMALL) + 0.04
    height += sum(headings) + sum(side + beneath[id(row)] for row in rows)

    figure = sheet(height)
    axes = axes_at(figure, 0, 0, WIDTH, height)
    axes.set_axis_off()
    y = MARGIN
    for group, heading in zip(groups, headings, strict=True):
        write(figure, MARGIN, y, broken(group.heading, TEXT, WIDTH - 2 * MARGIN, "bold"), weight="bold")
        y += heading
        for row in group.rows:
            label = broken(row.label, TEXT, labels)
            write(figure, left - 0.1, y + side / 2, label, ha="right", va="center")
            for i, (image, caption) in enumerate(zip(row.images, row.captions, strict=True)):
                _picture(axes, image, left + i * step + (step - side) / 2, y, side, row.marked)
                middle = left + (i + 0.5) * step
                write(figure, middle, y + side + 0.025, broken(caption, small, step), small, ha="center", color=MUTED)
            y += side + beneath[id(row)]
    axes.set_xlim(0, WIDTH)  # after the pictures, each of which sets its own
    axes.set_ylim(height, 0)
    write_footer(figure, footer)
    return figure


def _check_rows(rows: Sequence[Row]) -> None:
    if not rows or not len(rows[0].images):
        raise LabError("strips: expected one row of one picture or more, got none")
    for row in rows:
        images = row.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            raise LabError(f"strips: {row.label!r}: expected images uint8 [N, 1 or 3, H, W], got {images.dtype} {list(images.shape)}")
        if not len(images) == len(row.captions) == len(rows[0].images):
            raise LabError(
                f"strips: {row.label!r}: expected {len(rows[0].images)} images and captions as in the first row, "
                f"got {len(images)} and {len(row.captions)}"
            )


def _picture(axes: Axes, image: np.ndarray, x: float, y: float, side: float, marked: bool) -> None:
    """image: uint8 [C, H, W]."""
    from matplotlib.patches import Rectangle

    shown = np.repeat(image, 3, axis=0) if len(image) == 1 else image
    # "none" is nearest, but the SVG keeps the pixels themselves.
    axes.imshow(shown.transpose(1, 2, 0), extent=(x, x + side, y + side, y), interpolation="none", aspect="auto", zorder=1)
    colour, width = (CLEAN, 2.0) if marked else (MUTED, 0.4)
    axes.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=colour, linewidth=width, zorder=2, joinstyle="miter"))
