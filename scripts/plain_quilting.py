#!/usr/bin/env python3
"""Time image quilting beside the loop that one would write, patch by patch and image by image, with the same result.

    python scripts/plain_quilting.py [--images 20] [--patches 100000] [--size 32] [--repeats 3]

The bank and the images are smooth noise in whole levels. Rows:
    plain loop     for each patch its distances to the whole bank by numpy, and its seam by scipy's maximum flow
    plain, faiss   the same with one search of faiss for each patch, where faiss is installed
    ours, ...      conf/front/quilting.yaml on all images at once, with either search
One thread; CPU time, which other programs disturb less than they do the clock's. Variants take turns, and the fastest of the repeats
counts.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy, torch and faiss read it

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import breadth_first_order, maximum_flow
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.quilting import Quilting
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import CONF
from robustbench_lab.settings.yaml_files import read_yaml
from robustbench_lab.transforms.nearest_patches import need_faiss
from robustbench_lab.transforms.quilting import starts

Search = Callable[[np.ndarray], int]


def plain_seam(old: np.ndarray, new: np.ndarray, stays: np.ndarray, goes: np.ndarray) -> np.ndarray:
    """Which cells of [C, h, w] are new, by a maximum flow from what has to stay old (the source) to what has to be new (the sink)."""
    _, height, width = old.shape
    source, sink = height * width, height * width + 1
    arcs = []
    for row in range(height):
        for column in range(width):
            i = row * width + column
            for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                if 0 <= row + down < height and 0 <= column + right < width:
                    cost = np.abs(new[:, row + down, column + right] - old[:, row, column]).sum()
                    arcs.append((i, i + down * width + right, int(cost)))
            if stays[row, column]:
                arcs.append((source, i, 2**24))
            if goes[row, column]:
                arcs.append((i, sink, 2**24))
    tails, heads, capacities = np.array(arcs).T
    graph = csr_array((capacities.astype(np.int32), (tails, heads)), shape=(sink + 1, sink + 1))
    left = (graph - maximum_flow(graph, source, sink).flow).T.tocsr()  # turned round: who is reached from the sink can still send to it
    left.eliminate_zeros()
    found = np.zeros(sink + 1, dtype=bool)
    found[breadth_first_order(left, sink, return_predecessors=False)] = True
    return found[: height * width].reshape(height, width)


def numpy_search(bank: np.ndarray) -> Search:
    rows = bank.astype(np.float32)
    squares = np.square(rows).sum(axis=1)
    return lambda query: int((squares - 2 * rows @ query).argmin())


def faiss_search(front: Quilting) -> Search:
    index = front.approximate_index.index
    return lambda query: int(index.search(query[None], 1)[1][0, 0])


def plain_quilting(images: np.ndarray, front: Quilting, search: Search) -> np.ndarray:
    """Images [B, C, H, W] in whole levels, by the front's bank and knobs, one patch after the other."""
    size, bank = front.size, front.bank.cpu().numpy()
    quilted = np.zeros_like(images)
    for image, result in zip(images, quilted, strict=True):
        rows, columns = (starts(side, size, front.overlap, front.border) for side in image.shape[1:])
        for number, row in enumerate(rows):
            for place, column in enumerate(columns):
                here = (slice(None), slice(row, row + size), slice(column, column + size))
                new = bank[search(image[here].astype(np.float32).ravel())].reshape(image[here].shape).astype(images.dtype)
                above = rows[number - 1] + size - row if number else 0
                before = columns[place - 1] + size - column if place else 0
                stays, goes = np.zeros((2, size, size), dtype=bool)
                if front.seam == "minimum_error":
                    stays[: min(above, 1)] = stays[:, : min(before, 1)] = True
                goes[above:, before:] = True
                taken = plain_seam(result[here], new, stays, goes)
                result[here] = np.where(taken, new, result[here])
    return quilted


def smooth_images(count: int, side: int, seed: int) -> Tensor:
    """uint8 [count, 3, side, side]: noise of two scales, so that patches have flat and busy places."""
    rng = torch.Generator().manual_seed(seed)
    coarse, fine = torch.rand(count, 3, side // 4, side // 4, generator=rng), torch.rand(count, 3, side, side, generator=rng)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear")
    return (255 * (0.9 * smooth + 0.1 * fine)).to(torch.uint8)


def front_of(patches: int, side: int, search: str, **knobs: object) -> Quilting:
    config = read_yaml(CONF / "front" / "quilting.yaml")["quilting"] | {"patches": patches, "search": search} | knobs
    front = build(config, "quilting", Callable[[], Quilting])()  # type: ignore[arg-type]
    images = max(100, patches // 100)
    front.fit(ImageSet(smooth_images(images, side, 1), torch.zeros(images).long(), torch.arange(images)), torch.Generator().manual_seed(0))
    return front


def seconds(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    best = dict.fromkeys(variants, float("inf"))
    for _ in range(repeats):
        for name, call in variants.items():
            began = time.process_time()
            call()
            best[name] = min(best[name], time.process_time() - began)
    return best


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"images": 20, "patches": 100_000, "size": 32, "repeats": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    pixels = smooth_images(args.images, args.size, 2)
    levels, x = pixels.numpy().astype(np.int64), pixels.float() / 255
    fronts = {"exact": front_of(args.patches, args.size, "exact")}
    plain = {"plain loop": numpy_search(fronts["exact"].bank.numpy())}
    try:
        need_faiss()
        fronts["faiss"] = front_of(args.patches, args.size, "faiss")
        plain["plain, faiss"] = faiss_search(fronts["faiss"])
    except LabError as error:
        print(error)
    beside = dict(zip(plain, fronts, strict=True))
    variants: dict[str, Callable[[], object]] = {}
    for name, search in plain.items():
        front = fronts[beside[name]]
        variants[name] = lambda front=front, search=search: plain_quilting(levels, front, search)  # type: ignore[misc]
        variants[f"ours, {beside[name]}"] = lambda front=front: front(x)  # type: ignore[misc]
        ours = (255 * front(x)).round().long()
        same = torch.equal(ours, torch.from_numpy(plain_quilting(levels, front, search)))
        print(f"{name} and ours, {beside[name]}: {'the same images' if same else 'OTHER images'}")
    taken = seconds(variants, args.repeats)
    print("| quilting      | CPU ms an image | ratio |")
    print("|---------------|-----------------|-------|")
    for name, other in beside.items():
        ours_name = f"ours, {other}"
        print(f"| {name:<13} | {1000 * taken[name] / args.images:15.2f} | {taken[name] / taken[ours_name]:5.1f} |")
        print(f"| {ours_name:<13} | {1000 * taken[ours_name] / args.images:15.2f} | {1:5.1f} |")


if __name__ == "__main__":
    main()
