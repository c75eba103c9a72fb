"""CIFAR-10: colour photographs of ten kinds of things.

Source: Krizhevsky 2009, "Learning multiple layers of features from tiny images";
https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from robustbench_lab.datasets.base import ImageSet, Split
from robustbench_lab.datasets.published import Published, torchvision_datasets


@dataclass(frozen=True, kw_only=True)
class CIFAR10(Published):
    """uint8 [3, 32, 32], 50,000 for training and 10,000 for testing, from `cifar-10-batches-py` under the data root."""

    name: ClassVar[str] = "cifar10"
    has_classes: ClassVar[int | None] = 10

    def _files(self, split: Split) -> Mapping[str, str | None]:
        known = torchvision_datasets().CIFAR10
        entries = [*known.train_list, *known.test_list, (known.meta["filename"], known.meta["md5"])]
        return {f"{known.base_folder}/{name}": md5 for name, md5 in entries}

    def _fetch(self, split: Split, folder: Path) -> None:
        torchvision_datasets().CIFAR10(folder, download=True)

    def _parse(self, split: Split, root: Path) -> ImageSet:
        # The files are pickles. What makes reading them safe is that the constructor compares each with its published
        # MD5 before it opens one, so this check must never be turned off.
        found = torchvision_datasets().CIFAR10(root, train=split == "train", download=False)
        images = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))  # no copy: torchvision's NHWC is a view of NCHW
        labels = torch.tensor(found.targets, dtype=torch.int64)
        return ImageSet(torch.from_numpy(images), labels, torch.arange(len(labels)))
