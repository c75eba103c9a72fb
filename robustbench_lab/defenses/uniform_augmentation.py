"""Uniform data augmentation: noise of the same standard deviation as Gaussian augmentation's, but with an edge.

Source: Zantedeschi, Nicolae and Rawat 2017 (Efficient Defenses), arXiv:1707.06728, section 3.2 (4): "drawn from the Uniform distribution
centered in x". Its range is unstated.
Reading: as for Gaussian augmentation, the originals plus fixed noisy copies; each pixel has its own noise.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from robustbench_lab.defenses.base import NoisyCopies
from robustbench_lab.knobs import Positive
from robustbench_lab.randomness import ImageRandom


@dataclass(frozen=True, kw_only=True)
class UniformAugmentation(NoisyCopies):
    """Learn from each image and `noisy_copies` copies of it with uniform noise.

    reach: the noise lies in [-reach, reach], a fraction of the pixel range; its standard deviation is reach / sqrt(3).
    """

    reach: Positive

    def noise(self, rng: ImageRandom, shape: tuple[int, ...]) -> Tensor:
        return rng.fold("uniform").uniform(*shape, low=-self.reach, high=self.reach)
