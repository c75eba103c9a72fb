"""ResNet-18, with the 3x3 stem that is used on CIFAR-10 and with the 7x7 stem of ImageNet."""

from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, global_average_pool, sequence
from robustbench_lab.backbones.resnet_v1 import imagenet_stem, projection, residual_stage, stem


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
            body=sequence(stem=stem(channels, 64), **four_stages()),
            pool=global_average_pool(),
            head=nn.Linear(512, classes),
        )


class ResNet18ImageNet(Backbone):
    """The post-activation ResNet-18 for ImageNet: a 7x7 stem and a max-pool that leave a quarter of the image's side; the rest as ResNet18.

    Images [B, C, H, W] of any size, made for 224x224; features [B, 512], the mean of the last maps. Initial weights of convolutions are
    normal, of variance 2 / fan-out; the head has PyTorch's default.
    Source: He et al. 2016, arXiv:1512.03385, table 1 and option B, in torchvision's form (torchvision/models/resnet.py), to which it is
    equal layer by layer and in the order of its parameters; scripts/torchvision_weights.py renames the weights that torchvision publishes.
    """

    def __init__(self, classes: int, channels: int, image_size: int) -> None:
        check_problem(classes, channels, image_size)
        super().__init__(
            body=sequence(stem=imagenet_stem(channels, 64), **four_stages()),
            pool=global_average_pool(),
            head=nn.Linear(512, classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def four_stages() -> dict[str, nn.Module]:
    """64-128-256-512, two blocks each; every stage but the first halves the map."""
    return {
        "stage1": residual_stage(64, 64, 2, 1, projection),
        "stage2": residual_stage(64, 128, 2, 2, projection),
        "stage3": residual_stage(128, 256, 2, 2, projection),
        "stage4": residual_stage(256, 512, 2, 2, projection),
    }
