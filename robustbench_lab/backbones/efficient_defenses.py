"""The networks of "Efficient Defenses Against Adversarial Attacks"."""

from torch import Tensor, nn

from robustbench_lab.backbones.base import Backbone, check_problem, sequence
from robustbench_lab.knobs import Count, check, require


class EfficientDefensesCNN(Backbone):
    """Three convolutions, 64@8x8, 128@6x6 and 128@5x5, and a linear layer; no BatchNorm.

    Images [B, C, H, W] of 27x27 or more; features [B, 128 * s * s] with s = 1 for 28x28 and s = 2 for 32x32 images.
    Source: Zantedeschi et al. 2017, arXiv:1707.06728, section 4.1; strides and paddings from the authors' code
    (Trusted-AI/adversarial-robustness-toolbox, history of 2017, src/classifiers/cnn.py), initialisation from its Keras.
    Differs from it: the authors' code has another network for CIFAR-10; the paper has this one for both datasets.
    Raises: LabError for smaller images.
    """

    def __init__(self, classes: int, channels: int, image_size: int) -> None:
        check_problem(classes, channels, image_size, smallest=27)
        last_map = map_size_after_two(image_size) - 4
        super().__init__(
            body=sequence(**first_two_stages(channels, image_size), stage3=sequence(conv=nn.Conv2d(128, 128, 5), relu=nn.ReLU())),
            pool=nn.Flatten(),
            head=nn.Linear(128 * last_map**2, classes),
        )
        self.apply(initialise)


class EfficientDefensesResNet(Backbone):
    """Two convolutions, 64@8x8 and 128@6x6, one bottleneck block 64-64-128 and a 3x3 max-pool; no BatchNorm.

    Images [B, C, H, W] of 19x19 or more; features [B, 128 * s * s] with s = 1 for 28x28 and 2 for 32x32 images.
    Source: Zantedeschi et al. 2017, arXiv:1707.06728, section 4.1 (`block_kernel` 1); the authors' code (same history,
    src/classifiers/resnet.py) has a 3x3 convolution in the middle of the block (`block_kernel` 3). The paper's
    "short-cut between layer 2 and 6" joins layer 2's output to the input of layer 6, the max-pool, as in that code.
    Raises: LabError for smaller images or an even kernel.
    """

    def __init__(self, classes: int, channels: int, image_size: int, block_kernel: int) -> None:
        check_problem(classes, channels, image_size, smallest=19)
        check("backbone.block_kernel", block_kernel, Count)
        require(block_kernel % 2 == 1, "backbone.block_kernel", "an odd number (paper 1, code 3)", block_kernel)
        last_map = map_size_after_two(image_size) // 3
        super().__init__(
            body=sequence(**first_two_stages(channels, image_size), stage3=IdentityBlock(128, 64, block_kernel)),
            pool=sequence(maximum=nn.MaxPool2d(3), flatten=nn.Flatten()),
            head=nn.Linear(128 * last_map**2, classes),
        )
        self.apply(initialise)


class EfficientDefensesCifarCNN(Backbone):
    """Convolutions 32@3x3 and 64@3x3, each max-pooled by 2, and a hidden linear layer of 500, with dropout .5 behind all three.

    Images [B, C, H, W] of 8x8 or more; features [B, 500], with dropout in train mode. The linear layer is part of `pool`,
    so that the stages give maps. Dropout is seeded with the epoch; in eval mode there is none.
    Source: the authors' CIFAR-10 network (Trusted-AI/adversarial-robustness-toolbox, history of 2017,
    src/classifiers/cnn.py, cifar10_layers): padding 'same', then none; initialisation from its Keras. The paper
    (arXiv:1707.06728, section 4.1) does not have this network.
    Raises: LabError for smaller images.
    """

    def __init__(self, classes: int, channels: int, image_size: int) -> None:
        check_problem(classes, channels, image_size, smallest=8)
        last_map = (image_size // 2 - 2) // 2
        super().__init__(
            body=sequence(stage1=pooled_stage(channels, 32, padding=1), stage2=pooled_stage(32, 64, padding=0)),
            pool=sequence(flatten=nn.Flatten(), linear=nn.Linear(64 * last_map**2, 500), relu=nn.ReLU(), dropout=nn.Dropout(0.5)),
            head=nn.Linear(500, classes),
        )
        self.apply(initialise)


class IdentityBlock(nn.Module):
    """A bottleneck beside an identity: 1x1, kxk and 1x1 convolutions, activated after the sum; shapes do not change."""

    def __init__(self, channels: int, inner: int, kernel: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, inner, 1)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, kernel, padding=kernel // 2)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, channels, 1)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu3(self.conv3(self.relu2(self.conv2(self.relu1(self.conv1(x))))) + x)


def first_two_stages(channels: int, image_size: int) -> dict[str, nn.Module]:
    """64@8x8 with stride 2 and padding 'same', 128@6x6 with stride 2 and no padding."""
    odd = image_size % 2  # Keras' 'same' pads 3 and 3 around an even image, 3 and 4 around an odd one
    return {
        "stage1": sequence(pad=nn.ZeroPad2d((3, 3 + odd, 3, 3 + odd)), conv=nn.Conv2d(channels, 64, 8, stride=2), relu=nn.ReLU()),
        "stage2": sequence(conv=nn.Conv2d(64, 128, 6, stride=2), relu=nn.ReLU()),
    }


def pooled_stage(in_channels: int, out_channels: int, padding: int) -> nn.Sequential:
    """A 3x3 convolution, max-pooling by 2 and dropout .5."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=padding)
    return sequence(conv=conv, relu=nn.ReLU(), maximum=nn.MaxPool2d(2), dropout=nn.Dropout(0.5))


def map_size_after_two(image_size: int) -> int:
    """The side of the maps behind the first two stages: 28 -> 14 -> 5, 32 -> 16 -> 6."""
    return ((image_size + 1) // 2 - 6) // 2 + 1


def initialise(module: nn.Module) -> None:
    """Keras' default: Glorot's uniform weights, zero biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
