"""The shapes that layers meet, for defenses that put something in front of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier


def input_shapes(net: Classifier, kind: type[nn.Module]) -> dict[nn.Module, torch.Size]:
    """The shape of one image's features, [C, H, W] or [F], before each layer of this kind, in the order in which they are met."""
    layers = [module for module in net.modules() if isinstance(module, kind)]
    if not layers:
        return {}
    if net.image_shape is None:
        raise LabError("model: expected a Classifier that says the shape of its images (image_shape), to know those of its layers")
    shapes: dict[nn.Module, torch.Size] = {}

    def look(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        shapes[layer] = inputs[0].shape[1:]

    handles = [layer.register_forward_pre_hook(look) for layer in layers]
    modes = [(module, module.training) for module in net.modules()]
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, *net.image_shape))
    finally:
        for module, training in modes:
            module.training = training
        for handle in handles:
            handle.remove()
    return shapes
