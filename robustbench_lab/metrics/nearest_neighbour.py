"""Distance to the training set: how far images lie from their nearest neighbour in it, found exactly and in bounded memory.

Source: Efficient Defenses 2017, arXiv:1707.06728, section 4.1 ("average nearest-neighbour distance"); the authors' code
(Trusted-AI/adversarial-robustness-toolbox, 2017, src/metrics.py, nearest_neighbour_dist), whose figure is of another quantity.
Search: |x - t|^2 = |x|^2 + (|t|^2 - 2 x't), the bracket for a tile of images and neighbours by one matrix product in float32. It cancels
where neighbours are near; so every one that comes as close to the best as rounding can hide is measured again, pixel by pixel, in float64.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from robustbench_lab.knobs import require
from robustbench_lab.metrics.base import OfBroken, Seen, check_attacked, check_flipped, check_images
from robustbench_lab.models.defended import full_precision

MEMORY = 2**26  # bytes of the largest tensor that a search makes: 64 MiB, tiles of 2048 x 2048
UNIT = 2.0**-24  # float32's relative rounding error


class TrainingSetDistance(OfBroken):
    """From an attacked image to its nearest training image in l2, or that squared over |x| as published."""

    needs_train: ClassVar[bool] = True

    @property
    def minimal(self) -> bool:
        return self.as_published  # the authors' code took minimal perturbations; the text speaks of adversarial images of any kind

    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        assert seen.train is not None, "who evaluates hands over the training images"
        if self.as_published:
            return distance_to_training_set_as_published(x, x_adv, seen.train, torch.ones(len(x), dtype=torch.bool, device=x.device))
        return distance_to_training_set(x_adv, seen.train)


def distance_to_training_set(x_adv: Tensor, train: Tensor, memory: int = MEMORY) -> Tensor:
    """The l2 distance of each of x_adv [N, C, H, W] to the nearest training image, float64 [N]; the metric is the mean.

    Images are float32 in [0, 1] or uint8 in 0..255, on one device; train [M, C, H, W]. memory: bytes that no tensor made here exceeds, as
    long as they hold an image and a number for each image. Raises LabError, naming what is missing or not finite.
    """
    check_images(x_adv=x_adv, train=train)
    pixels = x_adv[0].numel()
    side = max(1, min(math.isqrt(memory // 16), memory // (8 * pixels)))  # 16 bytes a pair: were all of a tile candidates, their positions
    squares = torch.cat([as_rows(part).square().sum(dim=1) for part in train.split(side)])  # |t|^2
    require(bool(torch.isfinite(squares).all()), "train", "finite pixels", "NaN or inf")
    with full_precision():
        return torch.cat([_squared_distances(as_rows(part), train, squares, side).sqrt() for part in x_adv.split(side)])


def distance_to_training_set_as_published(x: Tensor, x_adv: Tensor, train: Tensor, flipped: Tensor) -> Tensor:
    """The code's, for the M flipped images alone, float64 [M]: the *square* of the distance, over the l2 norm of the clean image.

    flipped: where the predictions on x and x_adv differ, bool [N]. The metric is the mean. Raises LabError, naming what is missing, without
    images or flipped ones: there the code returns NaN.
    """
    check_attacked(x, x_adv)
    check_flipped(flipped, x)
    return distance_to_training_set(x_adv[flipped], train).square() / as_rows(x[flipped]).double().norm(dim=1)


def as_rows(images: Tensor) -> Tensor:
    """Images as float32 [B, C * H * W] in [0, 1]."""
    return images.flatten(1).float() / (255 if images.dtype == torch.uint8 else 1)


def _squared_distances(x: Tensor, train: Tensor, squares: Tensor, side: int) -> Tensor:
    """The squared distances of rows [B, P] to their nearest, float64 [B]; B x side is one tile."""
    own = x.double().square().sum(dim=1)
    require(bool(torch.isfinite(own).all()), "x_adv", "finite pixels", "NaN or inf")
    longest = squares.max().double().sqrt()
    # A sum of n products is off by at most n units of the sum of their sizes (Higham 2002, section 3.1); twice that, to be safe.
    error = 2 * (x.shape[1] + 4) * UNIT * (longest**2 + 2 * own.sqrt() * longest)
    nearest = torch.full_like(own, math.inf)
    for start in range(0, len(train), side):
        tile = as_rows(train[start : start + side])
        scores = torch.addmm(squares[start : start + side], x, tile.T, alpha=-2)  # |t|^2 - 2 x't
        lowest = scores.amin(dim=1)
        limit = torch.minimum(nearest - own + error, lowest + 2 * error).float()
        close = (lowest <= limit).nonzero()[:, 0]
        row, column = (scores[close] <= limit[close, None]).nonzero(as_tuple=True)
        for some, theirs in zip(close[row].split(side), column.split(side), strict=True):
            nearest.scatter_reduce_(0, some, (x[some].double() - tile[theirs].double()).square().sum(dim=1), "amin")
    return nearest
