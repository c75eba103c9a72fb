"""Independent runs of one attack, each on every image: what papers report as mean and standard deviation of several runs.

Source: FM 2021, Table 1, whose PGD figures are of five runs; so are those of PNI (CVPR 2019, Table 2) and Learn2Perturb.
Limits: runs of an attack without random numbers are equal, unless the model's output is random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.knobs import at_least, require


@dataclass(frozen=True, kw_only=True)
class Repeated(WorstOf):
    """`times` runs of `attack`, each with random numbers of its own.

    An evaluation tells each run's accuracy; its verdict is that of a list: an image is broken if any of the runs breaks it.
    """

    separately: ClassVar[bool] = True
    attack: Attack
    times: Annotated[int, at_least(2), "for one run has no spread"]
    attacks: Mapping[str, Attack] = field(init=False, repr=False)  # the runs, by name

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not isinstance(self.attack, WorstOf), "attack", "one attack, not a list of attacks", self.attack)
        object.__setattr__(self, "attacks", {f"run_{number}": self.attack for number in range(1, self.times + 1)})
