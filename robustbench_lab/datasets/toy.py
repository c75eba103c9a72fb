"""Toy problems in the plane, each point an "image" of two one-pixel channels.

Source: `sklearn.datasets.make_circles` and `make_moons`.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from robustbench_lab.datasets.base import Dataset, ImageSet, Split
from robustbench_lab.knobs import NotNegative, ShareBelowOne, at_least, below


@dataclass(frozen=True, kw_only=True)
class Plane(Dataset):
    """Two classes of points in the plane, float32 [2, 1, 1] in [0, 1]: `samples` in each split.

    A point p becomes 0.5 + (p - centre) / (2 reach), clipped to [0, 1]: the square of half-width `reach` around
    `centre`, fixed for each problem and the same for both axes, so that a ball stays round. `noise` is in units of p.
    The training split is drawn with seed 2 `seed`, the test split with 2 `seed` + 1, so that no two splits of any seeds
    share a draw.
    """

    centre: ClassVar[tuple[float, float]]
    reach: ClassVar[float]

    samples: Annotated[int, at_least(2)]
    noise: NotNegative
    seed: Annotated[int, at_least(0), below(2**31)]

    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> ImageSet:
        points, labels = self._draw(2 * self.seed + (split == "test"))
        pixels = np.clip(0.5 + (points - self.centre) / (2 * self.reach), 0, 1).astype(np.float32)
        return ImageSet(
            torch.from_numpy(pixels).reshape(-1, 2, 1, 1),
            torch.from_numpy(labels.astype(np.int64)),
            torch.arange(len(labels)),
        )

    @abstractmethod
    def _draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Points [samples, 2] and labels [samples]."""


@dataclass(frozen=True, kw_only=True)
class Circles(Plane):
    """A circle of radius 1 (label 0) around one of radius `factor` (label 1); pixels cover [-1.5, 1.5] on both axes."""

    name: ClassVar[str] = "circles"
    has_classes: ClassVar[int | None] = 2
    centre: ClassVar[tuple[float, float]] = (0.0, 0.0)
    reach: ClassVar[float] = 1.5

    factor: ShareBelowOne

    def _draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import make_circles

        return make_circles(n_samples=self.samples, noise=self.noise, factor=self.factor, random_state=seed)


@dataclass(frozen=True, kw_only=True)
class Moons(Plane):
    """Two interleaved half circles of radius 1; pixels cover [-1.5, 2.5] x [-1.75, 2.25]."""

    name: ClassVar[str] = "moons"
    has_classes: ClassVar[int | None] = 2
    centre: ClassVar[tuple[float, float]] = (0.5, 0.25)
    reach: ClassVar[float] = 2.0

    def _draw(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import make_moons

        return make_moons(n_samples=self.samples, noise=self.noise, random_state=seed)
