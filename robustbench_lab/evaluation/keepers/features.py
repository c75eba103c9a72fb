"""Features of a few test images, clean and attacked: what the network's last layer reads, kept for pictures."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.judging import drawn
from robustbench_lab.evaluation.keepers.base import Keeper, Shown
from robustbench_lab.knobs import Count, check
from robustbench_lab.models.defended import Defended, frozen
from robustbench_lab.storage.records import FEATURES_FILE


class Features(Keeper):
    """The first images of each class, in the order of the split, and what the network makes of them.

    per_class: how many of each, or all where a class has fewer.
    index int64 [M]: their ids; label int64 [M]; clean, attacked float32 [M, F]; prediction_clean, prediction_attacked int64 [M]: the
    verdict's (of several draws, the first). An image that was not attacked has its clean features twice; of several attacks, those of the
    one that the verdict rests on. Images that are not done yet are zero, and their predictions -1.
    """

    name: ClassVar[str] = "features"
    file: ClassVar[str] = FEATURES_FILE

    def __init__(self, per_class: int) -> None:
        check("per_class", per_class, Count)
        self.per_class = per_class

    def empty(self) -> dict[str, np.ndarray]:
        data = self.evaluated.data
        labels = data.labels.cpu().numpy()
        places = np.sort(np.concatenate([np.flatnonzero(labels == label)[: self.per_class] for label in np.unique(labels)]))
        one, _, _ = next(data.batches(torch.arange(1), 1))
        shape = len(places), features_of(self.evaluated.defended, one, self.evaluated.seed).shape[1]
        return {
            "index": data.ids.cpu().numpy()[places], "label": labels[places],
            **{name: np.zeros(shape, np.float32) for name in ("clean", "attacked")},
            **{name: np.full(len(places), -1, np.int64) for name in ("prediction_clean", "prediction_attacked")},
        }  # fmt: skip

    def keep(self, shown: Shown) -> None:
        index, ids = self.arrays["index"], shown.ids.cpu().numpy()
        here, rows = np.isin(index, ids), np.isin(ids, index)  # the batch is in the order of the split
        if not rows.any():
            return
        wanted = torch.from_numpy(rows).to(shown.x.device)
        for name, images in (("clean", shown.x), ("attacked", shown.x_adv)):
            self.arrays[name][here] = features_of(self.evaluated.defended, images[wanted], self.evaluated.seed).cpu().numpy()
        for name, predicted in (("prediction_clean", shown.clean_prediction), ("prediction_attacked", shown.prediction)):
            self.arrays[name][here] = predicted[wanted].cpu().numpy()


@torch.no_grad()
def features_of(defended: Defended, x: Tensor, seed: int) -> Tensor:
    """What the last layer reads, float32 [B, F], in eval mode; of random features one draw, with the same noise on weights in each call.

    Raises LabError for a network without them.
    """
    backbone, normalise = (getattr(defended.network, part, None) for part in ("backbone", "normalise"))
    if not hasattr(backbone, "features"):
        raise LabError(f"keep.features: expected a network with features and a last layer, got {type(defended.network).__name__}")
    with frozen(defended, fast=False), drawn(defended.stochastic, seed, "features"):
        return backbone.features(normalise(defended.fronts(x))).float()  # type: ignore[union-attr, misc]
