"""Seconds that the defended model takes to answer an image: its fronts and its network, without gradients.

Source: SFM 2022, Table 8, tells minutes for 10,000 images; what it counts, and on which device, it does not say.
The pass is timed from images on the model's device to logits there; reading images, sending them there and the attack are no part of it. An
evaluation's verdict has asked the model for the same images just before, so that what is done once only, such as choosing kernels for their
shape, is done already.
Limits: wall time, on the record's device and in batches of the evaluation's `batch_size`, in full precision: compare figures of one machine
that does nothing else. Images of one batch have the same figure, so that an interval over images says less than it seems to.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from robustbench_lab.knobs import require
from robustbench_lab.metrics.base import Measure, Seen, check_images
from robustbench_lab.models.defended import frozen, full_precision


@dataclass(frozen=True, kw_only=True)
class SecondsOfDefending(Measure):
    """The time of one prediction of the clean images, in eval mode, over how many they are: float64 [B]; all images count. One that
    averages passes takes the time of them all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.as_published, "as_published", "false: there is no other form of it", self.as_published)

    @torch.no_grad()
    def __call__(self, seen: Seen) -> Tensor:
        check_images(x=seen.x)
        with frozen(seen.model, fast=False) as model, full_precision():
            _wait(seen.x.device)
            started = time.perf_counter()
            model(seen.x)
            _wait(seen.x.device)
            seconds = time.perf_counter() - started
        return torch.full((len(seen.x),), seconds / len(seen.x), dtype=torch.float64, device=seen.x.device)


def _wait(device: torch.device) -> None:
    """Until the device has done what it was told; a GPU does it later than it is told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
