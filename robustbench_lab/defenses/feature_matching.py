"""Feature matching (FM): classify by the nearest of K learned label embeddings.

Source: "Feature matching", IJMIR 2021, doi:10.1007/s13735-021-00219-0, section 3, eq. 6-10.
Readings, where the paper is silent or ambiguous, are knobs: how far the root of eq. 7 reaches (`radical`), the negative term of eq. 6
(`negatives`; the text says that it is zero only if all negatives lie beyond beta), how fast the embeddings learn (`embedding_lr`), the loss
that the training attack climbs and the labels that it uses (knobs of `attack`).

What decides whether it learns is a race. Far from the hinges the loss is the mean distance to the own embedding, and it falls fastest if
everything moves together: with SGD, momentum 0.9 and ten classes the own distance falls by the sum of the learning rates, whatever has been
learned. Only beta stops the fall, and the embeddings end about beta apart. There a step of the optimiser must be small beside beta, and the
features, about beta long, give the body gradients in proportion to beta: at length 64 and a rate of 0.2 a step is 36 betas under
radical=length (0.0056), which learns next to nothing, and one beta under radical=whole (0.21), which learns. An image within beta of all
embeddings costs beta wherever it lies there, until the network is more than half sure of its class: a plateau that a short schedule may
not leave. Embeddings that learn slowly or not at all (`embedding_lr`) do not fall together. Table fm/readings measures all of it;
metrics.jsonl tells the distances after each epoch, and a collapse is logged while it happens.

Limits: the own loss leads away from the label's embedding and not towards another class, is zero with its gradient within alpha of it, and
the two nearest embeddings may lie within a few hundredths of each other, which leaves the softmax of minus the distances nearly uniform: an
attack that climbs either is weak. Evaluate with attack=strongest: ce_scaled, the margin and targeted searches see such gaps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_lab.defenses.base import MixedDefense, Player
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import NotNegative, Positive, one_of
from robustbench_lab.models.defended import Defended

log = logging.getLogger("robustbench_lab")

NEGATIVES = ("sum", "mean", "hardest")


class LabelEmbeddings(nn.Module):
    """Minus the Euclidean distances between features [B, F] and K label embeddings, as logits [B, K] (eq. 8 and 9).

    Computed in float32 whatever the features' precision: distances are differences of near numbers. Its K * F weights replace the linear
    layer's and there is no bias, so that a defended network has K parameters fewer; embeddings that do not learn are a buffer.
    """

    def __init__(self, in_features: int, out_features: int, init_std: float, learned: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        weight = torch.randn(out_features, in_features) * init_std
        self.weight: Tensor
        if learned:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)
        self.collapsed = False  # as far as the last look at the distances told
        self.remember()

    def remember(self) -> None:
        """Measure the next step from here."""
        self.before = self.weight.detach().clone()
        self.step = torch.zeros((), device=self.weight.device)

    def moved(self) -> None:
        """How far the embedding that moved farthest has moved since the last call: in `step`."""
        now = self.weight.detach()
        self.step = (now - self.before).norm(dim=1).amax()
        self.before = now.clone()

    def forward(self, features: Tensor) -> Tensor:
        difference = features.float().unsqueeze(1) - self.weight.float()
        # Inside the root, 1e-20 keeps the gradient finite at distance 0, and lies far below alpha ** 2 (1e-7; 1e-16 under radical=length).
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

    alpha, beta: eq. 7, mean squared differences per dimension: the thresholds are sqrt(length * alpha) and sqrt(length * beta) for features
    of that length (radical=whole). radical: how far the root reaches; with `length`, they are sqrt(length) * alpha and sqrt(length) * beta.
    negatives: how the hinges of the other classes add up: sum, mean, or hardest (only the nearest).
    embedding_std: standard deviation of the embeddings' initial values (not stated in the paper).
    embedding_lr: factor on the embeddings' learning rate; 0: they stay as they began.
    """

    alpha: Positive
    beta: Positive
    radical: Literal["whole", "length"]
    negatives: Annotated[str, one_of(NEGATIVES)]
    embedding_std: Positive
    embedding_lr: NotNegative

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        head = getattr(getattr(net, "backbone", None), "head", None)
        if not isinstance(head, nn.Linear):
            raise LabError(
                f"backbone: defense feature matching replaces the linear head, but the head is {type(head).__name__}; choose a backbone "
                "whose head is nn.Linear, such as backbone=resnet18 or backbone=small_resnet, or another defense"
            )
        embeddings = LabelEmbeddings(head.in_features, head.out_features, self.embedding_std, learned=self.embedding_lr > 0)
        net.backbone.replace_head(embeddings)  # type: ignore[operator, union-attr]
        return Defended(net, own_loss=self.fullple(head.in_features))

    def players(self, model: Defended) -> list[Player]:
        embeddings = embeddings_of(model)
        embeddings.remember()
        parameters = list(model.parameters())
        if self.embedding_lr in (0, 1):
            return [Player("model", parameters, self.terms)]
        others = [parameter for parameter in parameters if parameter is not embeddings.weight]
        groups: list[dict[str, Any]] = [{"params": others}, {"params": [embeddings.weight], "lr_factor": self.embedding_lr}]
        return [Player("model", groups, self.terms)]

    def after_step(self, model: Defended) -> None:
        embeddings_of(model).moved()

    def epoch_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """Whether classes collapse onto each other, in the features' unit; a warning is logged when they begin to.

        smallest_embedding_distance: of the two nearest label embeddings. mean_own_distance, mean_nearest_other_distance: from an image's
        features to its class's embedding, and to the nearest other one. median_gap: between the two embeddings that are nearest to an
        image, which is the margin of its prediction. beta: the threshold. embedding_step: how far an embedding moved in the last step.
        """
        own, other, gap = [], [], []
        for x, y, _ in batches:
            distances = -model(x)
            own.append(distances.gather(1, y[:, None])[:, 0])
            other.append(distances.scatter(1, y[:, None], torch.inf).amin(dim=1))
            nearest = distances.topk(2, dim=1, largest=False).values
            gap.append(nearest[:, 1] - nearest[:, 0])
        embeddings = embeddings_of(model)
        told = {
            "smallest_embedding_distance": float(F.pdist(embeddings.weight.detach()).min()),
            "mean_own_distance": float(torch.cat(own).mean()),
            "mean_nearest_other_distance": float(torch.cat(other).mean()),
            "median_gap": float(torch.cat(gap).median()),
            "beta": self.fullple(embeddings.in_features).beta,
            "embedding_step": float(embeddings.step),
        }
        _warn_of_collapse(embeddings, told)
        return told

    def fullple(self, length: int) -> FullpleLoss:
        """The loss for features of this length (eq. 7)."""
        if self.radical == "whole":
            return FullpleLoss(math.sqrt(length * self.alpha), math.sqrt(length * self.beta), self.negatives)
        return FullpleLoss(math.sqrt(length) * self.alpha, math.sqrt(length) * self.beta, self.negatives)


def embeddings_of(model: Defended) -> LabelEmbeddings:
    embeddings = model.get_submodule("network.backbone.head")
    assert isinstance(embeddings, LabelEmbeddings)
    return embeddings


def _warn_of_collapse(embeddings: LabelEmbeddings, told: dict[str, float]) -> None:
    """Once, when the two nearest embeddings fall below beta or below one step of the optimiser; again after they have parted."""
    smallest, beta, step = told["smallest_embedding_distance"], told["beta"], told["embedding_step"]
    collapsed = smallest < max(beta, step)
    if collapsed and not embeddings.collapsed:
        what = f"one step of the optimiser, {step:.2g}" if smallest < step else f"beta, {beta:.2g}"
        log.warning(
            "label embeddings fall together: the two nearest lie %.2g apart, less than %s; unless they part again, these classes will not "
            "be told apart (defense.embedding_lr=0.01, a lower training.optimizer.lr or defense.radical=whole may help)",
            smallest,
            what,
        )
    embeddings.collapsed = collapsed
