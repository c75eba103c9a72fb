"""The contract of an attack, and what an attack may ask of a model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Knobs, require
from robustbench_lab.models.defended import cross_entropy
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [B, K], y) -> [B]; attacks raise it


def is_wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Which images are misclassified, bool [B]; for probabilities as `y`, against their largest."""
    return logits.argmax(dim=1) != (y if y.dim() == 1 else y.argmax(dim=1))


class Attacked(Protocol):
    """What an attack may ask of a model beside its logits. There are no defaults: a wrapper that forgets one fails at once.

    decides: whether an image that this model misclassifies is broken, so that an attack may leave it alone; only an evaluation says so. Not
    so in training, when the model stands in for another one (transfer), or when its output is random: one lucky draw decides nothing.
    stochastic: whether two passes over one image may differ.
    samples: how many passes its answer is the mean of; draw: one of them.
    own_loss: the loss per image that it was trained with.
    """

    decides: bool
    stochastic: bool
    samples: int
    own_loss: Loss

    def draw(self, x: Tensor) -> Tensor: ...

    def __call__(self, x: Tensor) -> Tensor: ...


class Plain(nn.Module):
    """A module of which nothing is known but its logits, said to be deterministic, trained by cross-entropy, and to decide nothing."""

    decides = False
    stochastic = False
    samples = 1

    def __init__(self, module: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.module = module
        self.own_loss = cross_entropy

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)

    def draw(self, x: Tensor) -> Tensor:
        return self.module(x)


ASKED = ("decides", "stochastic", "samples", "own_loss", "draw")


def attacked(model: nn.Module) -> nn.Module:
    """The model as attacks want it, `Attacked`: itself, or as `Plain` if neither it nor anything in it has a word to say about it.

    Raises LabError for a wrapper that forgets some of the words, or around a model that has some.
    """
    missing = [name for name in ASKED if not hasattr(model, name)]
    if not missing:
        return model
    if not isinstance(model, nn.Module):
        return Plain(model)  # an attack's own function of the logits
    if any(hasattr(module, name) for module in model.modules() for name in ASKED):
        raise LabError(
            f"model: expected a {type(model).__name__} that says {', '.join(ASKED)} (see attacks.base.Attacked), but it, or a model in it, "
            f"says some of them, and it does not say {', '.join(missing)}"
        )
    return Plain(model)


@dataclass(frozen=True, kw_only=True)
class Attack(Knobs, ABC):
    """How to search for an adversarial example; the budget says where.

    `attack(model, x, y, budget, rng)` takes images [B, C, H, W] in [0, 1], their labels (int64 [B]), and streams of random numbers tied to
    the images; it returns x_adv of the same shape, inside the budget, detached. The model is in eval mode with frozen parameters, and is
    left as it was: gradients go to the image only. It is an `Attacked`; a plain module is searched as `Plain` (see `attacked`).

    An image's result depends on that image and its numbers alone, not on its batch: an attack may drop images from its loop as soon as
    `decides(model)` and they are misclassified, and must go on with the others as if they had been alone.

    norms: of the balls that it can search. needs_finite_ball: whether eps = inf is refused. needs_gradients: whether it differentiates the
    model; if not, needs_logits says whether labels alone are enough. minimal: whether it looks for the nearest misclassified image; in a
    finite ball it then returns that one if it lies inside, else a point of the ball. minimal_as_published: whether its authors' metrics
    take it for minimal, though it may miss the nearest. needs_labels: whether it looks at y. batchwise: whether an image's result may
    depend on its batch after all, as of a published fault that is reproduced; whole_split: whether it wants all images in one.
    separately: whether each of its stages attacks every image, and an evaluation tells of them one by one.
    Raises LabError when built with a wrong knob, or when the budget or the model is one that the attack cannot search.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    needs_finite_ball: ClassVar[bool] = True
    needs_gradients: ClassVar[bool] = True
    needs_logits: ClassVar[bool] = True
    minimal: ClassVar[bool] = False
    minimal_as_published: ClassVar[bool] = False
    needs_labels: ClassVar[bool] = True
    batchwise: ClassVar[bool] = False
    whole_split: ClassVar[bool] = False
    separately: ClassVar[bool] = False

    def check(self, budget: Budget) -> None:
        """Stop if this attack cannot search this ball."""
        name = type(self).__name__
        require(budget.norm in self.norms, "budget.norm", f"{' or '.join(self.norms)}, the norms that attack {name} has", budget.norm)
        if self.needs_finite_ball and budget.eps == math.inf:
            raise LabError(f"budget.eps: attack {name} needs a finite ball, got inf; set budget.eps, for example budget.eps=8/255")

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        self.check(budget)
        return self.search(attacked(model), x, y, budget, rng).detach()

    @abstractmethod
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        """The attack itself."""

    def stages(self) -> list[tuple[str, Attack]]:
        """The attacks that this one consists of, with their names; an image that one of them breaks is spared the later
        ones, unless they go `separately`."""
        return [(type(self).__name__, self)]


def decides(model: nn.Module) -> bool:
    return as_attacked(model).decides


def is_random(model: nn.Module) -> bool:
    return as_attacked(model).stochastic


def passes_of(model: nn.Module) -> list[Callable[[Tensor], Tensor]]:
    """The passes whose mean is the model's answer: one by one, they hold one graph at a time."""
    return [as_attacked(model).draw] * as_attacked(model).samples


def as_attacked(model: nn.Module) -> Attacked:
    """What `attacked` makes of it, by its other name: nn.Module and Attacked are two views of it, and a type has no word for both."""
    return cast(Attacked, attacked(model))


def rows(index: Tensor, *tensors: Any) -> tuple[Any, ...]:
    """Some of the images (bool or int64 index) of each tensor [B, ...] or ImageRandom: `x, y, rng = rows(kept, x, y, rng)`."""
    return tuple(tensor[index] for tensor in tensors)


def own_loss(model: nn.Module) -> Loss:
    return as_attacked(model).own_loss
