"""Adversarial training: learn from the images that fool the current weights.

Source: Madry et al. 2018, arXiv:1706.06083, section 2.1 (adversarial loss only); Rakin et al. 2019 (PNI), arXiv:1811.09310, eq. 5, for the
weighted sum of clean and adversarial loss.
Where we differ from PNI's code: nothing that we know of; both passes run in train mode, clean first, and move BatchNorm's statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustbench_lab.defenses.base import AdversarialDefense, Batch, require_epoch, require_weight
from robustbench_lab.models import Defended, cross_entropy
from robustbench_lab.threats import require


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(AdversarialDefense):
    """clean_weight * CE(x) + adversarial_weight * CE(x_adv); CE(x) alone before `start_epoch`.

    Whether the search uses the true labels or the model's predictions is a knob of the attack.
    """

    clean_weight: float
    adversarial_weight: float
    start_epoch: int

    def __post_init__(self) -> None:
        super().__post_init__()
        require_weight(self.clean_weight, "clean_weight")
        require_weight(self.adversarial_weight, "adversarial_weight")
        require(self.adversarial_weight > 0, "adversarial_weight", "a number > 0; use defense=standard without it", self.adversarial_weight)
        require_epoch(self.start_epoch, "start_epoch")

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        if batch.epoch < self.start_epoch:
            return cross_entropy(model(batch.x), batch.y).mean()
        x_adv = self.adversarial(model, batch.x, batch.y, batch.rng)
        total = x_adv.new_zeros(())
        if self.clean_weight:
            total = total + self.clean_weight * cross_entropy(model(batch.x), batch.y).mean()
        return total + self.adversarial_weight * cross_entropy(model(x_adv), batch.y).mean()
