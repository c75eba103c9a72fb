"""SVHN, cropped digits: house numbers photographed from the street.

Source: Netzer et al. 2011, "Reading digits in natural images with unsupervised feature learning";
http://ufldl.stanford.edu/housenumbers/ (format 2). The digit 0 has label 0 here, as in torchvision; in the files it is
10.
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
class SVHN(Published):
    """uint8 [3, 32, 32], 73,257 for training and 26,032 for testing, from `<split>_32x32.mat` in the data root."""

    name: ClassVar[str] = "svhn"
    has_classes: ClassVar[int | None] = 10

    def _files(self, split: Split) -> Mapping[str, str | None]:
        _, name, md5 = torchvision_datasets().SVHN.split_list[split]
        return {name: md5}

    def _fetch(self, split: Split, folder: Path) -> None:
        torchvision_datasets().SVHN(folder, split=split, download=True)

    def _parse(self, split: Split, root: Path) -> ImageSet:
        found = torchvision_datasets().SVHN(root, split=split, download=False)  # compares the MD5
        images = torch.from_numpy(np.ascontiguousarray(found.data))
        labels = torch.from_numpy(np.asarray(found.labels, dtype=np.int64))
        return ImageSet(images, labels, torch.arange(len(labels)))
