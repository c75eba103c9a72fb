"""Digits: the small handwritten digits that come with scikit-learn, so that no download is needed.

Source: Alpaydin and Kaynak 1998, "Optical recognition of handwritten digits" (UCI), its test part;
`sklearn.datasets.load_digits`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch

from robustbench_lab.datasets.base import Dataset, ImageSet, Split
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Seed, above, below


@dataclass(frozen=True, kw_only=True)
class Digits(Dataset):
    """uint8 [1, 8, 8]: 1,797 images of 17 grey levels 0..16, level v stored as round(255 v / 16).

    The source has no split: `test_fraction` of the images, stratified by class and drawn with `split_seed`, are the
    test split; both splits keep the source's order.
    """

    name: ClassVar[str] = "digits"
    has_classes: ClassVar[int | None] = 10

    split_seed: Seed
    test_fraction: Annotated[float, above(0), below(1)]

    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> ImageSet:
        from sklearn.datasets import load_digits

        levels, labels = load_digits(return_X_y=True)
        chosen = self._indices(split, labels)
        pixels = np.round(levels[chosen] * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        return ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels[chosen].astype(np.int64)), torch.arange(len(chosen)))

    def _indices(self, split: Split, labels: np.ndarray) -> np.ndarray:
        """Where in scikit-learn's 1,797 images this split's are, ascending."""
        from sklearn.model_selection import train_test_split

        try:
            train, test = train_test_split(
                np.arange(len(labels)), test_size=self.test_fraction, stratify=labels, random_state=self.split_seed
            )
        except ValueError as error:  # fewer images on one side than there are classes
            expected = f"a share with which both splits hold every class ({error})"
            raise LabError(f"dataset.test_fraction: expected {expected}, got {self.test_fraction}") from error
        return np.sort(train if split == "train" else test)
