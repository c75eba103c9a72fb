"""ResNet-18 with a 3x3 stem, as used on CIFAR-10."""

from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, global_average_pool, sequence
from robustbench_lab.backbones.resnet_v1 import residual_stage, stem


class ResNet18(Backbone):
    """The post-activation ResNet-18 for small images: 64-128-256-512, two blocks a stage, projection shortcuts.

    Images [B, C, H, W] of any size; features [B, 512], the mean of the last maps. PyTorch's default initialisation.
    The FM and L2P papers call it "ResNet-V2(18)", but it is *not* pre-activation (ResNet v2): FM's count of 11,173,962
    parameters and L2P's code both fit the post-activation network only.
    Source: He et al. 2016, arXiv:1512.03385, table 1 and option B, with the 3x3 stem and no max-pool of
    ArmenJeddi/Learn2Perturb (models/resnet_v2.py).
    Differs from it: the last maps are averaged whole at any image size (there: a fixed 4x4 window).
    """

    def __init__(self, classes: int, channels: int, image_size: int) -> None:
        check_problem(classes, channels, image_size)
        super().__init__(
            body=sequence(
                stem=stem(channels, 64),
                stage1=residual_stage(64, 64, 2, 1, projection),
                stage2=residual_stage(64, 128, 2, 2, projection),
                stage3=residual_stage(128, 256, 2, 2, projection),
                stage4=residual_stage(256, 512, 2, 2, projection),
            ),
            pool=global_average_pool(),
            head=nn.Linear(512, classes),
        )


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Option B: a 1x1 convolution with BatchNorm."""
    return sequence(conv=nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm=nn.BatchNorm2d(out_channels))
