"""The momentum iterative method: steps along a decaying sum of normalised gradients (MI-FGSM).

Source: Dong et al. 2018, arXiv:1710.06081, Algorithm 1, and its l2 form: a step of fixed l2 length along the sum.
Where we differ: gradients are divided by their mean absolute value, as in the authors' code; the paper divides by the l1 norm, which is the
same up to the number of pixels and changes no step.
Limits: made to transfer. Momentum carries an image past the boundary's bends; on the attacked network itself PGD with restarts finds more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import decides, is_wrong, rows
from robustbench_lab.attacks.gradients import GradientAttack, require_step_size
from robustbench_lab.knobs import Count, NotNegative, Positive
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image


@dataclass(frozen=True, kw_only=True)
class MIM(GradientAttack):
    """Steps of fixed length from x along velocity = decay * velocity + gradient / mean |gradient|, each followed by a projection.

    steps: gradient steps.
    step_size, relative_step_size: length of a step as a fraction of the pixel range, or of eps; exactly one is given.
    decay: how much of the sum is kept at each step; 0 is PGD without a random start.
    keep: last, the last iterate; first, the first misclassified one, whereupon the image leaves the batch, or the last where none is.
        Where the model does not decide the verdict (`decides`), first is last.
    """

    steps: Count
    step_size: Annotated[Positive | None, "such as 2/255"]
    relative_step_size: Annotated[Positive | None, "such as 2/255"]
    decay: Annotated[NotNegative, "such as 1.0"]
    keep: Literal["last", "first"]

    def __post_init__(self) -> None:
        super().__post_init__()
        require_step_size(self.step_size, self.relative_step_size)

    def view(self, model: nn.Module, rng: ImageRandom) -> nn.Module:
        """What a step differentiates; `rng` belongs to that step."""
        return model

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        y, loss = self.labels_for(model, x, y), self.loss_of(model)
        step = self.step_size if self.step_size is not None else budget.eps * (self.relative_step_size or 0.0)
        leave = self.keep == "first" and decides(model)
        result, todo = x.clone(), torch.arange(len(x), device=x.device)
        x_adv, velocity = x, torch.zeros_like(x)
        for number in range(self.steps):
            gradient, _, logits = self.gradient(self.view(model, rng.fold("step", number)), x_adv, y, loss)
            if leave and (wrong := is_wrong(logits, y)).any():
                result[todo[wrong]] = x_adv[wrong]
                todo, x, y, rng, x_adv, velocity, gradient = rows(~wrong, todo, x, y, rng, x_adv, velocity, gradient)
                if not len(todo):
                    break
            size = gradient.flatten(1).abs().mean(dim=1).clamp(min=1e-38)  # a gradient of zero stays zero
            velocity = self.decay * velocity + gradient / per_image(size, gradient)
            x_adv = budget.project(x_adv + step * budget.steepest(velocity), x)
        result[todo] = x_adv
        return result
