"""Anybody's images: a folder with one sub-folder for each class, under `train` and under `test`."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.datasets.base import Dataset, ImageSet, Split, StreamedImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Bound, Count, at_least, one_of, require

_SPLITS: tuple[Split, ...] = ("train", "test")


@dataclass(frozen=True, kw_only=True)
class ImageFolder(Dataset):
    """uint8 [channels, size, size] from `<path>/<split>/<class>/*`, with labels in the sorted order of the class names.

    `path` is absolute or relative to the data root. The shorter side is resized to `resize` pixels (bilinear,
    antialiased) and the centre cut out; channels=3 reads colour, channels=1 grey. Images that take at most
    `in_memory_limit` bytes are decoded once and held, others each time they are used. Hidden files are skipped; any
    other file must be an image.
    Limits: pictures of more than 8 bits a channel are refused, for they would be cut off; EXIF rotation is not applied.
    Errors: LabError for a missing folder, classes other than the config says, or an unreadable file, each by its name.
    """

    name: ClassVar[str] = "image_folder"

    channels: Annotated[int, one_of((1, 3)), "grey or colour"]
    path: Annotated[str, Bound("that names a folder", bool)]
    resize: Count
    in_memory_limit: Annotated[int, at_least(0)]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.resize >= self.size, "resize", f"at least dataset.size={self.size}", self.resize)

    def load(self, split: Split, *, root: Path, download: bool, workers: int) -> ImageSet:
        images = super().load(split, root=root, download=download, workers=workers)  # a subset is taken before decoding
        fits = len(images) * self.channels * self.size**2 <= self.in_memory_limit
        return images.in_memory() if fits and isinstance(images, StreamedImageSet) else images

    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> StreamedImageSet:
        base = root / Path(self.path).expanduser()  # an absolute path stays itself
        names = self._class_names(base)
        files: list[Path] = []
        labels: list[int] = []
        for label, name in enumerate(names):
            found = _visible(base / split / name)
            if not found:
                raise LabError(f"{base / split / name} holds no images; remove the class or add some")
            files += found
            labels += [label] * len(found)
        decode = partial(_decoded, [str(file) for file in files], self.channels, self.resize, self.size)
        shape = (self.channels, self.size, self.size)
        return StreamedImageSet(decode, shape, torch.tensor(labels), torch.arange(len(files)), workers=workers)

    def _class_names(self, base: Path) -> list[str]:
        for folder in (base, base / "train", base / "test"):
            if not folder.is_dir():
                raise LabError(
                    f"dataset {self.name!r} is not there (looked for the folder {folder}); dataset.path={self.path} "
                    "must hold train/<class>/ and test/<class>/, and is absolute or relative to data.root"
                )
        train, test = ([entry.name for entry in _visible(base / split) if entry.is_dir()] for split in _SPLITS)
        if train != test:
            raise LabError(f"{base} has the classes {train} under train, but {test} under test; they must be the same")
        if len(train) != self.classes:
            raise LabError(f"dataset.classes={self.classes}, but {base} has {len(train)} classes: {train}")
        return train


def _visible(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _decoded(files: list[str], channels: int, resize: int, size: int, index: int) -> Tensor:
    """Image `index`, uint8 [channels, size, size]."""
    from PIL import Image

    try:
        with Image.open(files[index]) as file:
            if file.mode.startswith(("I", "F")):
                raise ValueError(f"pixels of mode {file.mode}, more than 8 bits a channel")
            picture = file.convert("L" if channels == 1 else "RGB")
        # Rounded as torchvision's Resize and CenterCrop do, so that its published models see what they were trained on.
        width, height = (int(resize * side / min(picture.size)) for side in picture.size)
        left, top = (round((side - size) / 2) for side in (width, height))
        picture = picture.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    except Exception as error:
        raise LabError(f"{files[index]} cannot be read as an image ({error}); repair or remove it") from error
    return torch.from_numpy(np.array(picture)).reshape(size, size, channels).permute(2, 0, 1).contiguous()
