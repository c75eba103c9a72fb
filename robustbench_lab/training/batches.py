"""What an epoch shows a model: which images, in which order, augmented how."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom, stable_hash
from robustbench_lab.transforms.augmentation import random_crop, random_flip

if TYPE_CHECKING:
    from robustbench_lab.training.recipe import Recipe

LOOKED_AT = 1000  # training images that a defense's own figures of an epoch are about, at most


def split_validation(n: int, share: float) -> tuple[Tensor, Tensor]:
    """Positions to train on and, the last `share` of them, to validate on (Keras' validation_split)."""
    held_out = round(n * share)
    require(n - held_out >= 2, "training.validation", "a share that leaves two images to train on", share)
    require(held_out > 0 or share == 0, "training.validation", f"0, or a share of the {n} training images that is one at least", share)
    return torch.arange(n - held_out), torch.arange(n - held_out, n)


def epoch_batches(
    data: ImageSet, train: Tensor, recipe: Recipe, copies: int, seed: int, epoch: int, teacher: Defended | None = None, number: int = 0
) -> Iterator[Batch]:
    """The batches of one pass of an epoch, in an order and with augmentation that (seed, epoch, the pass's number) determine; a last batch
    of one image is dropped."""
    tags = (epoch, number) if number else (epoch,)
    generator = torch.Generator().manual_seed(stable_hash(seed, "order", *tags))
    order = torch.randperm(len(train) * copies, generator=generator)
    if len(order) % recipe.batch_size == 1 and len(order) > 1:
        order = order[:-1]
    visit = (order // len(train)).to(data.device)
    batches = data.batches(train[order % len(train)], recipe.batch_size)
    for (x, y, ids), copy in zip(batches, visit.split(recipe.batch_size), strict=True):
        rng = ImageRandom.of(ids, seed, "train", *tags).at(copy)
        yield Batch(augment(x, recipe, rng), y, ids, copy, epoch, rng, ImageRandom.of(ids, seed, "train").at(copy), teacher)


def augment(x: Tensor, recipe: Recipe, rng: ImageRandom) -> Tensor:
    if recipe.crop_padding:
        x = random_crop(x, recipe.crop_padding, rng.fold("crop").integers(2 * recipe.crop_padding + 1, 2))
    if recipe.flip:
        x = random_flip(x, rng.fold("flip").integers(2, 1)[:, 0] == 1)
    return x


def spread(positions: Tensor) -> Tensor:
    """At most `LOOKED_AT` of the positions, evenly spread over them, because some datasets are sorted by class."""
    return positions[:: max(1, math.ceil(len(positions) / LOOKED_AT))]
