"""The first layer of a model: what becomes of images in [0, 1] before the backbone sees them.

It belongs to the model, and which one it is to the dataset's config (`dataset.normalise`), so that eps keeps one unit, the fraction of the
pixel range, whatever a network was fed with.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.knobs import Count, NotNegative, Positive, check, is_number, require

AT_A_TIME = 1000  # images looked at together while statistics are taken


class FirstLayer(nn.Module):
    """Images [B, C, H, W] in [0, 1] to what the backbone is fed, of the same shape; the base class leaves them as they are.

    Differentiable: an attack goes through it.
    """

    def fit(self, images: ImageSet) -> None:
        """Once, before the first step: statistics of the training images go into buffers, which are kept with the weights."""

    def check(self, shape: Sequence[int]) -> None:
        """Stop if images of this shape, [C, H, W], are not what it was made for. Raises LabError."""

    def inverse(self, fed: Tensor, of: Tensor) -> Tensor:
        """The images [B, C, H, W], in the pixel range and beyond, of which the backbone would be fed `fed`; of: images in [0, 1], whose
        own statistics count where a layer looks at those of each image."""
        return fed

    def forward(self, x: Tensor) -> Tensor:
        return x


class Normalise(FirstLayer):
    """(x - mean) / std per channel, in units of the pixel range; x - mean where std is null."""

    mean: Tensor
    std: Tensor | None

    def __init__(self, mean: Sequence[float], std: Sequence[float] | None) -> None:
        super().__init__()
        for key, values in (("mean", mean), ("std", std)):
            if key == "mean" or values is not None:
                listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
                finite = listed and all(is_number(value) and abs(value) < float("inf") for value in values or ())
                require(finite and (key == "mean" or min(values or ()) > 0), key, EXPECTED[key], values)
        require(std is None or len(std) == len(mean), "std", f"as many numbers as mean has, {len(mean)}", std)
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", None if std is None else torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def check(self, shape: Sequence[int]) -> None:
        channels = self.mean.shape[1]
        require(
            channels == shape[0], "dataset.normalise.mean", f"{shape[0]} numbers, as dataset.channels says", self.mean.flatten().tolist()
        )

    def inverse(self, fed: Tensor, of: Tensor) -> Tensor:
        return self.mean + (fed if self.std is None else fed * self.std)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean if self.std is None else (x - self.mean) / self.std


EXPECTED = {
    "mean": "a list of finite numbers, one for each channel",
    "std": "a list of finite numbers > 0, one for each channel, or null",
}


class MeanImage(FirstLayer):
    """x less the mean of the training images, pixel by pixel, times `scale` (255: the network sees what a reader of bytes would).

    channels, size: of the images, [channels, size, size].
    """

    mean: Tensor

    def __init__(self, channels: int, size: int, scale: float) -> None:
        super().__init__()
        check("channels", channels, Count)
        check("size", size, Count)
        check("scale", scale, Positive)
        self.scale = scale
        self.register_buffer("mean", torch.zeros(1, channels, size, size))

    @torch.no_grad()
    def fit(self, images: ImageSet) -> None:
        self.mean.copy_(mean_image(images))

    def check(self, shape: Sequence[int]) -> None:
        require(self.mean.shape[1:] == tuple(shape), "dataset.normalise", f"images of shape {list(shape)}", list(self.mean.shape[1:]))

    def inverse(self, fed: Tensor, of: Tensor) -> Tensor:
        return self.mean + fed / self.scale

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.scale


class Whitening(MeanImage):
    """Global contrast normalisation of each image, then ZCA whitening by the training images' principal axes.

    With x' = scale * (x - mean image), n the standard deviation (divisor N - 1) of an image's N = C * H * W values and n0 the mean of n
    over the training images: z = (x' - its own mean) * n0 / max(n, smallest_contrast); then, with V diag(d) V^T the second moments of z
    over the training images and e the root of the mean of d: V diag(e / max(sqrt(d), smallest_deviation)) V^T z. Both bounds are in units
    of x'.

    Source: MatConvNet, examples/cifar/cnn_cifar.m (scale 255, bounds 40 and 10), which Deep Defense (arXiv:1803.00404, section 4) follows.
    Where we differ: n0 is the training images' (there of the test images, too), and the moments are divided by how many images they are of
    (there by 60,000 for 50,000).
    Limits: N^2 numbers are kept with the weights, 38 MB for CIFAR-10; the axes take about 20 s of one core there.
    Raises LabError, from `fit`, for fewer images than an image has values.
    """

    contrast: Tensor
    matrix: Tensor

    def __init__(self, channels: int, size: int, scale: float, smallest_contrast: float, smallest_deviation: float) -> None:
        super().__init__(channels, size, scale)
        check("smallest_contrast", smallest_contrast, NotNegative)
        check("smallest_deviation", smallest_deviation, Positive)
        self.smallest_contrast, self.smallest_deviation = smallest_contrast, smallest_deviation
        values = channels * size**2
        self.register_buffer("contrast", torch.ones(()))
        self.register_buffer("matrix", torch.eye(values))

    @torch.no_grad()
    def fit(self, images: ImageSet) -> None:
        values = len(self.matrix)
        expected = f"more training images than the {values} values of each, whose axes whitening needs; train on more (dataset.train_size)"
        require(len(images) > values, "dataset.normalise", expected, len(images))
        super().fit(images)
        everyone = torch.arange(len(images))
        deviations = [self._centred(x).std(dim=1).double().sum() for x, _, _ in images.batches(everyone, AT_A_TIME)]
        self.contrast.copy_(torch.stack(deviations).sum() / len(images))
        moments = torch.zeros_like(self.matrix, dtype=torch.float64)
        for x, _, _ in images.batches(everyone, AT_A_TIME):
            z = self._equalised(x)
            moments += z.T @ z
        d, axes = torch.linalg.eigh(moments / len(images))
        d = d.clamp(min=0)
        self.matrix.copy_(axes * (d.mean().sqrt() / d.sqrt().clamp(min=self.smallest_deviation)) @ axes.T)

    def _centred(self, x: Tensor) -> Tensor:
        """x' less its own mean, [B, N]."""
        flat = super().forward(x).flatten(1)
        return flat - flat.mean(dim=1, keepdim=True)

    def _contrast_of(self, flat: Tensor) -> Tensor:
        """max(n, smallest_contrast) of centred images [B, N], [B, 1]."""
        squares = flat.square().sum(dim=1, keepdim=True) / (flat.shape[1] - 1)
        # The root of what is above the bound alone: at 0, in an image of one grey, it has no slope.
        return squares.clamp(min=max(self.smallest_contrast, 1e-6) ** 2).sqrt()

    def _equalised(self, x: Tensor) -> Tensor:
        flat = self._centred(x)
        return flat * self.contrast / self._contrast_of(flat)

    def inverse(self, fed: Tensor, of: Tensor) -> Tensor:
        own = super().forward(of).flatten(1)
        mean = own.mean(dim=1, keepdim=True)
        z = torch.linalg.solve(self.matrix.double(), fed.flatten(1).double().T).T  # the matrix is symmetric
        x = z.to(fed.dtype) * self._contrast_of(own - mean) / self.contrast + mean
        return super().inverse(x.view_as(fed), of)

    def forward(self, x: Tensor) -> Tensor:
        return (self._equalised(x) @ self.matrix).view_as(x)


@torch.no_grad()
def mean_image(images: ImageSet) -> Tensor:
    """The mean of the images, [1, C, H, W], summed in float64."""
    batches = images.batches(torch.arange(len(images)), AT_A_TIME)
    return torch.stack([x.double().sum(dim=0) for x, _, _ in batches]).sum(dim=0, keepdim=True) / len(images)
