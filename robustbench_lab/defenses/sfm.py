"""SFM-Defense: a sparse feature masker before the network, trained in turns with it, and fixed pre-processing between the two.

Source: Yu, Wang, Wang, Tian and Yu 2022 (SFM-Defense), Journal of Network Intelligence 7(4), 972-992, sections 3 to 5, Algorithm 1. No code
of it is public.
Readings: a mask is the sigmoid of an Attention U-Net with one channel of output; F(x), whose cosine is taken, are logits; the masker's pass
sends no gradient into the classifier, which answers in eval mode, so that its BatchNorm stays as it was.
The paper writes its norms for one image. Taken so, no weights that it prints make a mask sparse: over free masks, sparsity and
reconstruction together are least at m = 1 unless (w1 / w3) sqrt(sum_p (a_p / s_p)^2) > 1, with a_p and s_p the l1 and l2 norm of pixel p's
channels, which is .14 for an image of CIFAR-10. Taken over a whole batch, as a plain `norm` of the tensor is, they do from 55 images on;
and only a semantic term that is summed over the batch too can weigh against the two. Hence the default, `batch` for all three.
Limits: with these reductions the balance of the terms depends on the batch's size, also on that of an epoch's last, smaller one. White box,
the defense leaves what BPDA leaves of it (the paper's table 7: 11 % at 8/255).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from robustbench_lab.backbones.attention_unet import AttentionUNet
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense, Player, Turns, require_begun
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.mask import MaskFront, kept_brightness, share_of_zeros
from robustbench_lab.knobs import Count, Epoch, NotNegative, Positive, at_least, require
from robustbench_lab.models.defended import Classifier, Defended, cross_entropy, frozen
from robustbench_lab.models.front import Front, learn_from, made_fronts

Reduction = Literal["batch", "image"]


@dataclass(frozen=True, kw_only=True)
class SparseFeatureMasker(Defense):
    """Each epoch is a pass of the classifier, CE(F(T(x)), y), and, from `first_epoch` on, a pass of the masker m, which lowers
    sparsity_weight |m x|_1 + semantic_weight (1 - cos(F(x), F(m x))) + reconstruction_weight |x - m x|_2 (eqs. 2 to 5).

    T are the `fronts`, by name, in the order of `order`, or else of their names; the model is x -> F(T(m(x) x)).
    width, levels: of the Attention U-Net: channels at full size, and how often it halves the images.
    ..._reduction: of each term, `batch`: the sum over the batch, for the reconstruction one l2 norm of the whole batch; `image`: the mean
    over images of what the term is for one, so that weights mean the same at every size of batch.
    training_order: `as_published`: x in this loss is T(x), and F sees masked images without a second T; `aligned`: as the model is used,
    cos(F(T(x)), F(T(m(x) x))), through T's surrogate gradient.
    classifier: `alternating`; `frozen`: it is trained before `first_epoch` alone, and the masker alone from then on.
    train_on_masked: whether the classifier learns from masked images too, half of its loss, once there are masks (not in the paper).
    masker_lr_factor: the masker's learning rate as a factor of the classifier's.
    """

    fronts: Mapping[str, Callable[[], Front]]
    order: Sequence[str] | None
    width: Annotated[int, at_least(2)]
    levels: Count
    first_epoch: Epoch
    masker_lr_factor: Positive
    sparsity_weight: NotNegative
    semantic_weight: NotNegative
    reconstruction_weight: NotNegative
    sparsity_reduction: Reduction
    semantic_reduction: Reduction
    reconstruction_reduction: Reduction
    training_order: Literal["as_published", "aligned"]
    classifier: Literal["alternating", "frozen"]
    train_on_masked: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        made_fronts(self.fronts, self.order)
        weights = self.sparsity_weight, self.semantic_weight, self.reconstruction_weight
        require(any(weights), "sparsity_weight", "a number > 0 where semantic_weight and reconstruction_weight are 0", self.sparsity_weight)
        if self.classifier == "frozen":
            require(self.first_epoch > 0, "first_epoch", "1 or more with classifier=frozen, which is trained before it alone", 0)
            require(not self.train_on_masked, "train_on_masked", "false with classifier=frozen, which sees no masks", True)

    def check_epochs(self, epochs: int) -> None:
        require_begun(self.first_epoch, epochs, "first_epoch", "the masker's training")

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()  # first: its weights are those of the undefended run
        assert isinstance(net, Classifier)
        if net.image_shape is None:
            raise LabError("model: expected a Classifier that says the shape of its images (image_shape), to know the masker's")
        mask = MaskFront(AttentionUNet(net.image_shape[0], 1, self.width, self.levels))
        try:
            mask.check(net.image_shape)
        except LabError as error:
            raise LabError(f"defense.{error}") from error
        return Defended(net, [mask, *made_fronts(self.fronts, self.order, net.image_shape, within="defense.")])

    def prepare(self, model: Defended, train_data: ImageSet, teacher: nn.Module | None) -> None:
        learn_from(model.each_front(), teacher)

    def players(self, model: Defended) -> list[Player]:
        masker = [{"params": list(_mask(model).parameters()), "lr_factor": self.masker_lr_factor}]
        until = self.first_epoch if self.classifier == "frozen" else None
        return [
            Player("classifier", model.network.parameters(), self.loss, Turns(until=until)),
            Player("masker", masker, self.masker_loss, Turns(own_pass=True, first_epoch=self.first_epoch)),
        ]

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        """The classifier's: on T(x), without masks; with `train_on_masked`, the mean of that and the one on masked images."""
        shown = _fixed(model)(batch.x)
        loss = cross_entropy(model.network(shown), batch.y).mean()
        if not self.train_on_masked or batch.epoch < self.first_epoch:
            return loss
        mask = _mask(model)
        with frozen(mask), torch.no_grad():
            masked = mask(shown) if self.training_order == "as_published" else _fixed(model)(mask(batch.x))
        return (loss + cross_entropy(model.network(masked), batch.y).mean()) / 2

    def masker_loss(self, model: Defended, batch: Batch) -> Tensor:
        """Eq. 2, the semantic term of the classifier as it is: in eval mode, without gradients of its own."""
        fixed, mask = _fixed(model), _mask(model)
        with frozen(model.network) as classifier:
            if self.training_order == "as_published":
                x = fixed(batch.x)
                masked = mask(x)
                shown, shown_masked = x, masked
            else:
                x = batch.x
                masked = mask(x)
                shown, shown_masked = fixed(x), fixed(masked)
            with torch.no_grad():
                answers = classifier(shown)
            masked_answers = classifier(shown_masked)
        # within autocast logits are bf16, in which a cosine near 1 has two digits
        return self.mask_loss(x, masked, answers.to(x.dtype), masked_answers.to(x.dtype))

    def mask_loss(self, x: Tensor, masked: Tensor, answers: Tensor, masked_answers: Tensor) -> Tensor:
        """Eq. 2 of images x and what masks left of them, [B, C, H, W], and the logits of both, [B, K]; a scalar."""
        taken = x - masked
        sparsity = _reduced(masked.abs().flatten(1).sum(dim=1), self.sparsity_reduction)
        semantic = _reduced(1 - cosine(answers, masked_answers), self.semantic_reduction)
        whole = self.reconstruction_reduction == "batch"
        lengths = torch.linalg.vector_norm(taken if whole else taken.flatten(1), dim=None if whole else 1)
        return self.sparsity_weight * sparsity + self.semantic_weight * semantic + self.reconstruction_weight * lengths.mean()

    @torch.no_grad()
    def epoch_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """Of masks as the model uses them: their mean, the share of them that is next to zero, which share of the images' brightness they
        keep, and the mean cosine of logits on T(x) and on T(m(x) x). Masks that are all ones or all zeros are seen here."""
        fixed, mask = _fixed(model), _mask(model)
        found = []
        for x, _, _ in batches:
            masks = mask.masks(x)
            masked = masks * x
            similar = cosine(model.network(fixed(x)), model.network(fixed(masked)))
            found.append(torch.stack([masks.flatten(1).mean(dim=1), share_of_zeros(masks), kept_brightness(x, masked), similar]))
        means = torch.cat(found, dim=1).mean(dim=1).tolist()
        return dict(zip(("mask_mean", "mask_zeros", "mask_brightness", "mask_cosine"), means, strict=True))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each pair of vectors [B, K], [B]; 0, with no gradient, where one of them is 0."""
    lengths = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    defined = lengths > 0
    return torch.where(defined, (a * b).sum(dim=1) / torch.where(defined, lengths, 1.0), 0.0)


def _reduced(values: Tensor, reduction: Reduction) -> Tensor:
    return values.sum() if reduction == "batch" else values.mean()


def _mask(model: Defended) -> MaskFront:
    mask = model.fronts[0]
    assert isinstance(mask, MaskFront)
    return mask


def _fixed(model: Defended) -> nn.Module:
    """T: the fronts behind the mask."""
    return model.fronts[1:]
