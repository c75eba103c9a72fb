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

    def transform(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not define transform")

    def surrogate(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        exact, differentiable = self.transform(x.detach()), self.surrogate(x)
        if exact.shape != differentiable.shape:
            raise TypeError(f"{type(self).__name__}: transform gave {list(exact.shape)}, its surrogate {list(differentiable.shape)}")
        return _Straight.apply(exact, differentiable)

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


def made_fronts(makers: Mapping[str, Callable[[], Front]], order: Sequence[str], key: str, order_key: str) -> list[Front]:
    """New fronts, in this order. Raises LabError, naming the key, for what makes none and for a wrong knob."""
    named = all(callable(make) and not isinstance(make, nn.Module) for make in makers.values())
    require(named, key, "what makes a front, with _partial_: true, for each model its own", makers)
    require(sorted(order) == sorted(makers), order_key, f"{', '.join(makers)}, each once", list(order))
    found = []
    for name in order:
        try:
            found.append(makers[name]())
        except LabError as error:
            raise LabError(f"{key}.{name}.{error}") from error
    return found


def fitting_fronts(fronts: Sequence[Front], names: Sequence[str], network: nn.Module, key: str) -> Sequence[Front]:
    """The fronts, which can transform the network's images. Raises LabError, naming the key, for one that cannot."""
    shape = getattr(network, "image_shape", None)
    for name, front in zip(names, fronts, strict=True):
        try:
            if shape is not None:
                front.check(shape)
        except LabError as error:
            raise LabError(f"{key}.{name}.{error}") from error
    return fronts


def learn_from(fronts: Sequence[Front], teacher: nn.Module | None) -> None:
    """Let the fronts that need another run take what they need from it."""
    for front in fronts:
        if front.needs_teacher:
            assert teacher is not None, "a defense whose front needs a teacher names one"
            front.learn_from(teacher)
