"""Tiny-ImageNet: photographs of 200 of ImageNet's classes, made small.

Source: Stanford's course CS231n; http://cs231n.stanford.edu/tiny-imagenet-200.zip. The labels of its test images are not public: as
everybody does, we test on its validation images.
"""

from __future__ import annotations

import io
import os
from collections.abc import Container, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import ClassVar
from zipfile import ZipFile

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet, Split, StreamedImageSet
from robustbench_lab.datasets.published import Published, has_md5, torchvision_datasets
from robustbench_lab.errors import LabError

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
ARCHIVE, MD5 = "tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de"
TOP, SHAPE = "tiny-imagenet-200", (3, 64, 64)
ANNOTATIONS = f"{TOP}/val/val_annotations.txt"  # a line an image: name, class and a box, between tabs


@dataclass(frozen=True, kw_only=True)
class TinyImageNet(Published):
    """uint8 [3, 64, 64], 100,000 for training (500 a class) and 10,000 for testing (50 a class), from `tiny-imagenet-200.zip` in the data
    root, which is not unpacked. The test split is the validation split.

    Labels follow the sorted names of the classes (WordNet's, `n01443537`). Training images are in the order of class and name, as
    torchvision's ImageFolder has them; test images in that of `val_annotations.txt`. Grey pictures, of which there are some, become colour.
    They are decoded once, when they are loaded, and held: 1.2 GB for all of the training images.
    Limits: a folder that was unpacked already is not read, because only the archive has a published checksum.
    """

    name: ClassVar[str] = "tiny_imagenet"
    has_classes: ClassVar[int | None] = 200

    def load(self, split: Split, *, root: Path, download: bool, workers: int) -> ImageSet:
        images = super().load(split, root=root, download=download, workers=workers)  # a subset is taken before decoding
        assert isinstance(images, StreamedImageSet)
        images.workers = workers
        return images.in_memory()

    def _files(self, split: Split) -> Mapping[str, str | None]:
        return {ARCHIVE: MD5}

    def _fetch(self, split: Split, folder: Path) -> None:
        torchvision_datasets().utils.download_url(URL, str(folder), ARCHIVE, MD5)

    def _parse(self, split: Split, root: Path) -> ImageSet:
        path = root / ARCHIVE
        if not has_md5(path, MD5):
            raise ValueError("it is another file than Tiny-ImageNet's")
        with ZipFile(path) as archive:
            files = [name.split("/")[1:] for name in archive.namelist() if name.startswith(f"{TOP}/") and not name.endswith("/")]
            train = sorted((file[1], file[3]) for file in files if file[0] == "train" and file[2:3] == ["images"])
            label_of = {name: label for label, name in enumerate(sorted({name for name, _ in train}))}
            if len(label_of) != self.classes:
                raise ValueError(f"it holds training images of {len(label_of)} classes in place of {self.classes}")
            if split == "train":
                names, labels = [f"{TOP}/train/{name}/images/{file}" for name, file in train], [label_of[name] for name, _ in train]
            else:
                lines = [line.split("\t")[:2] for line in archive.read(ANNOTATIONS).decode().splitlines()]
                _check_lines(lines, {file[2] for file in files if file[:2] == ["val", "images"]}, label_of)
                names, labels = [f"{TOP}/val/images/{file}" for file, _ in lines], [label_of[name] for _, name in lines]
        ids = torch.arange(len(names))
        return StreamedImageSet(partial(_decoded, str(path), names), SHAPE, torch.tensor(labels), ids, workers=0)


def _check_lines(lines: Sequence[Sequence[str]], files: Set[str], classes: Container[str]) -> None:
    """Raises ValueError unless each of the files has its line, and each line its file and a class that there is."""
    if odd := sorted({line[0] for line in lines} ^ files):
        raise ValueError(f"{odd[0]} is in one of val/images and val_annotations.txt alone")
    if strange := [line for line in lines if len(line) < 2 or line[1] not in classes]:
        raise ValueError(f"val_annotations.txt: {strange[0]} names no class that train has")


def _decoded(path: str, names: Sequence[str], index: int) -> Tensor:
    """Image `index`, uint8 [3, H, W]. Raises LabError, naming it, where it cannot be read."""
    from PIL import Image

    try:
        picture = Image.open(io.BytesIO(_opened(path, os.getpid()).read(names[index]))).convert("RGB")
    except Exception as error:
        raise LabError(f"{path}: {names[index]} cannot be read as an image ({error}); delete the archive and download it again") from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


@lru_cache(maxsize=1)
def _opened(path: str, process: int) -> ZipFile:
    """One for each process: those that share a file share the place in it that is read next."""
    return ZipFile(path)
