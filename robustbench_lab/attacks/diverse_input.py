"""Diverse inputs: each gradient is taken at a randomly resized and padded image, so as not to fit one network (DI-FGSM, M-DI-FGSM).

Source: Xie et al. 2019, arXiv:1803.06978, section 3.3, and cihangxie/DI-2-FGSM, attack.py: with some probability the image is resized
(nearest neighbour) to a random size from [H, scale * H) and padded with zeros, at a random place, to scale * H.
Where we differ: size, place and the choice whether to transform are drawn for each image; the authors draw them once for a batch. Labels
taken from predictions are those of the plain image; the authors' first prediction sees the transformed one. Gradients are divided by their
mean absolute value, which changes no step without momentum.
Limits: made to transfer. Below 15 pixels a side the published scale, 1.1, leaves one size and one place; resized back, that is the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import own_loss
from robustbench_lab.attacks.mim import MIM
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Share, above, require
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import per_image


@dataclass(frozen=True, kw_only=True)
class DiverseInput(MIM):
    """MIM whose gradients are those of diverse inputs; decay 0 is DI, decay 1 is M-DI.

    probability: of transforming an image, at each step (and each of the `eot_samples`).
    scale: side of the padded image over the side of the image, rounded to whole pixels.
    resize_back: whether the padded image is brought back (nearest neighbour) to the size that it had, for networks with a fixed input size;
        false hands the larger image to the network, as the authors do, whose network pools whatever it is given.
    keep: last only; what the network says of a transformed image is no verdict on the iterate.
    """

    probability: Share
    scale: Annotated[float, above(1), "such as 330/299"]
    resize_back: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.keep == "last", "keep", "last, for a transformed image gives no verdict on the iterate", self.keep)

    def view(self, model: nn.Module, rng: ImageRandom) -> nn.Module:
        return _Diverse(model, rng, self)


class _Diverse(nn.Module):
    """The model behind a random resize and padding; each pass over it draws anew. What it says of an image is no verdict on it."""

    decides = False
    stochastic = True
    samples = 1

    def __init__(self, model: nn.Module, rng: ImageRandom, attack: DiverseInput) -> None:
        super().__init__()
        self.model, self.rng, self.attack = model, rng, attack
        self.own_loss = own_loss(model)
        self.passes = 0

    def draw(self, x: Tensor) -> Tensor:
        return self(x)

    def forward(self, x: Tensor) -> Tensor:
        rng, self.passes = self.rng.fold("pass", self.passes), self.passes + 1
        chosen = rng.fold("chosen").uniform(1)[:, 0] < self.attack.probability
        side = [round(self.attack.scale * length) for length in x.shape[2:]]
        image = torch.tensor(x.shape[2:], device=x.device)
        room = torch.tensor(side, device=x.device) - image
        if min(a - b for a, b in zip(side, x.shape[2:], strict=True)) < 1:
            raise LabError(f"attack.scale: {self.attack.scale} adds no pixel to images of {tuple(x.shape[2:])}; choose a larger one")
        # As the authors draw: the size below the full side, the place below the room that is left.
        size = image + (rng.fold("size").uniform(1) * room).long()
        corner = (rng.fold("corner").uniform(2) * (image + room - size)).long()
        places = [torch.arange(length, device=x.device) for length in (x.shape[2:] if self.attack.resize_back else side)]
        if self.attack.resize_back:
            places = [place * padded // len(place) for place, padded in zip(places, side, strict=True)]
            return self.model(resize_and_pad(x, size, corner, places).where(per_image(chosen, x), x))
        parts = [(chosen, resize_and_pad(x[chosen], size[chosen], corner[chosen], places)), (~chosen, x[~chosen])]
        logits = [self.model(images) for _, images in parts if len(images)]
        return torch.cat(logits)[torch.cat([which.nonzero()[:, 0] for which, _ in parts]).argsort()]


def resize_and_pad(x: Tensor, size: Tensor, corner: Tensor, places: list[Tensor]) -> Tensor:
    """Each image [B, C, H, W] resized to a size of its own (nearest neighbour) and put, upper left, at a corner of its own amid zeros.

    size, corner: int64 [B, 2], rows and columns. places: which rows and columns of the result are wanted. Differentiable.
    """
    for dim, wanted in ((2, places[0]), (3, places[1])):
        length, own = x.shape[dim], size[:, dim - 2, None]
        place = wanted - corner[:, dim - 2, None]
        inside = (place >= 0) & (place < own)
        source = (place * length // own).clamp(0, length - 1)
        along = [len(x), 1, 1, 1]
        along[dim] = len(wanted)
        target = [*x.shape]
        target[dim] = len(wanted)
        x = x.gather(dim, source.view(along).expand(target)) * inside.view(along)
    return x
