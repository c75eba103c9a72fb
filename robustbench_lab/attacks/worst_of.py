"""Several attacks, one verdict: an image is broken if any of them breaks it, and the later ones see survivors only.

Source: Croce and Hein 2020, arXiv:2003.01690, section 6, whose AutoAttack is one such list (conf/attack/autoattack.yaml).
Where we differ: the evaluation judges each attack on the defended model, in full precision, before the next one starts.
Limits: the order changes which attack is credited with an image, and the time it takes, never the verdict of deterministic attacks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack, is_wrong
from robustbench_lab.knobs import NOT_EMPTY
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class WorstOf(Attack):
    """`attacks`, by name, in the order in which they are tried.

    It can search the balls that all of them can, and needs what any of them needs.
    """

    attacks: Annotated[Mapping[str, Attack], NOT_EMPTY]

    @property
    def norms(self) -> tuple[str, ...]:  # type: ignore[override]
        first, *others = (attack.norms for attack in self.attacks.values())
        return tuple(norm for norm in first if all(norm in norms for norms in others))

    @property
    def needs_finite_ball(self) -> bool:  # type: ignore[override]
        return any(attack.needs_finite_ball for attack in self.attacks.values())

    @property
    def needs_gradients(self) -> bool:  # type: ignore[override]
        return any(attack.needs_gradients for attack in self.attacks.values())

    @property
    def needs_logits(self) -> bool:  # type: ignore[override]
        return any(attack.needs_logits for attack in self.attacks.values())

    @property
    def needs_labels(self) -> bool:  # type: ignore[override]
        return any(attack.needs_labels for attack in self.attacks.values())

    @property
    def batchwise(self) -> bool:  # type: ignore[override]
        return any(attack.batchwise for attack in self.attacks.values())

    @property
    def whole_split(self) -> bool:  # type: ignore[override]
        return any(attack.whole_split for attack in self.attacks.values())

    def check(self, budget: Budget) -> None:
        super().check(budget)
        for attack in self.attacks.values():
            attack.check(budget)

    def stages(self) -> list[tuple[str, Attack]]:
        """Nested lists count as their parts, named `outer.inner`."""
        return [
            (name if part is attack else f"{name}.{inner}", part)
            for name, attack in self.attacks.items()
            for inner, part in attack.stages()
        ]  # fmt: skip

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        """What the model itself misclassifies is broken here; an evaluation goes through the stages and judges for itself."""
        x_adv, todo = x.clone(), torch.arange(len(x), device=x.device)
        for name, attack in self.stages():
            if not len(todo):
                break
            x_adv[todo] = attack(model, x[todo], y[todo], budget, rng[todo].fold("stage", name))
            with torch.no_grad():
                todo = todo[~is_wrong(model(x_adv[todo]), y[todo])]
        return x_adv
