"""Accuracy after the attack as L2P's code counts it: the model is asked in train mode, and judges by the statistics of the batch.

Source: ArmenJeddi/Learn2Perturb, evaluate.py with attacks/pgd.py, whose attack ends in `model.train()` before the model is asked. FM 2021
says that it follows Learn2Perturb. It stands beside the verdict, never in its place: it tells what that way of counting adds.
Limits: an image's answer depends on the others of its batch (`batch_size`), attacked or not, so that its own attack, which saw the eval
mode, was aimed at another model. BatchNorm's running statistics, and all other buffers, are left as they were. Random output: one draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lab.knobs import require
from robustbench_lab.metrics.base import Measure, Seen, check_images
from robustbench_lab.models.defended import full_precision


@dataclass(frozen=True, kw_only=True)
class TrainModeAccuracy(Measure):
    """Whether the model, in train mode, has the attacked image right: 1 or 0, float64 [B]; the metric is the mean. All images count, also
    those that were wrong when clean."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.as_published, "as_published", "true: there is no other form of it", self.as_published)

    def __call__(self, seen: Seen) -> Tensor:
        return right_in_train_mode(seen.model, seen.x_adv, seen.y)


@torch.no_grad()
def right_in_train_mode(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which of the images x [B, C, H, W], labels y int64 [B], a model in train mode has right as one batch: 1 or 0, float64 [B]."""
    check_images(x=x)
    with _in_train_mode(model), full_precision():
        return (model(x).argmax(dim=1) == y).double()


@contextmanager
def _in_train_mode(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for buffer, before in buffers:
            buffer.copy_(before)
