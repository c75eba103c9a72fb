"""Label smoothing: the true class gets less than all of the weight, the others share the rest.

Source: Warde-Farley and Goodfellow 2016; Efficient Defenses 2017, section 4.1 (2): "the weight of the true label set to 0.9".
Differs from torch's `label_smoothing`, which shares the rest among all classes, the true one too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.knobs import PositiveShare
from robustbench_lab.models.defended import Defended


def smoothed(y: Tensor, classes: int, true_weight: float) -> Tensor:
    """Target probabilities [B, K]: `true_weight` on the label, (1 - true_weight) / (K - 1) on each other class."""
    rest = (1 - true_weight) / (classes - 1)
    return torch.full((len(y), classes), rest, device=y.device).scatter_(1, y[:, None], true_weight)


@dataclass(frozen=True, kw_only=True)
class LabelSmoothing(Defense):
    """Cross-entropy against smoothed labels; true_weight lies in (0, 1]."""

    true_weight: PositiveShare

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        logits = model(batch.x)
        return F.cross_entropy(logits, smoothed(batch.y, logits.shape[1], self.true_weight))
