"""What defenses with noise in their layers share: layers that know whether they draw it, and who is spared weight decay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from robustbench_lab.errors import LabError


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


@contextmanager
def without_noise(model: nn.Module) -> Iterator[None]:
    """The plain network with the weights that were learned under noise; afterwards each layer is as it was."""
    before = [(layer, layer.active) for layer in noise_layers(model)]
    for layer, _ in before:
        layer.active = False
    try:
        yield
    finally:
        for layer, active in before:
            layer.active = active
