"""Pre-processing: any list of fronts before a network, in training and in test, and standard training behind them.

White box: forward is the transformed image, backward the surrogates' gradient (BPDA). threat_model=gray_learned attacks the network without
the fixed fronts; the verdict falls on the transformed images either way.
Limits: a transform that hides gradients makes no network smoother: only attacks that go around it measure anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front


@dataclass(frozen=True, kw_only=True)
class Preprocessed(Defense):
    """Standard training of a network behind `fronts`, by name, in the order of `order`; each model gets fronts of its own."""

    fronts: Mapping[str, Callable[[], Front]]
    order: Sequence[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        makers = all(callable(front) and not isinstance(front, nn.Module) for front in self.fronts.values())
        require(makers, "fronts", "what makes a front, with _partial_: true, for each model its own", self.fronts)
        require(len(self.fronts) > 0, "fronts", "one or more choices of conf/front, such as front@defense.fronts=[bit_depth]", self.fronts)
        require(sorted(self.order) == sorted(self.fronts), "order", f"{', '.join(self.fronts)}, each once", list(self.order))
        for name, make in self.fronts.items():
            try:
                make()  # a wrong knob stops here, before there is a model
            except LabError as error:
                raise LabError(f"fronts.{name}.{error}") from error

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()  # first: its weights are those of the undefended run
        return Defended(net, [self.fronts[name]() for name in self.order])
