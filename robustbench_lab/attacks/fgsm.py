"""The fast gradient sign method: one step to the edge of the ball.

Source: Goodfellow, Shlens and Szegedy 2015, arXiv:1412.6572, section 4. In l2 the step goes along the gradient (FGM).
Limits: one step finds little against a curved or flattened loss; an accuracy under FGSM below that under PGD is a sign of hidden gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """One step of the full budget along the steepest direction of the loss."""

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        gradient, _, _ = self.gradient(model, x, self.labels_for(model, x, y), self.loss_of(model))
        return budget.project(x + budget.eps * budget.steepest(gradient), x)
