"""What defenses with noise in their layers share: layers that know whether they draw it, and who is spared weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.models.front import Front


class NoiseLayer(nn.Module):
    """A layer with noise while `active`, in train and eval mode, drawn anew in each pass from the global generator.

    Without noise it is what it replaced, bit for bit.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active = True

    def scales(self) -> list[nn.Parameter]:
        """What it has learned of its noise, and no weight decay shall shrink."""
        return []


def is_channels_last(values: Tensor) -> bool:
    return values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last)


def image_by_image(values: Tensor) -> Tensor:
    """[B, ...] as [B, N] without a copy, in the order in which the memory has each image's N values."""
    return (values.permute(0, 2, 3, 1) if is_channels_last(values) else values).flatten(1)


def normal_like(values: Tensor) -> Tensor:
    """N(0, 1) of the same shape, type and memory format, from the global generator.

    torch.randn_like draws number by number where memory is channels-last, and takes nine times as long on a CPU.
    """
    if is_channels_last(values):
        return torch.randn_like(values.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return torch.randn_like(values)


def noise_layers(model: nn.Module) -> list[NoiseLayer]:
    """Raises LabError if there is none: noise that is nowhere cannot be learned or switched off."""
    found = [module for module in model.modules() if isinstance(module, NoiseLayer)]
    if not found:
        raise LabError(f"model: expected layers with noise, such as those of defense=pni, got none in {type(model).__name__}")
    return found


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """All parameters for one optimiser: those of the noise have no weight decay, the others the recipe's."""
    scales = [scale for layer in noise_layers(model) for scale in layer.scales()]
    spared = {id(scale) for scale in scales}
    return [{"params": [p for p in model.parameters() if id(p) not in spared]}, {"params": scales, "weight_decay": 0}]


def switches(model: nn.Module) -> list[NoiseLayer]:
    """The layers that have to be inactive for the model to answer alike. Raises LabError if there is none, or if a front always draws."""
    for module in model.modules():
        if isinstance(module, Front) and module.random and not isinstance(module, NoiseLayer):
            raise LabError(f"model: expected noise that can be switched off, but front {type(module).__name__} always draws")
    return noise_layers(model)


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """The plain network with the weights that were learned under noise; afterwards each layer is as it was."""
    before = [(layer, layer.active) for layer in switches(model)]
    for layer, _ in before:
        layer.active = False
    try:
        yield
    finally:
        for layer, active in before:
            layer.active = active
