"""Network in Network."""

from collections.abc import Sequence
from typing import Annotated

import torch
from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, global_average_pool, sequence
from robustbench_lab.knobs import NotNegative, ShareBelowOne, check, one_of


class NIN(Backbone):
    """5x5, 5x5 and 3x3 convolutions of 192 channels, each with 1x1 convolutions behind it, and the mean of the last maps; no BatchNorm.

    Images [B, C, H, W] of 4x4 or more (7x7 with pool=3); features [B, 192]. After the first stage a max-pool, after the second a mean, each
    with dropout behind it. Published with a last 1x1 convolution to the classes before the mean; here the mean comes first, the same
    function, because both are linear.
    pool: 2 for windows of 2x2, as in Deep Defense's code; 3 for 3x3 with stride 2, as in MatConvNet's. dropout: share of values set to 0,
    seeded with the epoch; in eval mode there is none.
    Initial weights N(0, 2 / fan-in), the head's times `head_scale`; zero biases.
    Source: Lin et al. 2014, arXiv:1312.4400; this one is MatConvNet's (vlfeat/matconvnet, examples/cifar/cnn_cifar_init_nin.m) with the
    pools of Deep Defense (Yan et al. 2018; ZiangYan/deepdefense.pytorch, models/cifar10.py).
    Raises: LabError for smaller images, another pool, or other knobs that are out of range.
    """

    def __init__(self, classes: int, channels: int, image_size: int, pool: int, dropout: float, head_scale: float) -> None:
        check("backbone.pool", pool, Annotated[int, one_of((2, 3))])
        check_problem(classes, channels, image_size, smallest=4 if pool == 2 else 7)
        check("backbone.dropout", dropout, ShareBelowOne)
        check("backbone.head_scale", head_scale, NotNegative)
        super().__init__(
            body=sequence(
                stage1=sequence(
                    **convolutions(channels, 5, (192, 160, 96)), maximum=nn.MaxPool2d(pool, stride=2), dropout=nn.Dropout(dropout)
                ),
                stage2=sequence(**convolutions(96, 5, (192, 192, 192)), average=nn.AvgPool2d(pool, stride=2), dropout=nn.Dropout(dropout)),
                stage3=sequence(**convolutions(192, 3, (192, 192))),
            ),
            pool=global_average_pool(),
            head=nn.Linear(192, classes),
        )
        self.apply(initialise)
        with torch.no_grad():
            self.head.weight.mul_(head_scale)


def convolutions(in_channels: int, kernel: int, widths: Sequence[int]) -> dict[str, nn.Module]:
    """A kxk convolution that keeps the size of the map, then 1x1 convolutions, each with ReLU."""
    layers: dict[str, nn.Module] = {}
    for number, width in enumerate(widths, start=1):
        layers[f"conv{number}"] = nn.Conv2d(in_channels, width, kernel, padding=kernel // 2)
        layers[f"relu{number}"] = nn.ReLU()
        in_channels, kernel = width, 1
    return layers


def initialise(module: nn.Module) -> None:
    """Normal weights of variance 2 / fan-in, zero biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
