"""Random + FGSM: a random step of fixed length, then FGSM with what is left of the budget.

Source: Tramer et al. 2018, arXiv:1705.07204, section 4.1; Efficient Defenses 2017, section 4.1 (2): alpha = 0.05, taken from the budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Positive
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class RandomFGSM(GradientAttack):
    """x + alpha * sign(N(0, 1)), cut by the box, then one step of eps - alpha.

    alpha: length of the random step, in fractions of the pixel range; at most eps.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf",)
    alpha: Positive

    def check(self, budget: Budget) -> None:
        super().check(budget)
        if self.alpha > budget.eps:
            raise LabError(f"attack.alpha: the random step {self.alpha} is longer than budget.eps = {budget.eps}; lower attack.alpha")

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        start = budget.project(x + self.alpha * rng.normal(*x.shape[1:]).to(x.dtype).sign(), x)
        gradient, _, _ = self.gradient(model, start, self.labels_for(model, x, y), self.loss_of(model))
        return budget.project(start + (budget.eps - self.alpha) * budget.steepest(gradient), x)
