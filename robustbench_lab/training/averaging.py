"""The running average of a model's parameters over the steps of its training.

Source: Polyak and Juditsky 1992, in the exponential form that PixelCNN++ (arXiv:1701.05517) and many others are evaluated with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from robustbench_lab.models.defended import Defended


class Average:
    """decay times the average before, and the rest the parameters, after each step; it begins as the parameters that training begins from.

    decay: None for no average. kept: where an interrupted training left it, by the parameters' names. Buffers are
    not averaged.
    """

    def __init__(self, model: Defended, decay: float | None, kept: Mapping[str, Tensor]) -> None:
        named = dict(model.named_parameters(remove_duplicate=False)) if decay is not None else {}
        self.decay = decay or 0.0
        self.names = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
        self.tensors: dict[Tensor, Tensor] = {  # by the parameter, which may have two names
            parameter: kept.get(name, parameter.detach()).to(parameter, copy=True) for name, parameter in self.names.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        for parameter, tensor in self.tensors.items():
            tensor.lerp_(parameter, 1 - self.decay)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The average in the parameters' place."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for parameter, tensor in self.tensors.items():
            before = parameter.clone()
            parameter.copy_(tensor)
            tensor.copy_(before)

    def snapshot(self) -> dict[str, Tensor]:
        """The average by the parameters' names, in tensors of its own on the CPU; empty without one."""
        return {name: self.tensors[parameter].to("cpu", copy=True).contiguous() for name, parameter in self.names.items()}
