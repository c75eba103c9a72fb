"""Pre-processing: any list of fronts before a network, in training and in test, and standard training behind them.

White box: forward is the transformed image, backward the surrogates' gradient (BPDA). threat_model=gray_learned attacks the network without
the fixed fronts; the verdict falls on the transformed images either way.
Limits: a transform that hides gradients makes no network smoother: only attacks that go around it measure anything.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from robustbench_lab.defenses.base import Defense
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front


@dataclass(frozen=True, kw_only=True)
class Preprocessed(Defense):
    """Standard training of a network behind `fronts`, by name, in the order of `order`."""

    fronts: Mapping[str, Front]
    order: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(len(self.fronts) > 0, "fronts", "one or more choices of conf/front, such as front@defense.fronts=[bit_depth]", self.fronts)
        require(sorted(self.order) == sorted(self.fronts), "order", f"{', '.join(self.fronts)}, each once", list(self.order))

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        return Defended(make_net(), [copy.deepcopy(self.fronts[name]) for name in self.order])  # whatever they learn is the model's
