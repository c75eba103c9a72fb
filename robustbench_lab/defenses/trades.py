"""TRADES: trade clean accuracy for agreement between the clean and the worst nearby prediction.

Source: Zhang et al. 2019, arXiv:1901.08573, algorithm 1 and eq. 5; settings of the authors' code, yaodongyu/TRADES.
As in that code, the target of the inner search is the clean prediction in eval mode, the outer divergence is averaged over the batch, and
its gradient flows through both predictions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lab.attacks.gradients import GradientAttack, kl_divergence
from robustbench_lab.defenses.base import AdversarialDefense, Batch
from robustbench_lab.knobs import Positive, require
from robustbench_lab.models.defended import Defended, cross_entropy, frozen


@dataclass(frozen=True, kw_only=True)
class Trades(AdversarialDefense):
    """CE(x) + beta * KL(f(x) || f(x_adv)), where x_adv raises that divergence.

    The attack's own loss is replaced by the divergence; its `labels` must be `ground_truth`, because the
    target is a distribution, and it must start at random.
    """

    beta: Positive

    def __post_init__(self) -> None:
        super().__post_init__()
        require(isinstance(self.attack, GradientAttack), "attack", "an attack that climbs a loss, such as pgd", type(self.attack).__name__)
        for key, wanted in (("labels", "ground_truth"), ("random_start", ("uniform", "gaussian"))):
            # At the clean image itself the divergence has no slope: a search that starts there stays there.
            came = getattr(self.attack, key, None)
            require(came in wanted if isinstance(wanted, tuple) else came == wanted, f"attack.{key}", str(wanted), came)

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        assert isinstance(self.attack, GradientAttack)
        with frozen(model) as target:
            with torch.no_grad():
                clean = F.softmax(target(batch.x), dim=1)
            x_adv = replace(self.attack, loss=kl_divergence)(target, batch.x, clean, self.budget, batch.rng)
        logits, logits_adv = model(batch.x), model(x_adv)
        divergence = kl_divergence(logits_adv, F.softmax(logits, dim=1)).mean()
        return cross_entropy(logits, batch.y).mean() + self.beta * divergence
