"""Feature matching (FM): classify by the nearest of K learned label embeddings.

Source: "Feature matching", IJMIR 2021, doi:10.1007/s13735-021-00219-0, section 3, eq. 6-10.
Readings, where the paper is silent or ambiguous, are knobs: the negative term of eq. 6 (`negatives`; the text says that it is zero only if
all negatives lie beyond beta), the loss that the training attack climbs and the labels that it uses (knobs of `attack`).
Limits: beta is about 0.006 to 0.016, so classes may end a few hundredths apart, and the hinges have zero gradient once satisfied: an
attack that climbs this loss can be blind. Evaluate with loss=ce and loss=margin too, which see minus the distances as logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_lab.defenses.base import MixedDefense
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Positive, one_of
from robustbench_lab.models.defended import Defended

NEGATIVES = ("sum", "mean", "hardest")


class LabelEmbeddings(nn.Module):
    """Minus the Euclidean distances between features [B, F] and K label embeddings, as logits [B, K] (eq. 8 and 9).

    Computed in float32 whatever the features' precision: distances are differences of near numbers. Its K * F weights replace the linear
    layer's and there is no bias, so that a defended network has K parameters fewer.
    """

    def __init__(self, in_features: int, out_features: int, init_std: float) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * init_std)

    def forward(self, features: Tensor) -> Tensor:
        difference = features.float().unsqueeze(1) - self.weight.float()
        # Inside the root, 1e-20 keeps the gradient finite at distance 0, and lies far below alpha ** 2 (about 1e-16).
        return -(difference.square().sum(dim=2) + 1e-20).sqrt()


@dataclass(frozen=True)
class FullpleLoss:
    """Eq. 6 per image, [B], from minus the distances [B, K]: max(d_y - alpha, 0) + the negatives' max(beta - d_j, 0)."""

    alpha: float
    beta: float
    negatives: str

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        distances = -logits
        positive = (distances.gather(1, y[:, None])[:, 0] - self.alpha).clamp(min=0)
        hinges = (self.beta - distances).clamp(min=0).scatter(1, y[:, None], 0.0)
        if self.negatives == "hardest":
            return positive + hinges.amax(dim=1)
        return positive + hinges.sum(dim=1) / (1 if self.negatives == "sum" else logits.shape[1] - 1)


@dataclass(frozen=True, kw_only=True)
class FeatureMatching(MixedDefense):
    """The weighted sum of `MixedDefense` (eq. 10), with the fullple loss.

    alpha_scale, beta_scale: eq. 7, multiplied by the root of the feature length.
    negatives: how the hinges of the other classes add up: sum, mean, or hardest (only the nearest).
    embedding_std: standard deviation of the embeddings' initial values (not stated in the paper).
    """

    alpha_scale: Positive
    beta_scale: Positive
    negatives: Annotated[str, one_of(NEGATIVES)]
    embedding_std: Positive

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        head = getattr(getattr(net, "backbone", None), "head", None)
        if not isinstance(head, nn.Linear):
            raise LabError(
                f"backbone: defense feature matching replaces the linear head, but the head is {type(head).__name__}; choose a backbone "
                "whose head is nn.Linear, such as backbone=resnet18 or backbone=small_resnet, or another defense"
            )
        net.backbone.head = LabelEmbeddings(head.in_features, head.out_features, self.embedding_std)  # type: ignore[union-attr]
        return Defended(net, own_loss=self.fullple(head.in_features))

    def epoch_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """Whether classes collapse onto each other, in the features' unit.

        smallest_embedding_distance: of the two nearest label embeddings. mean_own_distance, mean_nearest_other_distance: from an image's
        features to its class's embedding, and to the nearest other one.
        """
        own, other = [], []
        for x, y, _ in batches:
            distances = -model(x)
            own.append(distances.gather(1, y[:, None])[:, 0])
            other.append(distances.scatter(1, y[:, None], torch.inf).amin(dim=1))
        return {
            "smallest_embedding_distance": float(F.pdist(model.get_parameter("network.backbone.head.weight").detach()).min()),
            "mean_own_distance": float(torch.cat(own).mean()),
            "mean_nearest_other_distance": float(torch.cat(other).mean()),
        }

    def fullple(self, length: int) -> FullpleLoss:
        """The loss for features of this length (eq. 7)."""
        return FullpleLoss(math.sqrt(length) * self.alpha_scale, math.sqrt(length) * self.beta_scale, self.negatives)
