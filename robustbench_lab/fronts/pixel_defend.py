"""PixelDefend: images are moved, within a small ball, to where a density of the training images finds them likelier.

Source: Song, Kim, Nowozin, Ermon and Kushman 2018, arXiv:1710.10766, algorithm 1; microsoft/PixelDefend, denoising_fast.py, whose adaptive
variants are left out.
Limits: Athalye et al. 2018 (arXiv:1802.00420), section 5.4.2, leave it 9 % on CIFAR-10 at 0.031 by gradients of the identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from robustbench_lab.backbones.density import Density
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Count, at_most, check, require
from robustbench_lab.models.front import Front


class PixelDefend(Front):
    """Greedy decoding of each image within `strength` levels of its own values, of 256; its gradient is the identity's.

    density: what makes a network of the architecture that the teacher's has; its weights are the teacher's, and stay that.
    teacher: the words of the run that trains that density, for the defense that has this front.
    Values that lie between two levels are rounded first: the result is within `strength` levels of the rounded image.
    Raises LabError, naming those words, where nothing has been learned yet, or from a network of another kind.
    """

    needs_teacher: ClassVar[bool] = True
    has_learned: Tensor

    def __init__(self, strength: int, density: Callable[[], Density], teacher: Sequence[str]) -> None:
        super().__init__()
        check("strength", strength, Annotated[Count, at_most(255), "in levels of 256"])
        made = callable(density) and not isinstance(density, nn.Module)
        require(made, "density", "what makes a Density, with _partial_: true, for each model its own", density)
        check("teacher", teacher, Sequence[str])
        self.strength = strength
        self.teacher = tuple(teacher)
        self.density = density()
        self.register_buffer("has_learned", torch.tensor(False))

    def train(self, mode: bool = True) -> PixelDefend:
        """Never in train mode: no dropout."""
        return super().train(False)

    @property
    def learned(self) -> bool:
        return False

    def check(self, shape: Sequence[int]) -> None:
        ours = self.density.image_shape
        require(tuple(shape) == ours, "density", f"one of images {list(shape)} (channels, image_size), as the dataset has", list(ours))

    def learn_from(self, teacher: nn.Module) -> None:
        found = getattr(teacher, "network", None)
        own = {name: tensor.shape for name, tensor in self.density.state_dict().items()}
        alike = isinstance(found, Density) and {name: tensor.shape for name, tensor in found.state_dict().items()} == own
        if not isinstance(found, Density) or not alike:
            raise LabError(
                f"density: expected that of the teacher, whose network is {type(found).__name__}, got {type(self.density).__name__}, maybe "
                f"of other sizes; name the same backbone in both: {self._remedy()}"
            )
        require(found.levels == self.density.levels, "density.levels", f"{found.levels}, as the teacher's", self.density.levels)
        self.density.load_state_dict(found.state_dict())
        self.has_learned.fill_(True)

    def transform(self, x: Tensor) -> Tensor:
        if not self.has_learned:
            raise LabError(f"pixel_defend: expected a density that has been trained, got none; its run is {self._remedy()}")
        return self.density.purified(x, self.strength)

    def _remedy(self) -> str:
        return f"python -m robustbench_lab train {' '.join(self.teacher)}, which defense.fronts.pixel_defend.teacher names"

    def extra_repr(self) -> str:
        return f"strength={self.strength}"
