"""The ResNets that He et al. designed for CIFAR-10."""

from collections.abc import Callable
from typing import Annotated, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_lab.backbones.base import Backbone, check_problem, global_average_pool, sequence
from robustbench_lab.knobs import Positive, at_least, check, require


class ResNetV1(Backbone):
    """The CIFAR ResNet of depth 6n+2: three stages of n post-activation blocks, with shortcuts that have no parameters.

    Images [B, C, H, W] of any size; features [B, 64 * width], the mean of the last maps.
    Source: He et al. 2016, arXiv:1512.03385, section 4.2, option A; initialisation and place of the zero channels from
    elliothe/CVPR_2019_PNI (code/models/vanilla_models/vanilla_resnet_cifar.py), which PNI's and FM's tables rest on.
    shortcut: where shapes change: `zeros` after the channels there are (None says so too), `zeros_around` them, as many before as after, as
    akamaster/pytorch_resnet_cifar10 has it, or `projection`, a 1x1 convolution with BatchNorm (option B), as
    chenyaofo/pytorch-cifar-models has it. Networks of the first two have the same weights and are not the same.
    Differs from it: `width` multiplies 16-32-64; those tables have such networks (ResNet-20 [1.5x]), that code has not.
    Raises: LabError for a depth that is not 6n+2 or a width that gives a fraction of a channel.
    """

    def __init__(
        self,
        classes: int,
        channels: int,
        image_size: int,
        depth: int,
        width: float,
        shortcut: Literal["zeros", "zeros_around", "projection"] | None = None,
    ) -> None:
        check_problem(classes, channels, image_size)
        check("backbone.depth", depth, Annotated[int, at_least(8)])
        require((depth - 2) % 6 == 0, "backbone.depth", "6n+2 (8, 14, 20, 32, 44, 56, ...)", depth)
        check("backbone.width", width, Positive)
        require(width * 16 % 1 == 0, "backbone.width", "a positive multiple of 1/16, such as 1, 1.5 or 2", width)
        check("backbone.shortcut", shortcut, Literal[tuple(SHORTCUTS)] | None)
        make = SHORTCUTS[shortcut or "zeros"]
        small, medium, large = (int(base * width) for base in (16, 32, 64))
        blocks = (depth - 2) // 6
        super().__init__(
            body=sequence(
                stem=stem(channels, small),
                stage1=residual_stage(small, small, blocks, 1, make),
                stage2=residual_stage(small, medium, blocks, 2, make),
                stage3=residual_stage(medium, large, blocks, 2, make),
            ),
            pool=global_average_pool(),
            head=nn.Linear(large, classes),
        )
        self.apply(initialise)


class PaddedShortcut(nn.Module):
    """Option A: every `stride`-th pixel, and channels of zeros after it: [B, C, H, W] -> [B, out, H / stride, W / stride].

    before: of the zero channels, those that come first.

    Sizes round up, as those of a padded 3x3 convolution do: the pixels kept are those on which it is centred.
    Source: He et al. 2016, arXiv:1512.03385, section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, before: int = 0) -> None:
        super().__init__()
        self.stride = stride
        self.before = before
        self.after = out_channels - in_channels - before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def zeros_around(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    return PaddedShortcut(in_channels, out_channels, stride, before=(out_channels - in_channels) // 2)


def projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Option B: a 1x1 convolution with BatchNorm."""
    return sequence(conv=nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm=nn.BatchNorm2d(out_channels))


SHORTCUTS = {"zeros": PaddedShortcut, "zeros_around": zeros_around, "projection": projection}  # where shapes change


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm beside a shortcut, activated after the sum (post-activation).

    Source: He et al. 2016, arXiv:1512.03385, figure 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        residual = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(residual + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1 to a quarter of the channels, 3x3 with the stride, 1x1 back, with BatchNorm, beside a shortcut; activated after the sum.

    Source: He et al. 2016, arXiv:1512.03385, figure 5. Differs from it: there the first 1x1 has the stride, here the 3x3, as in
    torchvision (torchvision/models/resnet.py) and most code since.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        inner = out_channels // 4
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.relu2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.shortcut = shortcut
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.relu2(self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x))))))
        return self.relu3(self.norm3(self.conv3(inner)) + self.shortcut(x))


def stem(channels: int, width: int) -> nn.Sequential:
    """The first 3x3 convolution with BatchNorm and activation, at full resolution."""
    conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    return sequence(conv=conv, norm=nn.BatchNorm2d(width), relu=nn.ReLU())


def imagenet_stem(channels: int, width: int) -> nn.Sequential:
    """The first 7x7 convolution with BatchNorm and activation, and a max-pool: a quarter of the image's side is left."""
    conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    return sequence(conv=conv, norm=nn.BatchNorm2d(width), relu=nn.ReLU(), maximum=nn.MaxPool2d(3, stride=2, padding=1))


def residual_stage(
    in_channels: int,
    out_channels: int,
    blocks: int,
    stride: int,
    make_shortcut: Callable[[int, int, int], nn.Module],
    block: Callable[[int, int, int, nn.Module], nn.Module] = BasicBlock,
) -> nn.Sequential:
    """Blocks at one resolution; the first has the stride and, if shapes change, `make_shortcut(in, out, stride)`."""
    reshapes = stride != 1 or in_channels != out_channels
    shortcut = make_shortcut(in_channels, out_channels, stride) if reshapes else nn.Identity()
    stage = {"block1": block(in_channels, out_channels, stride, shortcut)}
    for number in range(2, blocks + 1):
        stage[f"block{number}"] = block(out_channels, out_channels, 1, nn.Identity())
    return sequence(**stage)


def initialise(module: nn.Module) -> None:
    """Normal weights, of variance 2 / fan-out (convolutions) or 2 / fan-in (head); BatchNorm is left at 1 and 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(module.bias)
