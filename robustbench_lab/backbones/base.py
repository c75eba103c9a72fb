"""What every network is: named stages, a pool and a linear head."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated

from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import NOT_EMPTY, Count, at_least, check

Sizes = Annotated[Sequence[Count], NOT_EMPTY, "such as [32, 16]"]  # of layers


class Backbone(nn.Module):
    """A network in three parts: `head(pool(body(x)))`.

    Images [B, C, H, W] come already normalised; `body` has one child per stage, whose outputs (`stages`) are what attention
    maps are taken from; `pool` makes one vector [B, F] of the last maps; `head` makes logits [B, K] of it.
    Activations are `nn.ReLU` modules, one per use and never in place, so that a defense can replace them; there is no
    data-dependent control flow, so that `torch.fx` can trace the network.
    """

    def __init__(self, body: nn.Sequential, pool: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.body = body
        self.pool = pool
        self.head = head

    @property
    def feature_size(self) -> int:
        """F, the length of the vector that the head reads."""
        return self.head.in_features

    def replace_head(self, module: nn.Module) -> None:
        """Let another module make logits [B, K] of the features."""
        self.head = module  # type: ignore[assignment]

    def stages(self, x: Tensor) -> dict[str, Tensor]:
        """The output of each stage of the body, by its name and in order; the last is what is pooled."""
        outputs = {}
        for name, stage in self.body.named_children():
            x = outputs[name] = stage(x)
        return outputs

    def features(self, x: Tensor) -> Tensor:
        """What the head reads: [B, C, H, W] -> [B, F]."""
        return self.pool(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def sequence(**stages: nn.Module) -> nn.Sequential:
    """An `nn.Sequential` whose children have names."""
    return nn.Sequential(OrderedDict(stages))


def global_average_pool() -> nn.Sequential:
    """The mean of each map: [B, F, H, W] -> [B, F], whatever H and W."""
    return sequence(average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())


def draw_normal_weights(network: nn.Module, std: float) -> None:
    """Weights of N(0, std^2) and zero biases for each convolution and linear layer of a network, or one such layer."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.normal_(module.weight, std=std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def check_problem(classes: int, channels: int, image_size: int, smallest: int = 1) -> None:
    """Raise LabError unless there are classes, channels and square images of at least `smallest` pixels a side."""
    check("dataset.classes", classes, Annotated[int, at_least(2)])
    check("dataset.channels", channels, Count)
    check("dataset.size", image_size, Count)
    if image_size < smallest:
        raise LabError(
            f"dataset.size: this backbone needs images of at least {smallest}x{smallest} pixels, got "
            f"{image_size}x{image_size}; choose another backbone, such as backbone=small_cnn"
        )
