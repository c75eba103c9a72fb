"""Gaussian data augmentation (GDA) and the bounded ReLU, each alone or together.

Source: Zantedeschi, Nicolae and Rawat 2017 (Efficient Defenses), arXiv:1707.06728, sections 3.1 (bounded ReLU) and 3.2 (GDA).
Reading: the originals plus N fixed noisy copies, not clipped, as the authors' code does; the paper's formula has the noisy copies only
(include_clean=false) and its toy study clips (clip=true).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from robustbench_lab.defenses.base import Defense, NoisyCopies
from robustbench_lab.knobs import Positive
from robustbench_lab.models.defended import Defended, replace_modules
from robustbench_lab.randomness import ImageRandom


@dataclass(frozen=True, kw_only=True)
class BoundedActivations(Defense):
    """Standard training of a network whose ReLUs are cut off at `bound`; null leaves them as they are."""

    bound: Positive | None

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        if self.bound is not None:
            bound = self.bound
            replace_modules(net, nn.ReLU, lambda _: BoundedReLU(bound))
        return Defended(net)


@dataclass(frozen=True, kw_only=True)
class GaussianAugmentation(BoundedActivations, NoisyCopies):
    """Learn from each image and `noisy_copies` copies of it with Gaussian noise.

    sigma: standard deviation of the noise, as a fraction of the pixel range. The other knobs: `NoisyCopies`, `BoundedActivations`.
    """

    sigma: Positive

    def noise(self, rng: ImageRandom, shape: tuple[int, ...]) -> Tensor:
        return self.sigma * rng.fold("gda").normal(*shape)


class BoundedReLU(nn.Module):
    """min(max(x, 0), bound).

    Source: Zantedeschi, Nicolae and Rawat 2017 (Efficient Defenses), arXiv:1707.06728, section 3.1.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = bound

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.hardtanh(x, 0.0, float(self.bound))  # clamp's backward pass takes five times as long on a CPU

    def extra_repr(self) -> str:
        return f"bound={self.bound}"
