"""VGG with BatchNorm and a single linear layer, as used on CIFAR-10."""

from typing import Annotated

from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, sequence
from robustbench_lab.knobs import check, one_of

# Convolutions in each of the five stages: Simonyan & Zisserman 2015, table 1, columns A, B, D, E.
CONVOLUTIONS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
WIDTHS = (64, 128, 256, 512, 512)


class VGG(Backbone):
    """VGG with BatchNorm after each (biased) convolution and one linear layer of 512 inputs.

    Images [B, C, H, W] of 16x16 or more; features [B, 512]. PyTorch's default initialisation.
    Source: Simonyan & Zisserman 2015, arXiv:1409.1556, table 1. FM's count of 20,040,522 parameters for VGG19 fixes the
    rest: conv biases, BatchNorm, no hidden linear layers.
    Differs from it: the fifth max-pool takes the whole map, which is the published 2x2 window on 32x32 images and lets
    28x28 images, whose last map is one pixel, through. A stage opens with its max-pool and ends with an activation.
    Raises: LabError for another depth than 11, 13, 16 or 19, or smaller images.
    """

    def __init__(self, classes: int, channels: int, image_size: int, depth: int) -> None:
        check_problem(classes, channels, image_size, smallest=16)
        check("backbone.depth", depth, Annotated[int, one_of(CONVOLUTIONS)])
        stages: dict[str, nn.Module] = {}
        for number, (convolutions, width) in enumerate(zip(CONVOLUTIONS[depth], WIDTHS, strict=True), start=1):
            layers: dict[str, nn.Module] = {} if number == 1 else {"pool": nn.MaxPool2d(2)}
            for layer in range(1, convolutions + 1):
                layers[f"conv{layer}"] = nn.Conv2d(channels, width, 3, padding=1)
                layers[f"norm{layer}"] = nn.BatchNorm2d(width)
                layers[f"relu{layer}"] = nn.ReLU()
                channels = width
            stages[f"stage{number}"] = sequence(**layers)
        super().__init__(
            body=sequence(**stages),
            pool=sequence(maximum=nn.AdaptiveMaxPool2d(1), flatten=nn.Flatten()),
            head=nn.Linear(WIDTHS[-1], classes),
        )
