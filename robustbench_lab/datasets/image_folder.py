"""Anybody's images: a folder with one sub-folder for each class, under `train` and under `test`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from robustbench_lab.datasets import pictures
from robustbench_lab.datasets.base import Dataset, ImageSet, Split, StreamedImageSet
from robustbench_lab.errors import LabError, MissingFiles
from robustbench_lab.knobs import Bound, Count, at_least, at_most, one_of, require
from robustbench_lab.storage.image_files import behind, composed, entries

_SPLITS: tuple[Split, ...] = ("train", "test")
SHOWN = 5  # class names that an error tells


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """uint8 [channels, size, size] from `<path>/<split>/<class>/*`, with labels in the sorted order of the class names.

    `path` is absolute or relative to the data root. The shorter side is resized to `resize` pixels (bilinear,
    antialiased) and the centre cut out; channels=3 reads colour, channels=1 grey. `background` is the grey level, 0..255,
    behind transparent pixels. Images that take at most `in_memory_limit` bytes are decoded once and held, others each
    time they are used. Hidden files are skipped; any other file must be an image.
    Limits: pictures of more than 8 bits a channel are refused, for they would be cut off, and, without `background`,
    pictures that one can see through; of several pictures in one file (an animation, pages) the first one counts; EXIF
    rotation and colour profiles are not applied, as torchvision does not either.
    Errors: LabError for a missing folder, classes other than the config says, or an unreadable file, each by its name.
    """

    name: ClassVar[str] = "image_folder"

    channels: Annotated[int, one_of((1, 3)), "grey or colour"]
    path: Annotated[str, Bound("that names a folder", bool)]
    resize: Count
    background: Annotated[int, at_least(0), at_most(255)] | None
    in_memory_limit: Annotated[int, at_least(0)]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.resize >= self.size, "resize", f"at least dataset.size={self.size}", self.resize)

    def load(self, split: Split, *, root: Path, download: bool, workers: int) -> ImageSet:
        images = super().load(split, root=root, download=download, workers=workers)  # a subset is taken before decoding
        fits = len(images) * self.channels * self.size**2 <= self.in_memory_limit
        return images.in_memory() if fits and isinstance(images, StreamedImageSet) else images

    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> StreamedImageSet:
        base = behind(root, self.path)
        files: list[Path] = []
        labels: list[int] = []
        for label, folder in enumerate(self._classes(base)[split]):
            found = entries(folder)
            if not found:
                raise LabError(f"{folder} holds no images; remove the class or add some")
            files += found
            labels += [label] * len(found)
        decode = partial(_decoded, [str(file) for file in files], self.channels, self.resize, self.size, self.background)
        shape = (self.channels, self.size, self.size)
        return StreamedImageSet(decode, shape, torch.tensor(labels), torch.arange(len(files)), workers=workers)

    def _classes(self, base: Path) -> dict[Split, list[Path]]:
        """The folders of the classes in each split, in the order of the labels."""
        for folder in (base, base / "train", base / "test"):
            if not os.path.isdir(folder):  # unlike Path.is_dir, no error for a name that is too long
                raise MissingFiles(
                    f"dataset {self.name!r} is not there (looked for the folder {folder}); dataset.path={self.path} "
                    "must hold train/<class>/ and test/<class>/, and is absolute or relative to data.root"
                )
        found: dict[Split, list[Path]] = {split: [entry for entry in entries(base / split) if entry.is_dir()] for split in _SPLITS}
        names = {split: [composed(folder.name) for folder in folders] for split, folders in found.items()}
        for split, called in names.items():
            if twice := sorted({name for name, following in pairwise(called) if name == following}):
                raise LabError(f"{base / split} has two folders for each of {_some(twice)}, whose names only look the same; merge them")
        if names["train"] != names["test"]:
            alone = {split: sorted(set(names[split]) - set(names[other])) for split, other in (_SPLITS, _SPLITS[::-1])}
            told = " and ".join(f"{_some(only)} under {split} alone" for split, only in alone.items() if only)
            raise LabError(f"{base} has the classes {told}; both must have the same classes")
        if len(names["train"]) != self.classes:
            raise LabError(f"dataset.classes={self.classes}, but {base} has {len(names['train'])} classes: {_some(names['train'])}")
        return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{list(names[:SHOWN])}{more}"


def _decoded(files: list[str], channels: int, resize: int, size: int, background: int | None, index: int) -> Tensor:
    """Image `index`, uint8 [channels, size, size]."""
    return pictures.read(files[index], channels, resize, size, background)
