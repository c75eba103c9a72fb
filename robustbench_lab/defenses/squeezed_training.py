"""Training on squeezed images, and no squeezer in test: the network of feature squeezing without its defense.

Source: the authors' code of Efficient Defenses (Zantedeschi et al. 2017, arXiv:1707.06728; ART, 2017,
notebooks/metric-for-MNIST.ipynb), which attacked and measured the feature-squeezing network without its squeezer. The defense with its
squeezer is feature_squeezing.
Where we differ: held-out images, by which the best epoch is chosen, are not squeezed; theirs were.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.knobs import Bits
from robustbench_lab.transforms.bit_depth import reduce_bit_depth


@dataclass(frozen=True, kw_only=True)
class SqueezedTraining(Defense):
    """Cross-entropy on images of `bit_depth` bits per channel, 1 to 8."""

    bit_depth: Bits

    def augmented(self, batch: Batch) -> Tensor:
        return reduce_bit_depth(batch.x, self.bit_depth)
