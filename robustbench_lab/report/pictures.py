"""Adversarial examples as pictures: clean, adversarial, and their difference magnified, each a PNG as a data URI."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from robustbench_lab.errors import LabError

SMALLEST = 4  # pixels: the toy datasets' points are no pictures
CLASSES = {"cifar10": ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")}


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
    clean: str
    adversarial: str
    difference: str
    factor: float | None
    largest: float


def examples_of(arrays: Mapping[str, np.ndarray], dataset: str, most: int) -> list[Example]:
    """The first `most` of a file's examples; none where an image is too small to be one. Raises LabError for arrays that do not fit."""
    try:
        x, delta = arrays["x"], arrays["delta"].astype(np.float32)
        if x.dtype != np.uint8 or x.ndim != 4 or delta.shape != x.shape:
            raise ValueError(f"x {x.dtype}{list(x.shape)}, delta {list(delta.shape)}")
        if min(x.shape[2:]) < SMALLEST or x.shape[1] not in (1, 3):
            return []
        columns = zip(*(arrays[name].tolist() for name in ("index", "label", "clean_prediction", "prediction")), strict=True)
        return [_example(numbers, x[i], delta[i], dataset) for i, numbers in enumerate(list(columns)[:most])]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise LabError(f"expected index, x, delta, label, clean_prediction and prediction of the same images, got {error!r}") from error


def _example(numbers: tuple[int, ...], x: np.ndarray, delta: np.ndarray, dataset: str) -> Example:
    """numbers: index, label, clean and attacked prediction; x: uint8 [C, H, W]; delta: fractions of the pixel range [C, H, W]."""
    index, label, before, after = numbers
    largest = float(np.abs(delta).max())
    factor = 0.5 / largest if largest > 0 else None
    names = CLASSES.get(dataset, ())

    def name(number: int) -> str:
        return names[number] if 0 <= number < len(names) else str(number)

    return Example(
        index, name(label), name(before), name(after), before == label, after == label,
        _png(x), _png(x + 255 * delta), _png(255 * (0.5 + delta * (factor or 0))), factor, largest,
    )  # fmt: skip


def _png(pixels: np.ndarray) -> str:
    """pixels: [C, H, W] in [0, 255]."""
    from PIL import Image

    shown = np.clip(np.round(pixels), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(shown[:, :, 0] if shown.shape[2] == 1 else shown).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
