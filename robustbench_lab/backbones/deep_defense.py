"""The convolutional networks of Deep Defense on MNIST and CIFAR-10; its MLP is mlp.py, its NIN nin.py."""

from typing import Annotated

from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, draw_normal_weights, sequence
from robustbench_lab.knobs import Positive, check, one_of


class DeepDefenseLeNet(Backbone):
    """Convolutions 20@5x5 and 50@5x5, each max-pooled by 2, and a hidden linear layer of 500 with the only ReLU; no BatchNorm.

    Images [B, C, H, W] of 16x16 or more; features [B, 500]. The hidden layer is part of `pool`, so that the stages give maps.
    weight_std: of normal initial weights, with zero biases; None is PyTorch's default initialisation.
    Source: Yan et al. 2018, arXiv:1803.00404, section 4.2; ZiangYan/deepdefense.pytorch, models/mnist.py; initial values from MatConvNet
    (vlfeat/matconvnet, examples/mnist/cnn_mnist_init.m, without BatchNorm), where it is from. Its linear layers are convolutions there,
    which is the same function.
    Raises: LabError for smaller images or a standard deviation that is not > 0.
    """

    def __init__(self, classes: int, channels: int, image_size: int, weight_std: float | None) -> None:
        check_problem(classes, channels, image_size, smallest=16)
        check("backbone.weight_std", weight_std, Positive | None)
        last_map = ((image_size - 4) // 2 - 4) // 2
        super().__init__(
            body=sequence(
                stage1=sequence(conv=nn.Conv2d(channels, 20, 5), maximum=nn.MaxPool2d(2)),
                stage2=sequence(conv=nn.Conv2d(20, 50, 5), maximum=nn.MaxPool2d(2)),
            ),
            pool=sequence(flatten=nn.Flatten(), linear=nn.Linear(50 * last_map**2, 500), relu=nn.ReLU()),
            head=nn.Linear(500, classes),
        )
        if weight_std is not None:
            draw_normal_weights(self, weight_std)


class DeepDefenseConvNet(Backbone):
    """Convolutions 32@5x5, 32@5x5 and 64@5x5, each followed by a pool that halves the map, 64@4x4 and a linear layer; no BatchNorm.

    Images [B, C, H, W] of 32x32 or more; features [B, 64 * s * s] with s = 1 for 32x32 images. The first pool takes the maximum, before
    its ReLU; the other two the mean, after it.
    pool: 2 for windows of 2x2, as in the authors' code; 3 for MatConvNet's of 3x3, which overlap and end at the edge.
    first_weight_std, weight_std: of normal initial weights, of the first convolution and of all else; biases are zero.
    Source: Yan et al. 2018, arXiv:1803.00404, section 4.2; ZiangYan/deepdefense.pytorch, models/cifar10.py, where the head is a 1x1
    convolution; initial values and the other pool from MatConvNet (vlfeat/matconvnet, examples/cifar/cnn_cifar_init.m), where it is from.
    Raises: LabError for smaller images, another pool or a standard deviation that is not > 0.
    """

    def __init__(self, classes: int, channels: int, image_size: int, pool: int, first_weight_std: float, weight_std: float) -> None:
        check_problem(classes, channels, image_size, smallest=32)
        check("backbone.pool", pool, Annotated[int, one_of((2, 3))])
        check("backbone.first_weight_std", first_weight_std, Positive)
        check("backbone.weight_std", weight_std, Positive)
        first = nn.Conv2d(channels, 32, 5, padding=2)
        last_map = image_size // 8 - 3
        super().__init__(
            body=sequence(
                stage1=sequence(conv=first, maximum=halving(nn.MaxPool2d, pool), relu=nn.ReLU()),
                stage2=sequence(conv=nn.Conv2d(32, 32, 5, padding=2), relu=nn.ReLU(), average=halving(nn.AvgPool2d, pool)),
                stage3=sequence(conv=nn.Conv2d(32, 64, 5, padding=2), relu=nn.ReLU(), average=halving(nn.AvgPool2d, pool)),
                stage4=sequence(conv=nn.Conv2d(64, 64, 4), relu=nn.ReLU()),
            ),
            pool=nn.Flatten(),
            head=nn.Linear(64 * last_map**2, classes),
        )
        draw_normal_weights(self, weight_std)
        draw_normal_weights(first, first_weight_std)


def halving(kind: type[nn.MaxPool2d] | type[nn.AvgPool2d], window: int) -> nn.Module:
    """A pool that halves maps, rounding down, with windows of 2x2 or 3x3.

    Those of 3x3 may reach beyond the lower right edge, where only what is inside counts: MatConvNet's `pool` [3 3], `stride` 2, `pad`
    [0 1 0 1], whose pads count neither for a maximum nor for a mean (matlab/src/bits/impl/pooling_cpu.cpp).
    """
    return kind(window, stride=2, ceil_mode=window == 3)
