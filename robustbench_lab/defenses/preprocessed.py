"""Pre-processing: any list of fronts before a network, in training and in test, and standard training behind them.

White box: forward is the transformed image, backward the surrogates' gradient (BPDA). threat_model=gray_learned attacks the network without
the fixed fronts; the verdict falls on the transformed images either way.
Limits: a transform that hides gradients makes no network smoother: only attacks that go around it measure anything.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import one_of, require
from robustbench_lab.models.defended import Defended, cross_entropy, frozen
from robustbench_lab.models.front import Front, learn_from, made_fronts
from robustbench_lab.progress import progress
from robustbench_lab.randomness import stable_hash

AT_ONCE = 250  # images transformed at a time
TRAIN_ON = ("transformed", "transformed_once", "originals")


@dataclass(frozen=True, kw_only=True)
class Preprocessed(Defense):
    """Standard training of a network behind `fronts`, by name, in the order of `order`, or else of their names; each model gets its own.

    train_on: what the network learns from. `transformed`: each augmented image, transformed anew in each step. `transformed_once`: each
    image, transformed before the first step (with one draw of fronts that are random) and augmented after that: for fronts that are slow.
    `originals`: images that no front has seen; the fronts stand before a network that was trained without them.
    """

    fronts: Mapping[str, Callable[[], Front]]
    order: Sequence[str] | None
    train_on: Annotated[str, one_of(TRAIN_ON)]

    def __post_init__(self) -> None:
        super().__post_init__()
        made = made_fronts(self.fronts, self.order)
        require(len(made) > 0, "fronts", "one or more choices of conf/front, such as defense.fronts=[bit_depth]", self.fronts)

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()  # first: its weights are those of the undefended run
        shape = getattr(net, "image_shape", None)
        fronts = made_fronts(self.fronts, self.order, shape, within="defense.")
        if shape is not None:
            _check_takes(net, shape, functools.reduce(lambda seen, front: front.shown_shape(seen), fronts, tuple(shape)))
        return Defended(net, fronts)

    def prepare(self, model: Defended, train_data: ImageSet, teacher: nn.Module | None) -> None:
        learn_from(model.each_front(), teacher)

    @property
    def learns_originals(self) -> bool:
        return self.train_on != "transformed_once"

    def extra_images(self, model: Defended, teacher: nn.Module | None, train_data: ImageSet, seed: int) -> ImageSet | None:
        """The training images as the fronts show them, float32."""
        if self.learns_originals:
            return None
        learn_from(model.each_front(), teacher)
        shown, batches = [], train_data.batches(torch.arange(len(train_data)), AT_ONCE)
        bar = progress(total=len(train_data), initial=0, unit="image", desc="transform")
        model.eval()
        with torch.random.fork_rng(), torch.no_grad(), bar:
            torch.manual_seed(stable_hash(seed, "transformed"))
            for x, _, _ in batches:
                shown.append(model.fronts(x).clamp(0, 1))
                bar.update(len(x))
        return ImageSet(torch.cat(shown), train_data.labels, -1 - train_data.ids)

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        if self.train_on == "transformed":
            return super().loss(model, batch)
        return cross_entropy(model.network(batch.x), batch.y).mean()


def _check_takes(net: nn.Module, made_for: Sequence[int], shape: Sequence[int]) -> None:
    """Stop where the fronts show images [C, H, W] of another size than the network is made for, and it takes no others. Raises LabError."""
    if tuple(shape) == tuple(made_for):
        return
    try:
        with frozen(net, fast=False), torch.no_grad():
            net(torch.zeros(1, *shape))
    except RuntimeError as error:
        raise LabError(
            f"backbone: expected a network that takes images of {list(shape)}, which is what defense.fronts make of those of "
            f"{list(made_for)}: one that pools all of an image before its head, such as backbone=resnet20"
        ) from error
