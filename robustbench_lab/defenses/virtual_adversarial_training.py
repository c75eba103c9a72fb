"""Virtual adversarial training (VAT): the prediction shall stand in the direction in which it would change fastest.

Source: Miyato et al. 2016, arXiv:1507.00677, section 3; Miyato et al. 2018, arXiv:1704.03976, section 3 and algorithm 1; the authors' code,
takerum/vat_tf, vat.py. The penalty looks at no label; here it falls on the labelled images of the batch. As in that code, no gradient
flows into the clean prediction of the divergence, nor into the search, and x + r is not cut to the pixel box (`clip`).
Where we differ: the search sees the model in eval mode and leaves BatchNorm's statistics alone; the clean images and x + r then pass once
each in train mode, and both move them, as in our adversarial training. In the authors' code each pass normalises by its own batch, and
only the clean one moves the statistics.
Not to be mistaken for "VAT" in Efficient Defenses 2017: training on examples that were made once, against an undefended network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.attacks.vat import exact_product, finite_difference, power_iteration
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.knobs import Count, NotNegative, Positive
from robustbench_lab.models.defended import Defended, cross_entropy, frozen


@dataclass(frozen=True, kw_only=True)
class VirtualAdversarialTraining(Defense):
    """CE(x) + weight * KL(p(x) || p(x + r)), with |r| = eps in l2, along the direction of the divergence's largest curvature.

    eps: a length in pixels of range 1. power_iterations: towards that direction, from a random one.
    xi: the l2 length at which the gradient stands in for a product with the Hessian; null: the exact product (attacks/vat.py).
    clip: cut x + r to [0, 1].
    """

    weight: NotNegative
    eps: Annotated[Positive, "an l2 length"]
    power_iterations: Count
    xi: Annotated[Positive | None, "for the exact product"]
    clip: bool

    def moved(self, model: Defended, batch: Batch) -> Tensor:
        """x + r [B, C, H, W], against the current weights in eval mode; leaves no trace in the model."""
        with frozen(model) as target, torch.compiler.set_stance("force_eager"):  # compiled code cannot be differentiated twice
            product, _ = exact_product(target, batch.x) if self.xi is None else finite_difference(target, batch.x, self.xi)
            direction = power_iteration(product, batch.rng.fold("vat").normal(*batch.x.shape[1:]), self.power_iterations)
        x = batch.x + self.eps * direction
        return x.clamp(0, 1) if self.clip else x

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        moved = self.moved(model, batch)
        logits = model(batch.x)
        divergence = kl_divergence(model(moved), logits.detach().softmax(dim=1)).mean()
        return cross_entropy(logits, batch.y).mean() + self.weight * divergence
