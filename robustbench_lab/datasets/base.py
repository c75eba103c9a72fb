"""What a dataset is: a config that reads its images, and the sets of images that training and evaluation consume.

Images leave here as float32 [B, C, H, W] in [0, 1], unnormalised: normalisation is the first layer of the model. Which
one it is, stands in the dataset's config (`normalise`) and is none of this class's business.
"""

import multiprocessing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from tqdm import tqdm

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Count, Knobs, Seed, at_least, at_most, require

Split = Literal["train", "test"]

STARTED = multiprocessing.get_all_start_methods()[0]  # how Python starts processes here; a worker of joblib has a way of its own


class ImageSet:
    """Labelled images held in one tensor, on one device.

    `images` uint8 [N, C, H, W] in 0..255 or float32 in [0, 1]; `labels` int64 [N]; `ids` int64 [N], each image's index
    in the full split, which subsets keep. Errors: LabError where the three do not fit together, or pixels lie outside
    [0, 1].
    """

    def __init__(self, images: Tensor, labels: Tensor, ids: Tensor) -> None:
        if images.ndim != 4 or images.dtype not in (torch.uint8, torch.float32):
            raise LabError(f"images must be uint8 or float32 [N, C, H, W], not {images.dtype} {list(images.shape)}")
        if images.dtype == torch.float32 and images.numel():
            low, high = (bound.item() for bound in images.aminmax())  # NaN spreads to both
            if not (low >= 0 and high <= 1):
                raise LabError(f"images outside [0, 1]: their values span {low:g} to {high:g}")
        _check_labels_and_ids(len(images), labels, ids)
        self.images, self.labels, self.ids = images, labels, ids

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """[C, H, W] of one image."""
        return tuple(self.images.shape[1:])

    @property
    def device(self) -> torch.device:
        return self.labels.device

    def to(self, device: torch.device | str) -> "ImageSet":
        return ImageSet(self.images.to(device), self.labels.to(device), self.ids.to(device))

    def subset(self, positions: Tensor) -> "ImageSet":
        """The images at `positions`, int64 [M], in that order."""
        chosen = positions.to(self.device)
        return ImageSet(*(part.index_select(0, chosen) for part in (self.images, self.labels, self.ids)))

    def in_memory(self) -> "ImageSet":
        """The same images in one tensor."""
        return self

    def followed_by(self, more: "ImageSet") -> "ImageSet":
        """These images, and after them `more` of the same shape, in one tensor: float32 unless both are uint8."""
        kinds = {part.images.dtype for part in (self, more)}
        images = [part.images if len(kinds) == 1 else _as_float(part.images) for part in (self, more)]
        return ImageSet(torch.cat(images), torch.cat([self.labels, more.labels]), torch.cat([self.ids, more.ids]))

    def batches(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """`x` float32 [B, C, H, W] in [0, 1], `y` int64 [B] and `ids` int64 [B], in the order of `positions` int64 [M].

        The last batch may be smaller. Nothing is drawn at random: who shuffles, shuffles `positions`.
        """
        for chunk in _chunks(positions.to(self.device), batch_size):
            x = _as_float(self.images.index_select(0, chunk))
            yield x, self.labels.index_select(0, chunk), self.ids.index_select(0, chunk)


class StreamedImageSet(ImageSet):
    """Labelled images that do not fit in memory: decoded when they are asked for, by `workers` processes.

    `decode(id)` gives image `id` of the full split as uint8 [C, H, W] of the given `shape`, on the CPU; it must be
    picklable. `labels` and `ids` are as in ImageSet and need no decoding; there is no `images`. Errors: LabError from
    `decode`, as it was raised, or where an image has another shape.
    """

    def __init__(self, decode: Callable[[int], Tensor], shape: tuple[int, ...], labels: Tensor, ids: Tensor, *, workers: int) -> None:
        _check_labels_and_ids(len(labels), labels, ids)
        self.decode, self.labels, self.ids, self.workers = decode, labels, ids, workers
        self._shape = shape

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def to(self, device: torch.device | str) -> "StreamedImageSet":
        return self._with(self.labels.to(device), self.ids.to(device))

    def subset(self, positions: Tensor) -> "StreamedImageSet":
        chosen = positions.to(self.device)
        return self._with(self.labels.index_select(0, chosen), self.ids.index_select(0, chosen))

    def batches(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        chosen = self.subset(positions)
        chunks = _chunks(torch.arange(len(chosen), device=self.device), batch_size)
        for pixels, chunk in zip(chosen._decoded(batch_size), chunks, strict=True):
            x = _as_float(pixels.to(self.device, non_blocking=True))
            yield x, chosen.labels.index_select(0, chunk), chosen.ids.index_select(0, chunk)

    def followed_by(self, more: ImageSet) -> ImageSet:
        return self.in_memory().followed_by(more)

    def in_memory(self) -> ImageSet:
        """The same images, all decoded into one tensor (with a progress bar where that takes long)."""
        images = torch.empty((len(self), *self.shape), dtype=torch.uint8)
        done = 0
        with tqdm(total=len(self), desc="decoding images", unit="image", delay=2) as bar:
            for pixels in self._decoded(batch_size=64):
                images[done : done + len(pixels)] = pixels
                done += len(pixels)
                bar.update(len(pixels))
        return ImageSet(images.to(self.device), self.labels, self.ids)

    def _with(self, labels: Tensor, ids: Tensor) -> "StreamedImageSet":
        return StreamedImageSet(self.decode, self.shape, labels, ids, workers=self.workers)

    def _decoded(self, batch_size: int) -> Iterator[Tensor]:
        """Every image in order, uint8 [B, C, H, W] on the CPU, pinned when it is bound for a GPU."""
        workers = 0 if multiprocessing.current_process().daemon else self.workers  # such a process may start none
        loader = DataLoader(
            _Decoding(self.decode, self.shape),
            batch_sampler=[chunk.tolist() for chunk in _chunks(self.ids.cpu(), batch_size)],
            num_workers=workers,
            multiprocessing_context=STARTED if workers else None,
            collate_fn=_stack,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # or a loader draws its workers' seed from torch's global state
        )
        for pixels in loader:
            if isinstance(pixels, LabError):
                raise pixels
            yield pixels


@dataclass(frozen=True, kw_only=True)
class Dataset(Knobs, ABC):
    """A classification dataset with a training and a test split: what it is, and how to read it.

    Images are [channels, size, size].
    `train_size` and `test_size` keep a class-balanced subset of a split, fixed by `subset_seed`; null keeps everything.
    Errors: LabError naming the key of a knob that cannot be right.
    """

    name: ClassVar[str]
    has_classes: ClassVar[int | None] = None  # how many, of one that is always the same

    classes: Annotated[int, at_least(2)]
    channels: Annotated[int, at_least(1), at_most(1000)]
    size: Annotated[int, at_least(1), at_most(50_000)]
    train_size: Count | None
    test_size: Count | None
    subset_seed: Seed

    def __post_init__(self) -> None:
        super().__post_init__()
        expected = f"{self.has_classes}, as {getattr(self, 'name', 'the dataset')} has"
        require(self.has_classes in (None, self.classes), "classes", expected, self.classes)
        enough = self.train_size is None or self.train_size >= self.classes
        require(enough, "train_size", f"at least dataset.classes={self.classes}, one image a class", self.train_size)

    def load(self, split: Split, *, root: Path, download: bool, workers: int) -> ImageSet:
        """Reads one split, or its fixed subset, and checks it against this config.

        `root` is the folder of all datasets; without `download` the network is never touched; `workers` processes
        decode images that do not fit in memory.
        Errors: LabError where the files are missing or damaged, or hold other shapes or labels than the config says.
        """
        if split not in ("train", "test"):
            raise LabError(f"a split is 'train' or 'test', not {split!r}")
        found = self._read(split, Path(root).expanduser().absolute(), download=download, workers=workers)
        expected = (self.channels, self.size, self.size)
        if found.shape != expected:
            raise LabError(
                f"dataset {self.name!r} has images of shape {list(found.shape)}, but dataset.channels and dataset.size say {list(expected)}"
            )
        if outside := sorted({label for label in found.labels.unique().tolist() if not 0 <= label < self.classes}):
            raise LabError(
                f"dataset {self.name!r} has an image with label {outside[0]} in its {split} split, but "
                f"dataset.classes={self.classes} allows 0 to {self.classes - 1}"
            )
        wanted = self.train_size if split == "train" else self.test_size
        if wanted is None:
            return found
        if wanted > len(found):
            raise LabError(f"dataset.{split}_size={wanted}, but dataset {self.name!r} has {len(found)} {split} images")
        return found.subset(balanced_subset(found.labels, wanted, classes=self.classes, seed=self.subset_seed))

    @abstractmethod
    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> ImageSet:
        """The full split, with ids 0..N-1; `root` is absolute."""


def balanced_subset(labels: Tensor, n: int, *, classes: int, seed: int) -> Tensor:
    """Ascending positions, int64 [n], of a class-balanced random subset of `labels`, int64 [N].

    Counts per class differ by at most one, except where a class has no more images to give. For one seed the subset of
    a smaller `n` lies inside that of a larger one. The same on every machine: the numbers come from numpy's
    RandomState, whose stream is frozen, and not from torch's global state.
    """
    rng = np.random.RandomState(seed)
    label = labels.cpu().numpy()
    shuffled = rng.permutation(len(label))
    by_class = shuffled[np.argsort(label[shuffled], kind="stable")]
    counts = np.bincount(label, minlength=classes)
    turn = np.arange(len(label)) - np.repeat(np.cumsum(counts) - counts, counts)  # 0, 1, 2, ... within each class
    # One image of every class in each turn, classes in a random order: any prefix of this order is balanced.
    order = np.lexsort((rng.permutation(classes)[label[by_class]], turn))
    return torch.from_numpy(np.sort(by_class[order[:n]]))


def _check_labels_and_ids(n: int, labels: Tensor, ids: Tensor) -> None:
    for name, values in (("labels", labels), ("ids", ids)):
        if values.dtype != torch.int64 or values.shape != (n,):
            raise LabError(f"{name} must be int64 [{n}], one an image, not {values.dtype} {list(values.shape)}")


def _chunks(positions: Tensor, batch_size: int) -> Sequence[Tensor]:
    return positions.split(batch_size) if len(positions) else ()  # split gives one empty chunk of nothing


def _as_float(pixels: Tensor) -> Tensor:
    return pixels.to(torch.float32).div_(255) if pixels.dtype == torch.uint8 else pixels


class _Decoding(TorchDataset):
    """`decode` as DataLoader wants it; an error is returned, for a worker would raise it wrapped in its traceback."""

    def __init__(self, decode: Callable[[int], Tensor], shape: tuple[int, ...]) -> None:
        self.decode, self.shape = decode, shape

    def __getitem__(self, index: int) -> Tensor | LabError:
        try:
            image = self.decode(index)
        except LabError as error:
            return error
        if image.dtype != torch.uint8 or tuple(image.shape) != self.shape:
            found = f"{image.dtype} {list(image.shape)}"
            return LabError(f"image {index} was decoded to {found}, not to torch.uint8 {list(self.shape)}")
        return image


def _stack(images: list[Tensor | LabError]) -> Tensor | LabError:
    decoded = []
    for image in images:
        if isinstance(image, LabError):
            return image
        decoded.append(image)
    return torch.stack(decoded)
