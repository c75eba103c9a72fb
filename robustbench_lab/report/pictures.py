"""Pictures as files beside the page, each named after what it shows: papers' figures, and adversarial examples before and after."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import drawn
from robustbench_lab.figures.paper import png_of
from robustbench_lab.settings.conf import PACKAGE
from robustbench_lab.storage.files import reading, remove, storing, sweep, to_json, write_bytes
from robustbench_lab.tables.cells import Cell
from robustbench_lab.tables.drawing import kind_of
from robustbench_lab.tables.grid import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = "pictures"
DPI = 150  # of papers' figures: half as many pixels again as a desktop shows, three times those of a phone
DRAWN_WITH = ("matplotlib", "numpy", "scikit-learn")
SMALLEST = 4  # pixels: the toy datasets' points are no pictures
CLASSES = {"cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")}


@dataclass(frozen=True)
class Picture:
    """A file's address, from the page, and its size in pixels."""

    address: str
    width: int
    height: int


class Album:
    """The folder of pictures beside a page. What is in it already is not drawn again; what a page no longer shows is taken away."""

    def __init__(self, beside: Path) -> None:
        self.folder = beside / FOLDER
        self._shown: set[str] = set()

    def of(self, name: str, draw: Callable[[], bytes | None]) -> Picture | None:
        """The picture of this name, which tells its content: drawn, as PNG, unless it is there; None where there is nothing to draw."""
        path = self.folder / f"{name}.png"
        if (size := _size_of(path)) is None:
            content = draw()
            if content is None:
                return None
            write_bytes(path, content)
            size = _size_of(path)
            assert size is not None, f"{path} was written just now"
        self._shown.add(path.name)
        return Picture(f"{FOLDER}/{path.name}", *size)

    def take_away_others(self) -> None:
        with storing(self.folder):
            for path in self.folder.glob("*.png"):
                if path.name not in self._shown and not path.is_dir():
                    remove(path)
        sweep(self.folder)


def _size_of(path: Path) -> tuple[int, int] | None:
    """Width and height of a PNG; None where there is none."""
    from PIL import Image

    try:
        with reading(path), Image.open(path) as image:
            return image.size
    except LabError:  # none yet, or a damaged one: it is drawn
        return None


def figure_of(table: Table, cells: Sequence[Cell], output_root: Path, album: Album) -> Picture | None:
    """The paper's figure of a table that is drawn as one. Raises LabError for a damaged file."""
    if not table.figure:
        return None

    def draw() -> bytes | None:
        found = drawn(table, cells, output_root)
        return None if found is None else _small(found)

    return album.of(f"figure-{_content(table, cells, output_root)}", draw)


def _small(figure: Figure) -> bytes:
    """Letters as wide as they were when the figure was laid out: fitted to fewer dots, they would be wider."""
    import matplotlib

    with matplotlib.rc_context({"text.hinting": "none"}):
        return png_of(figure, DPI)


def _content(table: Table, cells: Sequence[Cell], output_root: Path) -> str:
    """A digest of everything that a table's figure depends on: the table, its records and their arrays, and what draws it."""
    digest = hashlib.blake2b(digest_size=8)
    code = [path.read_bytes() for path in sorted((PACKAGE / "figures").glob("*.py"))]
    told = {"table": asdict(table), "cells": [{"fields": cell.fields(), "record": cell.record} for cell in cells], "dpi": DPI}
    for part in (*code, *(version(package).encode() for package in DRAWN_WITH), to_json(told).encode(errors="backslashreplace")):
        digest.update(hashlib.blake2b(part).digest())
    for cell in cells:
        if cell.evaluation is not None and cell.record is not None:
            for name in kind_of(table.figure).files:
                arrays = cell.evaluation.at(output_root).arrays(name) or {}
                for key, array in sorted(arrays.items()):
                    digest.update(hashlib.blake2b(f"{key}{array.dtype}{array.shape}".encode() + array.tobytes()).digest())
    return digest.hexdigest()


@dataclass(frozen=True)
class Example:
    """One test image before and after the attack.

    factor: what the difference is multiplied by to fill the range around mid grey; None where nothing changed. largest: its largest entry,
    as a fraction of the pixel range.
    """

    index: int
    label: str
    clean_prediction: str
    prediction: str
    clean_right: bool
    right: bool
    clean: Picture
    adversarial: Picture
    difference: Picture
    factor: float | None
    largest: float


def examples_of(arrays: Mapping[str, np.ndarray], dataset: str, most: int, album: Album) -> list[Example]:
    """The first `most` of a file's examples; none where an image is too small to be one. Raises LabError for arrays that do not fit."""
    try:
        x, delta = arrays["x"], arrays["delta"].astype(np.float32)
        if x.dtype != np.uint8 or x.ndim != 4 or delta.shape != x.shape:
            raise ValueError(f"x {x.dtype}{list(x.shape)}, delta {list(delta.shape)}")
        if min(x.shape[2:]) < SMALLEST or x.shape[1] not in (1, 3):
            return []
        columns = zip(*(arrays[name].tolist() for name in ("index", "label", "clean_prediction", "prediction")), strict=True)
        return [_example(numbers, x[i], delta[i], dataset, album) for i, numbers in enumerate(list(columns)[:most])]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise LabError(f"expected index, x, delta, label, clean_prediction and prediction of the same images, got {error!r}") from error


def _example(numbers: tuple[int, ...], x: np.ndarray, delta: np.ndarray, dataset: str, album: Album) -> Example:
    """numbers: index, label, clean and attacked prediction; x: uint8 [C, H, W]; delta: fractions of the pixel range [C, H, W]."""
    index, label, before, after = numbers
    largest = float(np.abs(delta).max())
    factor = 0.5 / largest if largest > 0 else None
    names = CLASSES.get(dataset, ())

    def name(number: int) -> str:
        return names[number] if 0 <= number < len(names) else str(number)

    clean, adversarial, difference = (_shown(pixels, album) for pixels in (x, x + 255 * delta, 255 * (0.5 + delta * (factor or 0))))
    return Example(
        index, name(label), name(before), name(after), before == label, after == label, clean, adversarial, difference, factor, largest
    )


def _shown(pixels: np.ndarray, album: Album) -> Picture:
    """pixels: [C, H, W] in [0, 255]."""
    from PIL import Image

    shown = np.clip(np.round(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)

    def draw() -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(shown[:, :, 0] if shown.shape[2] == 1 else shown).save(buffer, "PNG", optimize=True)
        return buffer.getvalue()

    name = hashlib.blake2b(repr(shown.shape).encode() + shown.tobytes(), digest_size=8).hexdigest()
    picture = album.of(name, draw)
    assert picture is not None, "there are always pixels to draw"
    return picture
