"""What an evaluation keeps of its images, for pictures and tables: the contract of a keeper."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended


@dataclass(frozen=True)
class Evaluated:
    """What is evaluated, as far as a keeper may look: the defended model, its defense, the test images, the evaluation's seed; and, where
    asked for, the images that the model was trained on, its teacher (None without one; both may raise LabError) and the training's seed.
    pictures: of images [B, C, H, W] as the model takes them, and their ids, the same in the pixel range, or beyond it."""

    defended: Defended
    defense: Defense
    data: ImageSet
    seed: int
    train: Callable[[], ImageSet]
    teacher: Callable[[], Defended | None]
    training_seed: int
    pictures: Callable[[Tensor, Tensor], Tensor] = lambda x, ids: x


@dataclass(frozen=True)
class Shown:
    """A batch of images and what became of them.

    rows int64 [B]: their places in the split, ascending; ids, y int64 [B]; x, x_adv [B, C, H, W]: x_adv is of the attack that the verdict
    rests on, x itself where none was attacked; clean_prediction, prediction int64 [B]: the defended model's answers (of several draws, the
    first).
    """

    rows: np.ndarray
    ids: Tensor
    y: Tensor
    x: Tensor
    x_adv: Tensor
    clean_prediction: Tensor
    prediction: Tensor


class Keeper(ABC):
    """One file of an evaluation, filled batch by batch; what it holds survives an interruption with the outcome.

    name: of its arrays in a partial outcome. file: what it is written to.
    """

    name: ClassVar[str]
    file: ClassVar[str]

    def begin(self, evaluated: Evaluated) -> None:
        """Once, before the first image, also where an interrupted evaluation goes on."""
        self.evaluated = evaluated
        self.arrays = self.empty()

    @abstractmethod
    def empty(self) -> dict[str, np.ndarray]:
        """What is in the file before the first image: zeros, or whatever needs no batch. A file without arrays is not written."""

    def keep(self, shown: Shown) -> None:  # noqa: B027 - some need no batch
        """Take what is wanted of a batch, the next one in the order of the split."""

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what an interrupted evaluation had kept. Raises LabError where these are other arrays."""
        shapes = [{name: (array.shape, array.dtype) for name, array in some.items()} for some in (arrays, self.arrays)]
        if shapes[0] != shapes[1]:
            raise LabError(f"{self.file}: the partial outcome holds other arrays than are kept now")
        self.arrays = dict(arrays)
