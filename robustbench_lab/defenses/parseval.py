"""Parseval training: after each step the weights of each layer move towards a tight frame, so that no layer stretches what it is given.

    W_S <- (1 + beta) W_S - beta W_S W_S^T W_S   on a sample S of the rows of each weight matrix

Source: Cisse et al. 2017, arXiv:1704.08847, eq. 5 and section 4.2; as Deep Defense compares it (arXiv:1803.00404, section 4.1):
fine-tuning, 30 % "of columns", where its networks multiply from the left, so that columns there are output units, the rows of PyTorch's.
Where we differ: nothing is divided by the size of a convolution's kernel, and no convex sums replace residual ones, of which Deep Defense
says nothing.
Limits: fixed points have singular values of 1, from any below sqrt(1 + 1/beta); a few epochs at a small beta hardly move the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Defense
from robustbench_lab.knobs import Positive, above, at_most
from robustbench_lab.models.defended import Defended


@dataclass(frozen=True, kw_only=True)
class Parseval(Defense):
    """Standard training, with a step of each weight matrix towards orthonormal rows after each of the optimiser's.

    beta: its size. share: of the units that it is made on, drawn anew for each layer and step. of: units (a weight's rows, one for each
    output), or inputs (its columns).
    """

    beta: Positive
    share: Annotated[float, above(0), at_most(1)]
    of: Literal["units", "inputs"]

    @torch.no_grad()
    def after_step(self, model: Defended) -> None:
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                matrix = module.weight.flatten(1)  # [out, in * k * k]
                matrix = matrix if self.of == "units" else matrix.T
                # torch's own numbers, which each epoch seeds anew: a resumed run draws the same.
                rows = torch.randperm(len(matrix))[: max(1, round(self.share * len(matrix)))].to(matrix.device)
                changed = matrix.index_copy(0, rows, parseval_step(matrix[rows], self.beta))
                module.weight.copy_((changed if self.of == "units" else changed.T).view_as(module.weight))


def parseval_step(rows: Tensor, beta: float) -> Tensor:
    """(1 + beta) V - beta V V^T V of rows V [S, D]: singular values s become (1 + beta) s - beta s^3."""
    return (1 + beta) * rows - beta * (rows @ rows.T) @ rows
