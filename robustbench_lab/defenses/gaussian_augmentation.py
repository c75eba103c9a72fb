"""Gaussian data augmentation (GDA) and the bounded ReLU, each alone or together.

Source: Zantedeschi, Nicolae and Rawat 2017 (Efficient Defenses), arXiv:1707.06728, sections 3.1 (bounded ReLU) and 3.2 (GDA).
Reading: the originals plus N fixed noisy copies, not clipped, as the authors' code does; the paper's formula has the noisy copies only
(include_clean=false) and its toy study clips (clip=true).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import require_count
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.models import BoundedReLU, Defended, replace_modules
from robustbench_lab.threats import is_number, per_image, require


@dataclass(frozen=True, kw_only=True)
class BoundedActivations(Defense):
    """Standard training of a network whose ReLUs are cut off at `bound`; null leaves them as they are."""

    bound: float | None

    def __post_init__(self) -> None:
        require(self.bound is None or (is_number(self.bound) and self.bound > 0), "bound", "a number > 0, or null", self.bound)

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        if self.bound is not None:
            bound = self.bound
            replace_modules(net, nn.ReLU, lambda _: BoundedReLU(bound))
        return Defended(net)


@dataclass(frozen=True, kw_only=True)
class GaussianAugmentation(BoundedActivations):
    """Learn from each image and `noisy_copies` copies of it with Gaussian noise.

    sigma: standard deviation of the noise, as a fraction of the pixel range.
    include_clean: whether the original is one of the copies.
    resample_each_epoch: new noise in each epoch; otherwise each copy keeps its own.
    clip: cut the noisy copies to [0, 1].
    """

    sigma: float
    noisy_copies: int
    include_clean: bool
    resample_each_epoch: bool
    clip: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(is_number(self.sigma) and self.sigma > 0, "sigma", "a number > 0", self.sigma)
        require_count(self.noisy_copies, "noisy_copies")
        for key in ("include_clean", "resample_each_epoch", "clip"):
            require(isinstance(getattr(self, key), bool), key, "true or false", getattr(self, key))

    @property
    def copies(self) -> int:
        return self.noisy_copies + int(self.include_clean)

    def augmented(self, batch: Batch) -> Tensor:
        """The noisy images [B, C, H, W]; with `include_clean`, copy 0 is the original."""
        rng = batch.rng if self.resample_each_epoch else batch.fixed_rng
        noise = self.sigma * rng.fold("gda").normal(*batch.x.shape[1:])
        if self.include_clean:
            noise = noise * per_image(batch.copy > 0, noise)
        x = batch.x + noise
        return x.clamp(0, 1) if self.clip else x

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        with torch.no_grad():
            x = self.augmented(batch)
        return super().loss(model, replace(batch, x=x))
