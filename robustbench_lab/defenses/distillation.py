"""Defensive distillation: learn a finished run's probabilities, softened by a temperature, and be used without it.

Source: Papernot et al. 2016, arXiv:1511.04508, sections III and IV; Efficient Defenses 2017, arXiv:1707.06728, section 2.2, discusses it.
Limits: at temperature 1 the logits are about `temperature` times as large as those of other networks, and the gradient of the softmax
vanishes in float32. Attacks on the cross-entropy then see nothing; attacks on the logits do (Carlini and Wagner 2017, arXiv:1608.04644).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lab.defenses.base import Batch, Defense, Taught
from robustbench_lab.knobs import Positive
from robustbench_lab.models.defended import Defended, cross_entropy


@dataclass(frozen=True, kw_only=True)
class Tempered(Defense):
    """Cross-entropy of the logits over `temperature`: the teacher of a distillation."""

    temperature: Positive

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        return cross_entropy(model(batch.x) / self.temperature, batch.y).mean()


@dataclass(frozen=True, kw_only=True)
class Distillation(Taught):
    """Cross-entropy between the teacher's probabilities and the model's, both at `temperature`."""

    temperature: Positive

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        assert batch.teacher is not None, "a Taught defense is given the run that it names"
        with torch.no_grad():
            soft = F.softmax(batch.teacher(batch.x) / self.temperature, dim=1)
        return F.cross_entropy(model(batch.x) / self.temperature, soft)
