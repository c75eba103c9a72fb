"""Images and labels as a program of one's own has them, checked once, before anything is attacked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from robustbench_lab.datasets.base import ImageSet, StreamedImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require

COLOURS = (1, 3, 4)  # channels of a picture: what stands last where somebody's images are [B, H, W, C]
LAYOUT = "[B, C, H, W]"


class Carried(ImageSet):
    """Labelled images, float32 [N, C, H, W] in [0, 1], that stay where they are and are carried to a device batch by batch."""

    def __init__(self, images: Tensor, labels: Tensor, ids: Tensor, device: torch.device) -> None:
        super().__init__(images, labels.to(device), ids.to(device))

    def to(self, device: torch.device | str) -> Carried:
        return Carried(self.images, self.labels, self.ids, torch.device(device))

    def subset(self, positions: Tensor) -> Carried:
        here, there = positions.to(self.images.device), positions.to(self.device)
        return Carried(self.images[here], self.labels[there], self.ids[there], self.device)

    def batches(self, positions: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for chunk in positions.split(batch_size) if len(positions) else ():
            x = self.images[chunk.to(self.images.device)].to(self.device)
            yield x, self.labels[chunk.to(self.device)], self.ids[chunk.to(self.device)]


@torch.inference_mode(False)  # autograd takes no tensor that is made within it
def images_of(x: Any, y: Any = None, ids: Any = None) -> ImageSet:
    """The images as evaluations take them, on the device where they are.

    x, y: tensors or arrays, floating-point [N, C, H, W] in [0, 1] and whole numbers [N]; or, as x alone, a DataLoader, a torch Dataset or
    an iterable one, of pairs (x, y), which is read into memory; or an ImageSet. ids int64 [N]: whose random numbers each image gets, the
    positions 0 to N - 1 unless they are said.
    Raises LabError for anything else, with what to do.
    """
    whole = isinstance(x, ImageSet | DataLoader | Dataset)
    if whole and y is not None:
        raise LabError(
            f"y: expected none, for what brings its labels (a {type(x).__name__}), got {_told(y)}; name what follows: attack=..."
        )
    if isinstance(x, ImageSet):
        require(ids is None, "ids", "none, for images that have theirs", type(ids).__name__)
        if isinstance(x, StreamedImageSet):
            return x
        pixels = x.images.float() / 255 if x.images.dtype == torch.uint8 else x.images
        return Carried(pixels, x.labels, x.ids, x.images.device)
    if whole:
        images, labels = _collected(x)
    else:
        images, labels = checked_images(x), _labels(y)
    if len(images) != len(labels):
        raise LabError(f"y: expected {len(images)} labels, one for each image of x, got {len(labels)}")
    if not len(images):
        raise LabError("x: expected at least one image, got none")
    if ids is None:
        numbers = torch.arange(len(images))
    else:
        numbers = _labels(ids, "ids")
        require(len(numbers) == len(images), "ids", f"{len(images)} numbers, one for each image", len(numbers))
    return Carried(images, labels, numbers, images.device)


def checked_images(x: Any) -> Tensor:
    """float32 [N, C, H, W] in [0, 1]. Raises LabError for other images, with what to do."""
    images = _tensor(x, "x", f"a torch tensor or a numpy array of images, {LAYOUT}, or a DataLoader or Dataset of pairs (x, y)")
    kind, shape = str(images.dtype).removeprefix("torch."), list(images.shape)
    if not images.is_floating_point():
        divided = "; divide them: x / 255" if images.dtype == torch.uint8 else "; convert them: x.float() / 255, for example"
        raise LabError(f"x: expected floating-point pixels in [0, 1], got {kind}{divided}")
    if images.ndim != 4:
        remedy = {
            2: "give each row as an image of one pixel, x[:, :, None, None], to nn.Sequential(nn.Flatten(), model)",
            3: "x[:, None] for grey images [B, H, W], x[None] for one image [C, H, W]",
        }.get(images.ndim, "give one image a row")
        raise LabError(f"x: expected images {LAYOUT}, got shape {shape}; {remedy}")
    if shape[3] in COLOURS and min(shape[1:3]) > max(COLOURS):
        raise LabError(f"x: expected images {LAYOUT}, got shape {shape}, with the channels last; move them: x.transpose(0, 3, 1, 2) of an "
                       "array, x.permute(0, 3, 1, 2) of a tensor")  # fmt: skip
    images = images.float()
    if not torch.isfinite(images).all():
        first = int((~torch.isfinite(images.flatten(1)).all(dim=1)).nonzero()[0])
        raise LabError(f"x: expected finite pixels in [0, 1], got nan or inf, first in image {first}; take such images out")
    if images.numel():
        low, high = (bound.item() for bound in images.aminmax())
        if low < 0 or high > 1:
            bytes_like = low >= 0 and high > 2
            remedy = (
                "divide them: x / 255" if bytes_like else "undo the normalisation, and let the model do it, so that eps is in units of the "
                "pixel range: nn.Sequential(torchvision.transforms.Normalize(mean, std), model)"
            )  # fmt: skip
            raise LabError(f"x: expected pixels in [0, 1], got values from {low:g} to {high:g}; {remedy}")
    return images


def check_labels(labels: Tensor, classes: int) -> None:
    """Raises LabError where the model, which gives so many classes, has none of that number."""
    outside = ((labels < 0) | (labels >= classes)).nonzero()[:, 0]
    if len(outside):
        first = int(outside[0])
        raise LabError(
            f"y: expected classes 0 to {classes - 1}, of which the model gives {classes}, got {int(labels[first])} for image {first}; "
            "number the classes from 0, or take such images out"
        )  # fmt: skip


def _labels(y: Any, key: str = "y") -> Tensor:
    if y is None:
        raise LabError("y: expected the images' classes, whole numbers [N], got none; only a DataLoader or a Dataset brings them with it")
    labels = _tensor(y, key, "a torch tensor or a numpy array of whole numbers [N]")
    shape = list(labels.shape)
    if labels.ndim == 2:
        remedy = "y.squeeze(1)" if shape[1] == 1 else "y.argmax(1), if they are one-hot or shares"
        raise LabError(f"{key}: expected one class for each image, whole numbers [N], got shape {shape}; give {remedy}")
    if labels.ndim != 1:
        raise LabError(f"{key}: expected one class for each image, whole numbers [N], got shape {shape}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        raise LabError(f"{key}: expected whole numbers, got {kind}; convert them: y.long() of a tensor, y.astype(int) of an array")
    return labels.long()


def _tensor(value: Any, key: str, expected: str) -> Tensor:
    if isinstance(value, Tensor):
        found = value.detach()
        return found.clone() if found.is_inference() else found
    if isinstance(value, np.ndarray):
        try:
            return torch.from_numpy(np.array(value, order="C"))  # a copy: nobody changes the caller's, nor ours
        except TypeError as error:
            raise LabError(f"{key}: expected {expected}, got an array of {value.dtype}") from error
    raise LabError(f"{key}: expected {expected}, got {_told(value)}")


def _told(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None else "none"


def _collected(source: Any) -> tuple[Tensor, Tensor]:
    """All pairs of a DataLoader, or of a Dataset, whose images come one by one."""
    name, single = type(source).__name__, isinstance(source, Dataset)
    if not single or isinstance(source, IterableDataset):
        pairs: Any = iter(source)
    elif not hasattr(source, "__len__"):
        raise LabError(f"x: expected a Dataset that has a length, got {name}; give its images and labels as x and y")
    else:
        pairs = (source[index] for index in range(len(source)))
    images, labels = [], []
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            _not_pairs(name, pair)
        x, y = pair
        if single and not isinstance(x, Tensor | np.ndarray):
            raise LabError(
                f"x: expected a Dataset of tensors, got {_told(x)} from {name}; give it transform=torchvision.transforms.ToTensor()"
            )
        if single:
            x = _tensor(x, "x", "tensors")[None]
            y = (y if isinstance(y, Tensor) else torch.tensor(y))[None]
        images.append(checked_images(x))
        labels.append(_labels(y))
    if not images:
        raise LabError(f"x: expected at least one image, got none from {name}")
    if len(shapes := {tuple(part.shape[1:]) for part in images}) > 1:
        raise LabError(f"x: expected images of one size, got {' and '.join(map(str, sorted(map(list, shapes))))} from {name}; resize them")
    return torch.cat(images), torch.cat(labels)


def _not_pairs(name: str, found: Any) -> NoReturn:
    came = f"{len(found)} things" if isinstance(found, list | tuple) else _told(found)
    raise LabError(f"x: expected pairs (x, y) from {name}, got {came}; give the images and labels as x and y")
