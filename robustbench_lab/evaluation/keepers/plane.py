"""What a model has learned where its images are points in the plane: its confidence everywhere, and the points that it learned from."""

from __future__ import annotations

import logging
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.keepers.base import Keeper
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.storage.records import PLANE_FILE

log = logging.getLogger("robustbench_lab")

SHAPE = (2, 1, 1)  # of a point: two channels of one pixel
GRID = 121  # places along each side


class Plane(Keeper):
    """What the model has learned, where the images are points; nothing for other images, or where the teacher is gone."""

    name: ClassVar[str] = "plane"
    file: ClassVar[str] = PLANE_FILE

    def empty(self) -> dict[str, np.ndarray]:
        seen = self.evaluated
        if seen.data.shape != SHAPE:
            return {}
        try:
            return plane_of(seen.defended, seen.defense, seen.train(), seen.teacher(), seen.training_seed)
        except LabError as error:
            log.warning("no picture of what was learned: %s", error)
            return {}


@torch.no_grad()
def plane_of(model: Defended, defense: Defense, train: ImageSet, teacher: Defended | None, seed: int) -> dict[str, np.ndarray]:
    """probability [G, G]: of class 1 at (x, y) = (column, row) / (G - 1), in eval mode; points [N, 2], labels [N]: what was trained on;
    extra [M, 2], extra_labels [M]: what the defense added in the first epoch. Of more than two classes: that of the likeliest one.

    teacher: the run that a `Taught` defense learns from.
    """
    side = torch.linspace(0, 1, GRID, device=train.device)
    y, x = torch.meshgrid(side, side, indexing="ij")
    shares = model.eval()(torch.stack([x, y], dim=-1).reshape(-1, *SHAPE)).softmax(dim=1)
    probability = shares[:, 1] if shares.shape[1] == 2 else shares.amax(dim=1)
    positions = torch.arange(len(train))
    points, labels, _ = next(train.batches(positions, len(train)))
    extra, extra_labels = _added(model, defense, train, teacher, seed)
    return {
        "probability": probability.reshape(GRID, GRID).cpu().numpy(),
        "points": points.flatten(1).cpu().numpy(), "labels": labels.cpu().numpy(),
        "extra": extra.flatten(1).cpu().numpy(), "extra_labels": extra_labels.cpu().numpy(),
    }  # fmt: skip


def _added(model: Defended, defense: Defense, train: ImageSet, teacher: Defended | None, seed: int) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        more = defense.extra_images(model, teacher, train, seed)
    x, y, ids = next(train.batches(torch.arange(len(train)), len(train)))
    found, labels = [x[:0]], [y[:0]]
    if more is not None:
        x_more, y_more, _ = next(more.batches(torch.arange(len(more)), len(more)))
        found, labels = [x_more], [y_more]
    for visit in range(defense.copies):
        copy = torch.full_like(ids, visit)
        rng, fixed = (ImageRandom.of(ids, seed, "train", *epoch).at(copy) for epoch in ((0,), ()))
        seen = defense.augmented(Batch(x, y, ids, copy, 0, rng, fixed, teacher))
        changed = (seen != x).flatten(1).any(dim=1)
        found.append(seen[changed])
        labels.append(y[changed])
    return torch.cat(found), torch.cat(labels)
