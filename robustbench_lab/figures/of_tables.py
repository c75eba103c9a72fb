"""A table's cells as the paper's figure: which kind, and which rows and columns become what. The records' folders hold the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.figures.curves import Panel, Series, curves_figure
from robustbench_lab.figures.features import Cloud, features_figure
from robustbench_lab.figures.images import Group, Plane, Points, Row, planes_figure, strips_figure
from robustbench_lab.storage.files import read_arrays
from robustbench_lab.storage.records import EXAMPLES_FILE, FEATURES_FILE, PLANE_FILE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table

MOST_ADDED = 600  # added points that one plane shows
MOST_NEIGHBOURS = 100  # images of each class that t-SNE shows
NEEDED = {
    EXAMPLES_FILE: {"index", "x", "delta", "label", "clean_prediction", "prediction"},
    FEATURES_FILE: {"label", "clean", "attacked"},
    PLANE_FILE: {"probability", "points", "labels", "extra", "extra_labels"},
}


def drawn(table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
    """The figure of a table that has one; None where nothing that it shows is measured. Raises LabError for a damaged file."""
    draw = {"curves": _curves, "pictures": _pictures, "planes": _planes, "features": _features}
    measured = any(cell.record is not None for cell in cells)
    return draw[table.figure["kind"]](table, cells, output_root) if table.figure and measured else None


def _curves(table: Table, cells: Sequence[Cell], output_root: Path) -> Figure:
    """A row is a curve, and a column's label a place on the axis."""
    series = []
    for row in table.rows:
        own = [cell for cell in cells if cell.row == row.label]
        points = [(float(cell.column), cell.published) for cell in own if cell.published is not None]
        if row.not_run is not None and not points:
            continue  # nothing of it is left: a profile shows no published figures
        low, high = ([_end(cell, i) for cell in own] for i in (0, 1))
        series.append(Series(row.label, [float(cell.column) for cell in own], [cell.value for cell in own], low, high, points))
    log_x = table.figure.get("scale") == "log"
    return curves_figure([Panel(_subject(table), series)], 1, table.figure["x"], "accuracy, %", _footer(table, cells), log_x)


def _end(cell: Cell, end: int) -> float | None:
    """An end of the interval, which holds the value; at 0 and 100 % rounding may have put it a hair on the wrong side."""
    if cell.interval is None or cell.value is None:
        return None
    return min(cell.interval[0], cell.value) if end == 0 else max(cell.interval[1], cell.value)


def _pictures(table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
    """Beneath the clean images, a row's cells as strips of what its attack made of them."""
    found = {cell.name: arrays for cell in cells if (arrays := _arrays(cell, EXAMPLES_FILE, output_root)) is not None}
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
    return strips_figure(groups, _footer(table, cells))


def _attacked(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.clip(np.round(arrays["x"] + 255 * arrays["delta"].astype(np.float32)), 0, 255).astype(np.uint8)


def _captions(arrays: dict[str, np.ndarray]) -> list[str]:
    """Prediction before and after, and the change's length over the image's, both l2."""
    x = arrays["x"].reshape(len(arrays["x"]), -1).astype(np.float64) / 255
    change = arrays["delta"].reshape(len(x), -1).astype(np.float64)
    sizes = np.linalg.norm(change, axis=1) / np.maximum(np.linalg.norm(x, axis=1), 1e-12)
    both = zip(arrays["clean_prediction"].tolist(), arrays["prediction"].tolist(), sizes.tolist(), strict=True)
    return [f"{before} → {after} {size:.2f}" for before, after, size in both]


def _planes(table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
    """A column is a problem in the plane, and a row a model of each."""
    found = {cell.name: arrays for cell in cells if (arrays := _arrays(cell, PLANE_FILE, output_root)) is not None}
    shown = [row.label for row in table.rows if all(f"{row.label} / {column.label}" in found for column in table.columns)]
    if not shown:
        return None
    problems = [(column.label, [_plane(found[f"{label} / {column.label}"]) for label in shown]) for column in table.columns]
    return planes_figure(problems, shown, MOST_ADDED, _footer(table, cells))


def _plane(arrays: dict[str, np.ndarray]) -> Plane:
    added = Points(arrays["extra"], arrays["extra_labels"]) if len(arrays["extra"]) else None
    return Plane(arrays["probability"], Points(arrays["points"], arrays["labels"]), added)


def _features(table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
    """An evaluation that kept features is a column: one model on one dataset, named after the last of its cells."""
    shown_as = {cell.evaluation.folder(output_root): cell for cell in cells if cell.evaluation is not None}
    kept = {cell.name: arrays for cell in shown_as.values() if (arrays := _arrays(cell, FEATURES_FILE, output_root)) is not None}
    if not kept:
        return None
    attacked, classes = table.figure["attacked"], 1 + max(int(arrays["label"].max()) for arrays in kept.values())
    others = table.reshaped and table.profile == "smoke"  # other images than the file speaks of
    names = (not others and table.figure.get("classes")) or [str(k) for k in range(classes)]
    clouds = [
        Cloud(name, arrays["clean"], arrays["label"], arrays["attacked"][arrays["label"] == attacked]) for name, arrays in kept.items()
    ]
    sizes = ", ".join(f"{size:,}" for size in sorted({len(cloud.clean) for cloud in clouds}))
    shown = f" {sizes} clean test images, and those of one class after the attack; t-SNE of the first {MOST_NEIGHBOURS} of each class."
    return features_figure(clouds, names, attacked, MOST_NEIGHBOURS, _footer(table, cells, shown))


def _arrays(cell: Cell, name: str, output_root: Path) -> dict[str, np.ndarray] | None:
    if cell.evaluation is None or cell.record is None:
        return None
    path = cell.evaluation.folder(output_root) / name
    if not path.exists():
        return None
    arrays = read_arrays(path)
    if missing := sorted(NEEDED[name] - arrays.keys()):
        raise LabError(f"{path} is damaged: it lacks {', '.join(missing)}; evaluate again with force=true")
    return arrays


def _subject(table: Table) -> str:
    """The title without the paper's name and the figure's number."""
    subject = table.title.partition(": ")[2] or table.title
    return subject[0].upper() + subject[1:]


def _footer(table: Table, cells: Sequence[Cell], about: str | None = None) -> str:
    """What it is, how it was made and on how many images; `about` says so where the kind of figure alone does not."""
    sizes = sorted({cell.record["n"] for cell in cells if cell.record})
    profile = "" if table.profile == "paper" else f" PROFILE {table.profile.upper()}: NOT A REPRODUCTION."
    if about is not None:
        return f"{table.title}.{about}{profile}"
    counted = "" if table.figure["kind"] == "planes" else f" n = {', '.join(f'{size:,}' for size in sizes)} test images."
    about = {"curves": " Bands: 95 % intervals over the images, one trained model each.",
             "pictures": " Beneath each picture: prediction before and after, and the length of the change over that of the image (l2).",
             "planes": ""}[table.figure["kind"]]  # fmt: skip
    return f"{table.title}.{counted}{about}{profile}"
