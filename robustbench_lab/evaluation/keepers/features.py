"""Features of a few test images, clean and attacked: what the network's last layer reads, kept for pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.judging import drawn
from robustbench_lab.models.defended import Defended, frozen


@dataclass
class Features:
    """The first images of each class, in the order of the split, and what the network makes of them.

    index int64 [M]: their ids; label int64 [M]; clean, attacked float32 [M, F]; prediction_clean, prediction_attacked int64 [M]: the
    verdict's (of several draws, the first). An image that was not attacked has its clean features twice; of several attacks, those of the
    one that the verdict rests on. Images that are not done yet are zero, and their predictions -1.
    """

    index: np.ndarray
    label: np.ndarray
    clean: np.ndarray
    attacked: np.ndarray
    prediction_clean: np.ndarray
    prediction_attacked: np.ndarray

    @classmethod
    def empty(cls, defended: Defended, data: ImageSet, per_class: int, seed: int) -> Features:
        """Nothing done yet, of `per_class` images of each class, or of all where a class has fewer."""
        labels = data.labels.cpu().numpy()
        places = np.sort(np.concatenate([np.flatnonzero(labels == label)[:per_class] for label in np.unique(labels)]))
        one, _, _ = next(data.batches(torch.arange(1), 1))
        shape = len(places), features_of(defended, one, seed).shape[1]
        return cls(
            data.ids.cpu().numpy()[places], labels[places], *(np.zeros(shape, np.float32) for _ in range(2)),
            *(np.full(len(places), -1, np.int64) for _ in range(2)),
        )  # fmt: skip

    def keep(
        self, defended: Defended, x: Tensor, x_adv: Tensor, ids: Tensor, predictions: tuple[Tensor, Tensor], seed: int
    ) -> None:  # fmt: skip
        """Take those of a batch's images that are wanted, [B, C, H, W], clean and attacked, with the two predictions, [B], of each.

        The batch is in the order of the split.
        """
        here, rows = np.isin(self.index, ids.cpu().numpy()), np.isin(ids.cpu().numpy(), self.index)
        if not rows.any():
            return
        wanted = torch.from_numpy(rows).to(x.device)
        for part, images in ((self.clean, x), (self.attacked, x_adv)):
            part[here] = features_of(defended, images[wanted], seed).cpu().numpy()
        for answers, predicted in zip((self.prediction_clean, self.prediction_attacked), predictions, strict=True):
            answers[here] = predicted[wanted].cpu().numpy()


@torch.no_grad()
def features_of(defended: Defended, x: Tensor, seed: int) -> Tensor:
    """What the last layer reads, float32 [B, F], in eval mode; of random features one draw, with the same noise on weights in each call.

    Raises LabError for a network without them.
    """
    backbone, normalise = (getattr(defended.network, part, None) for part in ("backbone", "normalise"))
    if not hasattr(backbone, "features"):
        raise LabError(f"keep_features: expected a network with features and a last layer, got {type(defended.network).__name__}")
    with frozen(defended, fast=False), drawn(defended.stochastic, seed, "features"):
        return backbone.features(normalise(defended.fronts(x))).float()  # type: ignore[union-attr, misc]
