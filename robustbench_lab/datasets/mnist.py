"""MNIST: handwritten digits.

Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition"; http://yann.lecun.com/exdb/mnist/.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from robustbench_lab.datasets.base import ImageSet, Split
from robustbench_lab.datasets.published import Published, has_md5, torchvision_datasets

UNPACKED = {  # MD5: torchvision's are of the archives
    "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
}


@dataclass(frozen=True, kw_only=True)
class MNIST(Published):
    """uint8 [1, 28, 28], 60,000 for training and 10,000 for testing, from the unpacked files in `MNIST/raw`.

    The files are compared with MD5 sums of what the archives hold: Fashion-MNIST, for one, has files of the same names.
    """

    name: ClassVar[str] = "mnist"
    has_classes: ClassVar[int | None] = 10

    def _files(self, split: Split) -> Mapping[str, str | None]:
        names = [archive.removesuffix(".gz") for archive, _ in torchvision_datasets().MNIST.resources]
        return {f"MNIST/raw/{name}": UNPACKED[name] for name in names}

    def _fetch(self, split: Split, folder: Path) -> None:
        torchvision_datasets().MNIST(folder, download=True)

    def _parse(self, split: Split, root: Path) -> ImageSet:
        # Torchvision's parsers, but not its class: that does not say which file is damaged, and reads an old
        # processed/*.pt instead of these files where there is one.
        idx = torchvision_datasets().mnist
        stem = root / "MNIST" / "raw" / ("train" if split == "train" else "t10k")
        for name, md5 in UNPACKED.items():
            if name.startswith(stem.name) and not has_md5(stem.with_name(name), md5):
                raise ValueError(f"{name} is another file than MNIST's")
        images = idx.read_image_file(f"{stem}-images-idx3-ubyte")
        labels = idx.read_label_file(f"{stem}-labels-idx1-ubyte")
        return ImageSet(images.unsqueeze(1), labels, torch.arange(len(labels)))
