"""A small convolutional network for small images."""

from collections.abc import Sequence

from torch import nn

from robustbench_lab.backbones.base import Backbone, Sizes, check_problem, sequence
from robustbench_lab.knobs import check


class SmallCNN(Backbone):
    """3x3 convolutions with ReLU, halving the image after the first, and a linear layer; no BatchNorm, no source: ours.

    Images [B, C, H, W] of exactly the size that it was built for; features [B, widths[-1] * s * s], where s is the size
    halved (rounding up) once per stage after the first. PyTorch's default initialisation.
    Raises: LabError for an empty `widths` or a stage without channels.
    """

    def __init__(self, classes: int, channels: int, image_size: int, widths: Sequence[int]) -> None:
        check_problem(classes, channels, image_size)
        check("backbone.widths", widths, Sizes)
        stages: dict[str, nn.Module] = {}
        for number, width in enumerate(widths, start=1):
            stride = 1 if number == 1 else 2
            stages[f"stage{number}"] = sequence(conv=nn.Conv2d(channels, width, 3, stride=stride, padding=1), relu=nn.ReLU())
            channels = width
            image_size = (image_size + stride - 1) // stride
        super().__init__(body=sequence(**stages), pool=nn.Flatten(), head=nn.Linear(channels * image_size**2, classes))
