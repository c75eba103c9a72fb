"""An ensemble of networks that learn side by side, each by itself, and answer with the mean of their logits.

Source: Liu et al. 2017, arXiv:1611.02770, section 5, and Dong et al. 2018, arXiv:1710.06081, section 3.3 (ensemble in logits): examples
that fool several networks at once transfer better to one that nobody may look at; threat_model.overrides=[defense=ensemble,seed=1] is that
attacker.
Where we differ: the members are of one architecture, and see the images in the same order; their weights begin elsewhere.
Limits: averaging networks that are not robust gives no robust network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.knobs import at_least
from robustbench_lab.models.defended import Defended, cross_entropy


class MeanLogits(nn.Module):
    """Images [B, C, H, W] to the mean of the members' logits, [B, K]."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.image_shape = getattr(members[0], "image_shape", None)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.answers(x)).mean(dim=0)

    def answers(self, x: Tensor) -> list[Tensor]:
        """Each member's logits."""
        return [member(x) for member in self.members]


@dataclass(frozen=True, kw_only=True)
class Ensemble(Defense):
    """`members` networks, the first of which begins as the undefended run of its seed; the loss is the sum of their cross-entropies."""

    members: Annotated[int, at_least(2)]

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        return Defended(MeanLogits([make_net() for _ in range(self.members)]))

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        assert isinstance(model.network, MeanLogits)
        answers = model.network.answers(self.augmented(batch))
        return torch.stack([cross_entropy(logits, batch.y).mean() for logits in answers]).sum()
