"""The contract of a training method; the base class itself is standard training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.knobs import Count, Epoch, Knobs, NotNegative, require
from robustbench_lab.models.defended import Defended, cross_entropy, frozen
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    x [B, C, H, W] in [0, 1], augmented; y int64 [B]; ids int64 [B] in the training split; copy int64 [B], which visit of the epoch this is
    to each image (0 unless the defense has `copies` > 1); epoch from 0; rng, tied to image, copy and epoch; fixed_rng, tied to image and
    copy: the same in every epoch; teacher: of a `Taught` defense, the run that it learns from, in eval mode, parameters without gradients.
    """

    x: Tensor
    y: Tensor
    ids: Tensor
    copy: Tensor
    epoch: int
    rng: ImageRandom
    fixed_rng: ImageRandom
    teacher: nn.Module | None = None


@dataclass(frozen=True)
class Turns:
    """When a player moves: within each step of a pass over the images, after the players before it; or in a pass of its own over all images
    of the epoch, in another order, after the players before it are through with theirs. It waits until `first_epoch`, and stands still from
    epoch `until` on, if there is one.
    """

    own_pass: bool = False
    first_epoch: int = 0
    until: int | None = None

    def at(self, epoch: int) -> bool:
        """Whether it moves in this epoch."""
        return self.first_epoch <= epoch and (self.until is None or epoch < self.until)


@dataclass(frozen=True)
class Player:
    """One side of alternating training: its parameters, or groups of them, get their own optimiser, which lowers its loss at each turn.

    parameters: a group may have an `lr_factor`, by which its learning rate is multiplied at each step.
    loss: a scalar; or an iterator over the scalars that it is the sum of, each made after the one before has had its backward pass, so that
    memory is that of one term.
    in_eval: modules that are in eval mode while it moves, such as BatchNorm layers whose statistics shall not. Fixed fronts always are.
    """

    name: str
    parameters: Iterable[nn.Parameter] | Iterable[Mapping[str, Any]]
    loss: Callable[[Defended, Batch], Tensor | Iterator[Tensor]]
    turns: Turns = Turns()
    in_eval: Sequence[nn.Module] = ()


@dataclass(frozen=True, kw_only=True)
class Defense(Knobs):
    """A training method, by hooks; without any it is standard training.

    A defense object holds no learned state: whatever it learns are buffers or parameters of the model.

    trains_density: whether the network is a density of images (backbones.density.Density) and no classifier.
    """

    trains_density: ClassVar[bool] = False

    @property
    def copies(self) -> int:
        """How many times an epoch visits each image; `batch.copy` says which visit it is."""
        return 1

    @property
    def learns_originals(self) -> bool:
        """Whether training has its own images beside the `extra_images`."""
        return True

    def check_epochs(self, epochs: int) -> None:
        """Before each training: stop if it would end before the defense has begun. Raises LabError, naming both keys."""

    def check_passes(self, precision: str, compiled: bool) -> None:
        """Before each training: stop if its passes cannot be made so (Recipe's precision and compile). Raises LabError, naming the key."""

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        """Once, before any optimiser: the object that is trained and attacked. `make_net` returns a new Classifier at each call,
        or a new Density if it `trains_density`."""
        return Defended(make_net())

    def prepare(self, model: Defended, train_data: ImageSet, teacher: nn.Module | None) -> None:
        """Once, before step 0, and not again after a resume: what it takes from data and teacher goes into the model's weights and buffers.

        teacher: as in Batch.
        """

    def extra_images(self, model: Defended, teacher: nn.Module | None, train_data: ImageSet, seed: int) -> ImageSet | None:
        """At each start, before the first step: images that training has beside its own, the same at every start; None for none.

        model: of it only the fronts are the same at every start. teacher: as in Batch. Their ids belong to them alone: not to the training
        images, not to each other.
        """
        return None

    def augmented(self, batch: Batch) -> Tensor:
        """The images [B, C, H, W] that the loss looks at in place of `batch.x`, as far as they do not depend on the model."""
        return batch.x

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        """Each step: the scalar to lower."""
        return cross_entropy(model(self.augmented(batch)), batch.y).mean()

    def players(self, model: Defended) -> list[Player]:
        """Once: who is trained on what, and when: several alternate within a step, or pass by pass."""
        return [Player("model", model.parameters(), self.loss)]

    def after_step(self, model: Defended) -> None:
        """After the optimisers moved: constraints on the weights."""

    def epoch_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """After each epoch: what else its line in the metrics says, by name; the model, in eval mode, stays as it is.

        batches: x [B, C, H, W], y [B] and ids [B] of some images that training learns from, without augmentation: at most 1,000, evenly
        spread over them, which is enough for two digits.
        """
        return {}

    def validation_metrics(self, model: Defended, batches: Iterable[tuple[Tensor, Tensor, Tensor]]) -> dict[str, float]:
        """The same of all images that the recipe holds out, if there are any, in place of the accuracy on them; nothing: the accuracy."""
        return {}


@dataclass(frozen=True, kw_only=True)
class NoisyCopies(Defense, ABC):
    """Cross-entropy on each image and `noisy_copies` copies of it, each with its own `noise`.

    include_clean: whether the original is one of the copies.
    resample_each_epoch: new noise in each epoch; otherwise each copy keeps its own.
    clip: cut the noisy copies to [0, 1].
    """

    noisy_copies: Count
    include_clean: bool
    resample_each_epoch: bool
    clip: bool

    @abstractmethod
    def noise(self, rng: ImageRandom, shape: tuple[int, ...]) -> Tensor:
        """What is added to images of this shape, [B, *shape]."""

    @property
    def copies(self) -> int:
        return self.noisy_copies + int(self.include_clean)

    def augmented(self, batch: Batch) -> Tensor:
        """The noisy images [B, C, H, W]; with `include_clean`, copy 0 is the original."""
        noise = self.noise(batch.rng if self.resample_each_epoch else batch.fixed_rng, batch.x.shape[1:])
        if self.include_clean:
            noise = noise * per_image(batch.copy > 0, noise)
        x = batch.x + noise
        return x.clamp(0, 1) if self.clip else x


@dataclass(frozen=True, kw_only=True)
class Taught(Defense):
    """A defense that learns from another finished run, its teacher.

    teacher: the words in which that run differs from this one, such as [defense=standard]: what they do not name, images, network, recipe
    and seed, is the same. What is learned stands in `prepare`, in `extra_images`, or in a loss that looks at `batch.teacher`.
    """

    teacher: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class AdversarialDefense(Defense):
    """A defense that attacks itself while it trains: what to search with, and where."""

    attack: Attack
    budget: Budget

    def __post_init__(self) -> None:
        super().__post_init__()
        self.attack.check(self.budget)

    def adversarial(self, model: Defended, x: Tensor, y: Tensor, rng: ImageRandom) -> Tensor:
        """x_adv against the current weights in eval mode; leaves no trace in the model (BatchNorm statistics do not move)."""
        with frozen(model) as target:
            return self.attack(target, x, y, self.budget, rng)


@dataclass(frozen=True, kw_only=True)
class MixedDefense(AdversarialDefense):
    """clean_weight * L(x) + adversarial_weight * L(x_adv); L(x) alone before `start_epoch`, and without an adversarial weight.

    L is the model's own loss, cross-entropy unless the defense says otherwise. Whether the search uses the true labels or the model's
    predictions is a knob of the attack. Both passes run in train mode, clean first.
    """

    clean_weight: NotNegative
    adversarial_weight: NotNegative
    start_epoch: Epoch

    def check_epochs(self, epochs: int) -> None:
        if self.adversarial_weight:
            require_begun(self.start_epoch, epochs, "start_epoch", "adversarial training")

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        return torch.stack(list(self.terms(model, batch))).sum()

    def terms(self, model: Defended, batch: Batch) -> Iterator[Tensor]:
        """The scalars that the loss is the sum of: the clean one, then the adversarial one."""
        own = model.own_loss
        if batch.epoch < self.start_epoch or not self.adversarial_weight:
            yield own(model(batch.x), batch.y).mean()
            return
        x_adv = self.adversarial(model, batch.x, batch.y, batch.rng)
        if self.clean_weight:
            yield self.clean_weight * own(model(batch.x), batch.y).mean()
        yield self.adversarial_weight * own(model(x_adv), batch.y).mean()

    def players(self, model: Defended) -> list[Player]:
        return [Player("model", model.parameters(), self.terms)]


def require_begun(start_epoch: int, epochs: int, key: str, what: str) -> None:
    expected = f"less than training.epochs={epochs}, so that {what} begins (lower it, as the choices defense=*_quick do, or train longer)"
    require(start_epoch < epochs, f"defense.{key}", expected, start_epoch)
