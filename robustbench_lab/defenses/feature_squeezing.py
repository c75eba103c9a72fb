"""Feature squeezing by bit depth: the network sees images of few grey levels, in training and in test.

Source: Xu, Evans and Qi 2018, arXiv:1704.01155, section III-A; Efficient Defenses 2017, arXiv:1707.06728, section 4.1 (1). The squeezer
stands before the network in training too, as in the code of Efficient Defenses; Xu et al. put it before a network trained without it.
White box: forward is the squeezed image, backward the identity's gradient (BPDA). The code of Efficient Defenses attacks the network
without the squeezer (threat_model=gray_learned); the verdict falls on the squeezed images either way.
Limits: rounding hides gradients without making the network any smoother; only attacks that go around it measure anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from robustbench_lab.defenses.base import Defense
from robustbench_lab.fronts.bit_depth import BitDepth
from robustbench_lab.knobs import Bits
from robustbench_lab.models.defended import Defended


@dataclass(frozen=True, kw_only=True)
class FeatureSqueezing(Defense):
    """Standard training of a network behind a fixed front that keeps `bit_depth` bits of each pixel, 1 to 8."""

    bit_depth: Bits

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        return Defended(make_net(), [BitDepth(self.bit_depth)])
