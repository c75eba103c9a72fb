"""Fronts beside the libraries that one would call, on real images.

Called by scripts/benchmark.py fronts. The images are the first 10,000 test images of CIFAR-10 (--scale multiplies
them). OpenCV and scikit-image are of the parity extra. Columns:
    images           how many; loops in Python see fewer, and so does ours beside them
    ms theirs, ours  an image
    ratio            theirs over ours
    apart            the mean and the largest difference of the two results, in levels of 255
Rows whose results are not the same number for number say why:
    JPEG             another transform of cosines, and roundings that fall to the other side
    non-local means  OpenCV's weights are in fixed point. scikit-image's fast mode has templates of 2 x 2 and a table of exponentials; ours
                     beside it has the same templates
    total variation  both end at the same minimum; theirs is told by chambolle's eps to come about as near to it as ours does, and both
                     distances from it (root mean square, in levels) stand in the row's name
    quilting         by scripts/plain_quilting.py's loop over patches, which finds the nearest with numpy and the seam as a maximum flow
    PixelDefend      a density with fresh weights; theirs is one full pass for each pixel, of which one is timed and counted so often. Below
                     the table: images a second, and how many full passes an image takes
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import median_filter
from torch import Tensor

from robustbench_lab.backbones.density import Density
from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.fronts.jpeg import JPEG
from robustbench_lab.fronts.median import Median
from robustbench_lab.fronts.non_local_means import NonLocalMeans, non_local_means
from robustbench_lab.fronts.pixel_defend import PixelDefend
from robustbench_lab.models.front import Front
from robustbench_lab.settings.build import build, dataset_of
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.transforms.total_variation import TotalVariation

Timed = Callable[[dict[str, Callable[[], None]]], dict[str, float]]
Transform = Callable[[Tensor], Tensor]  # [B, 3, H, W] in [0, 1] to the same
PLAIN = 20  # images that loops in Python see


def fronts(scale: float, device: str, timed: Timed) -> None:
    images = cifar10(max(PLAIN, round(10_000 * scale)))
    heads = [f"{'front':<36}", f"{'beside':<29}", "images", "ms theirs", "ms ours", "ratio", "apart: mean, largest"]
    print(f"| {' | '.join(heads)} |\n|{'|'.join('-' * (len(head) + 2) for head in heads)}|")
    for name, beside, count, theirs, ours in pairs(device):
        row(name, beside, images[:count], theirs, ours, timed, device)
    quilting(images, timed, device)
    pixel_defend(images[: max(8, min(256, len(images)))].to(device), timed, device)


def cifar10(count: int) -> Tensor:
    cfg, _ = compose("train", ["dataset=cifar10"])
    config = plain(cfg, "dataset", "data")
    dataset = dataset_of(config, Dataset)
    where = config["data"]
    data: ImageSet = dataset.load("test", root=Path(where["root"]), download=where["download"], workers=where["workers"])
    x, _, _ = next(iter(data.batches(torch.arange(min(count, len(data))), count)))
    return x


def row(name: str, beside: str, x: Tensor, theirs: Transform, ours: Transform, timed: Timed, device: str) -> None:
    found: dict[str, Tensor] = {}
    there = x.to(device)

    @torch.no_grad()
    def by_us() -> None:
        found["ours"] = ours(there)

    def by_them() -> None:
        found["theirs"] = theirs(x)

    seconds = timed({"theirs": by_them, "ours": by_us})
    apart = 255 * (found["ours"].cpu() - found["theirs"]).abs()
    milli = {who: 1000 * value / len(x) for who, value in seconds.items()}
    print(
        f"| {name:<36} | {beside:<29} | {len(x):6d} | {milli['theirs']:9.3f} | {milli['ours']:7.3f} "
        f"| {milli['theirs'] / milli['ours']:5.1f} | {float(apart.mean()):9.3f}, {float(apart.max()):9.3f} |"
    )


def pairs(device: str) -> list[tuple[str, str, int, Transform, Transform]]:
    """Name, library, how many images, theirs, ours."""
    found: list[tuple[str, str, int, Transform, Transform]] = [
        ("bit depth 5", "numpy, all at once", 10_000, by_numpy(lambda x: np.rint(x * 31) / 31), front("bit_depth").to(device)),
    ]
    for window in (2, 3):
        size = (1, 1, window, window)
        theirs = by_numpy(lambda x, size=size: median_filter(x, size))
        found.append((f"median {window} x {window}", "SciPy, all at once", 10_000, theirs, Median(window)))
    found.append(("JPEG 75, 4:2:0", "Pillow, image by image", 10_000, by_pillow, JPEG(75, "4:2:0")))
    found.append(("non-local means 13-3-2", "OpenCV, image by image", 10_000, by_opencv, NonLocalMeans(13, 3, 2)))
    found.append(("the same means, .05", "scikit-image, image by image", 10_000, means_by_scikit_image, our_means))
    found.append(total_variation())
    return found


def front(name: str) -> Front:
    cfg, _ = compose("train", ["dataset=cifar10", "defense=preprocessed", f"front@defense.fronts=[{name}]"])
    return build(plain(cfg, "defense")["defense"]["fronts"][name], f"defense.fronts.{name}", Callable[[], Front])()  # type: ignore[arg-type]


def by_numpy(change: Callable[[np.ndarray], np.ndarray]) -> Transform:
    return lambda x: torch.from_numpy(change(x.numpy()))


def image_by_image(x: Tensor, change: Callable[[np.ndarray], Any]) -> Tensor:
    """Over uint8 [H, W, C]."""
    pixels = (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
    return torch.from_numpy(np.stack([change(image) for image in pixels])).permute(0, 3, 1, 2)


def by_pillow(x: Tensor) -> Tensor:
    def change(image: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=75, subsampling=2)
        return np.asarray(Image.open(file))

    return image_by_image(x, change) / 255


def by_opencv(x: Tensor) -> Tensor:
    import cv2

    def change(image: np.ndarray) -> np.ndarray:
        return cv2.fastNlMeansDenoisingColored(np.ascontiguousarray(image[..., ::-1]), None, 2, 2, 3, 13)[..., ::-1]

    return image_by_image(x, change) / 255


def means_by_scikit_image(x: Tensor) -> Tensor:
    from skimage.restoration import denoise_nl_means

    return image_by_image(x, lambda image: denoise_nl_means(image.astype(np.float32) / 255, 3, 6, h=0.05, channel_axis=-1))


def our_means(x: Tensor) -> Tensor:
    return non_local_means(x, 13, [0, 1 / 3, 1 / 3], 0.05, math.exp(-5))


def total_variation() -> tuple[str, str, int, Transform, Transform]:
    from skimage.restoration import denoise_tv_chambolle

    variation: TotalVariation = front("total_variation").variation  # type: ignore[assignment]
    some = cifar10(100)
    limit = chambolle(some, denoise_tv_chambolle, variation.weight, 1e-12, 3000)
    ours_apart = rms(variation.minimise(some), limit)
    for eps in (2e-4, 1e-4, 5e-5, 2e-5, 1e-5, 5e-6):  # from the library's own on
        theirs_apart = rms(chambolle(some, denoise_tv_chambolle, variation.weight, eps, 200), limit)
        if theirs_apart <= ours_apart:
            break
    name = f"total variation ({theirs_apart:.2f}; {ours_apart:.2f})"
    return (
        name,
        f"scikit-image, eps {eps:g}",
        10_000,
        lambda x: chambolle(x, denoise_tv_chambolle, variation.weight, eps, 200),
        variation.minimise,
    )


def chambolle(x: Tensor, solve: Callable[..., np.ndarray], weight: float, eps: float, most: int) -> Tensor:
    each = [torch.from_numpy(solve(image.numpy(), weight=1 / weight, eps=eps, max_num_iter=most, channel_axis=0)) for image in x]
    return torch.stack(each)


def rms(found: Tensor, limit: Tensor) -> float:
    return 255 * float((found - limit).square().mean().sqrt())


def quilting(images: Tensor, timed: Timed, device: str) -> None:
    from plain_quilting import front_of, numpy_search, plain_quilting  # beside this file

    front = front_of(100_000, 32, "exact").to(device)

    def loop(x: Tensor) -> Tensor:
        levels = (255 * x).round().long().numpy()
        return torch.from_numpy(plain_quilting(levels, front, numpy_search(front.bank.cpu().numpy()))) / 255

    row("quilting, 100,000 patches", "a loop over patches", images[:PLAIN], loop, front, timed, device)


def pixel_defend(x: Tensor, timed: Timed, device: str) -> None:
    defended: PixelDefend = front("pixel_defend").to(device)  # type: ignore[assignment]
    density: Density = defended.density
    pixels = x.shape[2] * x.shape[3]

    @torch.no_grad()
    def one_pass() -> None:
        density.log_likelihood(x)

    @torch.no_grad()
    def ours() -> None:
        density.purified(x, defended.strength)

    seconds = timed({"pass": one_pass, "ours": ours})
    milli = {who: 1000 * value / len(x) for who, value in seconds.items()}
    theirs = pixels * milli["pass"]
    name, beside = "PixelDefend, the small PixelCNN", "a full pass for each pixel"
    print(f"| {name:<36} | {beside:<29} | {len(x):6d} | {theirs:9.3f} | {milli['ours']:7.3f} | {theirs / milli['ours']:5.1f} | {'':<20} |")
    print(f"\nPixelDefend: {1000 / milli['ours']:.1f} images a second; an image takes {milli['ours'] / milli['pass']:.2f} full passes.")
