"""Adversarial training: learn from the images that fool the current weights.

Source: Madry et al. 2018, arXiv:1706.06083, section 2.1 (adversarial loss only); He, Rakin and Fan 2019 (PNI), arXiv:1811.09310, eq. 5,
for the weighted sum of clean and adversarial loss.
As in PNI's code, both passes run in train mode, clean first, and move BatchNorm's statistics. Where we differ from it: there the search's
labels are the predictions of the clean pass in train mode, here those of a pass in eval mode; there the weights of best clean accuracy on
test images are kept, here the last ones; there images are normalised by standard deviations of 63.0, 62.1 and 66.7 of 255, here by the
dataset's.
"""

from __future__ import annotations

from dataclasses import dataclass

from robustbench_lab.defenses.base import MixedDefense
from robustbench_lab.knobs import require


@dataclass(frozen=True, kw_only=True)
class AdversarialTraining(MixedDefense):
    """The weighted sum of `MixedDefense`, with cross-entropy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.adversarial_weight > 0, "adversarial_weight", "a number > 0; use defense=standard without it", self.adversarial_weight)
