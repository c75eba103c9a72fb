"""ResNet-50, with a 3x3 stem for small images or the 7x7 stem of ImageNet."""

from typing import Literal

from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, global_average_pool, sequence
from robustbench_lab.backbones.resnet_v1 import Bottleneck, imagenet_stem, projection, residual_stage, stem
from robustbench_lab.knobs import check


class ResNet50(Backbone):
    """The post-activation ResNet-50: bottlenecks of 256-512-1024-2048 channels, 3-4-6-3 a stage, projection shortcuts.

    Images [B, C, H, W] of any size; features [B, 2048], the mean of the last maps. Initial weights of convolutions are normal, of variance
    2 / fan-out; the head has PyTorch's default.
    stem: `3x3`, at full resolution and without max-pool, so that images of 64 pixels end in maps of 8; `7x7`, with stride 2 and a max-pool,
    which leaves a quarter of the side.
    Source: He et al. 2016, arXiv:1512.03385, table 1 and option B, in torchvision's form (torchvision/models/resnet.py): with the stem
    `7x7` it is equal to that layer by layer and in the order of its parameters. The stem `3x3` is that of ResNet-18 on CIFAR-10.
    """

    def __init__(self, classes: int, channels: int, image_size: int, stem: Literal["3x3", "7x7"]) -> None:
        check_problem(classes, channels, image_size)
        check("backbone.stem", stem, Literal[tuple(STEMS)])
        super().__init__(
            body=sequence(
                stem=STEMS[stem](channels, 64),
                stage1=residual_stage(64, 256, 3, 1, projection, Bottleneck),
                stage2=residual_stage(256, 512, 4, 2, projection, Bottleneck),
                stage3=residual_stage(512, 1024, 6, 2, projection, Bottleneck),
                stage4=residual_stage(1024, 2048, 3, 2, projection, Bottleneck),
            ),
            pool=global_average_pool(),
            head=nn.Linear(2048, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


STEMS = {"3x3": stem, "7x7": imagenet_stem}
