"""Norm of the perturbation: how far from its image an attack went to break it. Larger is more robust, if the attack looks for the nearest.

Source: the mean l2 norm of C&W's examples is what PNI 2019, arXiv:1811.09310, Table 4 shows.
Where we differ: images that were wrong when clean, or that the attack did not break, do not count; the paper does not say whether its do.
Limits: an upper bound of the distance to the nearest misclassified image; read it beside the share of images that were broken, because a
search that breaks only the easy ones has a small mean. With random output, a perturbation counts if every draw of the verdict is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from robustbench_lab.knobs import one_of
from robustbench_lab.metrics.base import OfBroken, Seen
from robustbench_lab.threats import NORMS, Budget


@dataclass(frozen=True, kw_only=True)
class PerturbationNorm(OfBroken):
    """|x_adv - x| of pixels in [0, 1], float64 [B]; in l0, the pixels that changed.

    norm: linf, l2 or l0. Raises LabError, naming norm, for another one.
    """

    norm: Annotated[str, one_of(NORMS)]

    @property
    def minimal(self) -> bool:
        return True

    def of_broken(self, seen: Seen, x: Tensor, x_adv: Tensor) -> Tensor:
        return Budget(self.norm, 0.0).distance(x_adv, x)
