"""MNIST: handwritten digits.

Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition"; http://yann.lecun.com/exdb/mnist/.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet, Split
from robustbench_lab.datasets.published import Published, torchvision_datasets
from robustbench_lab.errors import LabError


@dataclass(frozen=True, kw_only=True)
class MNIST(Published):
    """uint8 [1, 28, 28], 60,000 for training and 10,000 for testing, from the unpacked files in `MNIST/raw`.

    Limits: MD5 sums are published for the archives only, so altered pixels in an unpacked file go unnoticed.
    """

    name: ClassVar[str] = "mnist"

    def _files(self, split: Split) -> Mapping[str, str | None]:
        names = [archive.removesuffix(".gz") for archive, _ in torchvision_datasets().MNIST.resources]
        return {f"MNIST/raw/{name}": None for name in names}

    def _fetch(self, split: Split, folder: Path) -> None:
        torchvision_datasets().MNIST(folder, download=True)

    def _parse(self, split: Split, root: Path) -> ImageSet:
        # Torchvision's parsers, but not its class: that does not say which file is damaged, and reads an old
        # processed/*.pt instead of these files where there is one.
        idx = torchvision_datasets().mnist
        stem = root / "MNIST" / "raw" / ("train" if split == "train" else "t10k")
        images = _parsed(idx.read_image_file, f"{stem}-images-idx3-ubyte")
        labels = _parsed(idx.read_label_file, f"{stem}-labels-idx1-ubyte")
        if len(images) != len(labels):
            raise LabError(f"{stem}-images-idx3-ubyte holds {len(images)} images, its labels file {len(labels)} labels")
        return ImageSet(images.unsqueeze(1), labels, torch.arange(len(labels)))


def _parsed(read: Callable[[str], Tensor], path: str) -> Tensor:
    try:
        return read(path)
    except Exception as error:
        raise LabError(f"{path} is damaged ({error}); delete it and run again with data.download=true") from error
