"""What stands before a network, and how an attack goes around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require


class _Straight(torch.autograd.Function):
    """The first argument forward, the second argument's gradient backward."""

    @staticmethod
    def forward(ctx, exact: Tensor, differentiable: Tensor) -> Tensor:
        return exact.view_as(exact)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def straight(exact: Tensor, differentiable: Tensor) -> Tensor:
    """The first forward, the second's gradient backward; both of one shape."""
    return _Straight.apply(exact, differentiable)


class Front(nn.Module):
    """A stage before the network: [B, C, H, W] in [0, 1] to the same; H and W may change where the network takes other sizes.

    `transform` may be anything; `surrogate` is its differentiable stand-in, of the same shape: the identity unless a front knows better.
    Forward gives exactly the transform, backward the surrogate's gradient (BPDA, Athalye et al. 2018, arXiv:1802.00420, section 4.1). A
    front whose transform is differentiable overrides `forward`.

    random: whether it draws, in train and eval mode, from the global generator: the model is stochastic then. One that is a
    `models.noise.NoiseLayer` too draws only while `active`, so that its noise can be switched off; of any other, that is refused.
    needs_network: whether `transform` looks at the network that it stands before, `self.network`.
    needs_teacher: whether it learns from another run, such as a density model; the defense's `teacher` is then that run.
    A front that multiplies masks into its images has a method `masks`, [B, C, H, W] to [B, 1, H, W] in [0, 1], which pictures show.
    """

    random: ClassVar[bool] = False
    needs_network: ClassVar[bool] = False
    needs_teacher: ClassVar[bool] = False

    def check(self, shape: Sequence[int]) -> None:
        """When a model is built: stop if it cannot transform images [C, H, W]. Raises LabError, naming the knob and the images."""

    def shown_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """[C, H, W] of what it makes of images [C, H, W]."""
        return tuple(shape)

    def transform(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define transform")

    def surrogate(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        exact, differentiable = self.transform(x.detach()), self.surrogate(x)
        if exact.shape != differentiable.shape:
            raise TypeError(f"{type(self).__name__}: transform gave {list(exact.shape)}, its surrogate {list(differentiable.shape)}")
        return straight(exact, differentiable)

    def fit(self, images: ImageSet, rng: torch.Generator) -> None:
        """Once, before the first step: what it learns from the training images goes into its buffers.

        rng: on the CPU, seeded by the run's seed and the front's place.
        """

    def learn_from(self, teacher: nn.Module) -> None:
        """At each start, before the first step, if it `needs_teacher`: what it takes from that run goes into its buffers or parameters."""

    def attach(self, network: nn.Module) -> None:
        """Called when it is put before a network, if it `needs_network`."""
        self._network = [network]  # in a list: no submodule of the front, whose weights would be in the checkpoint twice

    @property
    def network(self) -> nn.Module:
        return self._network[0]

    @property
    def learned(self) -> bool:
        """Whether training moves it; a threat model that hides the fixed fronts shows it. A front whose parameters are fixed, such as a
        density model's, says False."""
        return any(True for _ in self.parameters())


class WithIdentityGradient(Front):
    """A fixed front whose gradient is the identity's, whatever it knows better; it sees and draws as the front does."""

    learned = False

    def __init__(self, front: Front) -> None:
        super().__init__()
        self.front = front
        self.random = front.random  # type: ignore[misc]

    def transform(self, x: Tensor) -> Tensor:
        shown: Tensor = self.front(x)
        require(
            shown.shape == x.shape, "threat_model.surrogate", f"null for {type(self.front).__name__}, which changes the size", "identity"
        )
        return shown


def made_fronts(
    makers: Mapping[str, Callable[[], Front]], order: Sequence[str] | None, shape: Sequence[int] | None = None, within: str = ""
) -> list[Front]:
    """New fronts, in this order, or else in that of their names, for images [C, H, W] of this shape, where it is known.

    Raises LabError, naming `fronts` or `order` within another key, for what makes none, a wrong knob, and images that one cannot transform.
    """
    named = all(callable(make) and not isinstance(make, nn.Module) for make in makers.values())
    require(named, f"{within}fronts", "what makes a front, with _partial_: true, for each model its own", makers)
    order = list(makers) if order is None else order
    require(sorted(order) == sorted(makers), f"{within}order", f"{', '.join(makers)}, each once", list(order))
    found = []
    for name in order:
        try:
            found.append(makers[name]())
            if shape is not None:
                found[-1].check(shape)
                shape = found[-1].shown_shape(shape)
        except LabError as error:
            raise LabError(f"{within}fronts.{name}.{error}") from error
    return found


def learn_from(fronts: Sequence[Front], teacher: nn.Module | None) -> None:
    """Let the fronts that need another run take what they need from it. Raises LabError where there is none."""
    for front in fronts:
        if front.needs_teacher:
            words = "the words of the run that it learns from, in `teacher` of its choice in conf/front"
            require(teacher is not None, "defense.fronts", f"for {type(front).__name__} {words}", None)
            assert teacher is not None
            front.learn_from(teacher)
