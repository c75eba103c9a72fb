"""Papers' pictures: strips of test images, clean and attacked, what the attack changed, and what a defense makes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

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
from robustbench_lab.knobs import NOT_EMPTY, Positive
from robustbench_lab.settings.overrides import parsed
from robustbench_lab.storage.records import DEFENDED_IMAGES_FILE, EXAMPLES_FILE
from robustbench_lab.tables.checks import require
from robustbench_lab.tables.drawing import TableFigure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table

CAPTION = 6.0  # points, and less where a word would not fit
LARGEST = 0.62  # inches: a picture of 28 pixels needs no more


KEPT = {  # of what is shown, what is in the file of defended images, and how a strip of it is called
    "defended": ("clean", "as the network sees it"),
    "attacked_defended": ("attacked", "attacked, as the network sees it"),
    "masks": ("clean_masks", "masks"),
    "attacked_masks": ("attacked_masks", "masks, attacked"),
}
Shows = Literal["attacked", "change", "defended", "attacked_defended", "masks", "attacked_masks"]


@dataclass(frozen=True)
class Pictures(TableFigure):
    """Beneath the clean images, a row's cells as strips of what became of them; rows of other images each have their clean ones above.

    shows: a strip each of every cell: `attacked`, what its attack made of the images; `change`, x_adv - x around grey, `amplify` times as
    large; and, where the cell kept defended images, `defended` and `attacked_defended`, what the network sees of clean and of attacked
    images, `masks` and `attacked_masks`, white where a pixel stays whole. A cell whose model has no masks has no strip of them.
    """

    shows: Annotated[Sequence[Shows], NOT_EMPTY]
    amplify: Positive
    files: ClassVar[Sequence[str]] = (EXAMPLES_FILE, DEFENDED_IMAGES_FILE)

    def check(self, table: Table, path: Path) -> None:
        if needing := [show for show in self.shows if show in KEPT]:
            lacking = next((words for _, _, words in table.words() if not any(_keeps(word) for word in words)), None)
            require(lacking is None, path, "figure.shows", f"words of each cell with keep=[defended_images], for {needing[0]}", lacking)

    def draw(self, table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
        examples = {"index", "x", "delta", "label", "clean_prediction", "prediction"}
        found = arrays_of(cells, EXAMPLES_FILE, examples, output_root)
        kept = arrays_of(cells, DEFENDED_IMAGES_FILE, {"index", "clean", "attacked"}, output_root) if KEPT.keys() & set(self.shows) else {}
        if not found:
            return None
        rows = [(row, [cell for cell in cells if cell.row == row.label and cell.name in found]) for row in table.rows]
        first = next(iter(found.values()))
        alike = all(_same_images(arrays, first) for arrays in found.values())
        groups = [Group("", [_clean(first)])] if alike else []
        for row, here in rows:
            for cell in here:
                if not _same_images(found[cell.name], found[here[0].name]):
                    told = f"the cells show other images than each other: {cell.name!r}; give all of a row the same test_first"
                    raise LabError(f"{table.path}: figure: {told}")
            only = len(table.columns) == 1
            strips = [strip for cell in here for strip in self._strips(cell.column, only, found[cell.name], kept.get(cell.name, {}))]
            if strips:
                groups.append(Group(row.label, strips if alike else [_clean(found[here[0].name]), *strips]))
        return strips_figure(groups, footer_of(table, images_of(cells) + self._about()))

    def _strips(self, column: str, only: bool, examples: Mapping[str, np.ndarray], kept: Mapping[str, np.ndarray]) -> list[Row]:
        """Of one cell, by what examples.npz and defended_images.npz hold of it; only: whether the table has no other column."""

        def row(words: str, images: np.ndarray, captions: Sequence[str]) -> Row:
            return Row(column if len(self.shows) == 1 else words if only else f"{column}, {words}", images, captions)

        strips = []
        for show in self.shows:
            if show == "attacked":
                strips.append(row("attacked", _attacked(examples), _captions(examples)))
            elif show == "change":
                change = np.clip(np.round(255 * (0.5 + self.amplify * _delta(examples))), 0, 255).astype(np.uint8)
                strips.append(row(f"change x {self.amplify:g}", change, _captions(examples)))
            elif (images := kept.get(KEPT[show][0])) is not None:
                if not np.array_equal(kept["index"], examples["index"]):
                    raise LabError(f"{DEFENDED_IMAGES_FILE} speaks of other images than {EXAMPLES_FILE}; evaluate again with force=true")
                strips.append(row(KEPT[show][1], images, _means(images) if show.endswith("masks") else [""] * len(images)))
        return strips

    def _about(self) -> str:
        said = ""
        if {"attacked", "change"} & set(self.shows):
            said += " Beneath each picture: prediction before and after, and the length of the change over that of the image (l2)."
        if "change" in self.shows:
            said += f" Changes are shown {self.amplify:g} times as large as they are, grey where there is none."
        if {"masks", "attacked_masks"} & set(self.shows):
            said += " Masks: white where a pixel stays whole; beneath them their mean."
        return said


def _keeps(word: str) -> bool:
    override = parsed(word)
    return override.key_or_group == "keep" and "defended_images" in override.value()  # type: ignore[operator] # a list, or the one name


def _same_images(some: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(some[name], others[name]) for name in ("index", "x"))


def _clean(examples: Mapping[str, np.ndarray]) -> Row:
    return Row("clean", examples["x"], [str(label) for label in examples["label"]], marked=True)


def _delta(examples: Mapping[str, np.ndarray]) -> np.ndarray:
    return examples["delta"].astype(np.float32)


def _attacked(examples: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.clip(np.round(examples["x"] + 255 * _delta(examples)), 0, 255).astype(np.uint8)


def _means(masks: np.ndarray) -> list[str]:
    return [f"{mean:.2f}" for mean in (masks.mean(axis=(1, 2, 3)) / 255).tolist()]


def _captions(arrays: Mapping[str, np.ndarray]) -> list[str]:
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
