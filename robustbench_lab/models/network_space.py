"""Images as the network is fed them: behind its first layer, where no pixel's range bounds an attack.

Deep Defense (Yan et al. 2018, arXiv:1803.00404) measures, trains and attacks in the space of preprocessed images and clips nothing there.
Here such images are moved and scaled into [0, 1], with so much room on each side that the box binds no attack of the paper: every attack,
budget and record then works as elsewhere, and eps is what it is in the network's space over `span`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.knobs import Positive, check, require
from robustbench_lab.models.normalise import AT_A_TIME, FirstLayer

ROOM = 4  # `span` over the largest value that an image may have: images fill the middle half of [0, 1]


class NetworkSpace(FirstLayer):
    """A first layer whose images have gone through `layer` already: u = 1/2 + layer(image) / span, [B, C, H, W] in [1/4, 3/4].

    layer: what is fed to the network of an image in [0, 1]; it learns from the training images as it does elsewhere.
    span: what [0, 1] spans in units of what is fed to the network; four times the largest value there, or more.
    With `in_pixels` it takes images in [0, 1], as `layer` does: the whole preprocessing is then part of the model, for attacks on pixels.
    """

    def __init__(self, layer: FirstLayer, span: float) -> None:
        super().__init__()
        check("span", span, Positive)
        self.layer = layer
        self.span = float(span)
        self.in_pixels = False

    def check(self, shape: tuple[int, ...]) -> None:  # type: ignore[override]
        self.layer.check(shape)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) if self.in_pixels else (x - 0.5) * self.span

    @torch.no_grad()
    def images(self, pixels: ImageSet) -> ImageSet:
        """The images as u, float32. Raises LabError, naming dataset.normalise.span, where there is too little room for one."""
        found = [self._placed(x) for x, _, _ in pixels.batches(torch.arange(len(pixels)), AT_A_TIME)]
        return ImageSet(torch.cat(found) if found else torch.zeros(0, *pixels.shape), pixels.labels, pixels.ids)

    def _placed(self, x: Tensor) -> Tensor:
        fed = self.layer(x)
        largest = float(fed.abs().amax())
        expected = f"{ROOM} times the largest value that the network is fed, {ROOM * largest:g}, or more"
        require(ROOM * largest <= self.span, "dataset.normalise.span", expected, self.span)
        return 0.5 + fed / self.span

    @torch.no_grad()
    def pixels(self, u: Tensor, of: Tensor) -> Tensor:
        """The images in the pixel range, and beyond it, that are shown as u [B, C, H, W]; of: those in [0, 1] that they were made from."""
        return self.layer.inverse((u - 0.5) * self.span, of)


def network_space(model: nn.Module) -> NetworkSpace | None:
    """That of a model whose images are not pixels; None for others, and for one that looks at pixels now."""
    found = next((layer for layer in model.modules() if isinstance(layer, NetworkSpace)), None)
    return None if found is None or found.in_pixels else found


def as_shown(model: nn.Module, pixels: ImageSet) -> ImageSet:
    """Images in the pixel range as the model takes them. Raises LabError for a model with pre-processing, which is made for pixels."""
    space = network_space(model)
    if space is None:
        return pixels
    fronts = getattr(model, "fronts", ())
    require(not len(fronts), "dataset.normalise", "a first layer on pixels, for a defense with pre-processing", "NetworkSpace")
    return space.images(pixels)


def check_same_space(model: nn.Module, other: nn.Module, key: str) -> None:
    """Raises LabError, naming the key that describes `other`, where it takes other images than the model: it would be shown the model's."""
    ours, theirs = network_space(model), network_space(other)
    if ours is None and theirs is None:
        return
    same = ours is not None and theirs is not None and ours.span == theirs.span
    if same:
        buffers = [dict(layer.named_buffers()) for layer in (ours, theirs)]  # type: ignore[union-attr]
        same = buffers[0].keys() == buffers[1].keys()
        same = same and all(torch.allclose(buffers[0][name], buffers[1][name], atol=1e-4, rtol=1e-4) for name in buffers[0])
    require(same, key, "a run whose images have gone through the same preprocessing (dataset, dataset.train_size)", "another")


def look_at_pixels(model: nn.Module) -> None:
    """From now on the model takes images in the pixel range, whatever it was trained on."""
    for layer in model.modules():
        if isinstance(layer, NetworkSpace):
            layer.in_pixels = True
