"""Pixels to which the network answers most are replaced by what the others let expect, the others are smoothed, as a front.

Source: ours, after the abstract of Zhao et al. 2021, IEEE Transactions on Image Processing 30, 6485-6497, whose constants and code are not
known: none of their figures is this front's. The parts: Guo et al. 2018, arXiv:1711.00117, section 4.2 (total variation); Mazumder, Hastie
and Tibshirani 2010, JMLR 11 (soft-impute).
Limits: what takes the place of a pixel is a smooth function of the image, and the gradient is its; which pixels go is none, and the
gradient does not know that an attack may move that.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from robustbench_lab.knobs import Count, above, below, check
from robustbench_lab.models.defended import cross_entropy, frozen, full_precision
from robustbench_lab.models.front import Front, straight
from robustbench_lab.transforms.low_rank import LowRank
from robustbench_lab.transforms.total_variation import TotalVariation


class Sensitivity(Front):
    """The share `missing` of each image's pixels, those of largest gradient, is completed by low rank, and the others are smoothed.

    A pixel's gradient is that of the network's cross-entropy at its own prediction, in eval mode, the largest of its channels in size.
    For `rounds` times: what is missing is completed from what was smoothed (at first the image's other pixels), and the whole is smoothed,
    with the image's own values where they are not missing. What is shown is smoothed where it is not missing, completed where it is.
    The gradient is that of all of this for the pixels that went, without that of the clamp to [0, 1].
    """

    needs_network: ClassVar[bool] = True

    def __init__(self, missing: float, rounds: int, smoothing: TotalVariation, completion: LowRank) -> None:
        super().__init__()
        check("missing", missing, Annotated[float, above(0), below(1)])
        check("rounds", rounds, Count)
        check("smoothing", smoothing, TotalVariation)
        check("completion", completion, LowRank)
        self.missing = missing
        self.rounds = rounds
        self.smoothing = smoothing
        self.completion = completion

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False), full_precision():
            gone = self.sensitive(x)
            shown = x
            for _ in range(self.rounds):
                completed = self.completion.complete(shown, gone)
                smooth = self.smoothing.minimise(torch.where(gone, completed, x))
                shown = torch.where(gone, completed, smooth)
            return straight(shown.detach().clamp(0, 1), shown)

    def sensitive(self, x: Tensor) -> Tensor:
        """Which pixels go, bool [B, 1, H, W]: round(missing * H * W) of each image."""
        with frozen(self.network, fast=False) as network, torch.enable_grad():
            image = x.detach().clone().requires_grad_()
            logits = network(image)
            (gradient,) = torch.autograd.grad(cross_entropy(logits, logits.argmax(dim=1)).sum(), image)
        size = gradient.abs().amax(dim=1).flatten(1)
        largest = size.topk(round(self.missing * size.shape[1]), dim=1).indices
        gone = torch.zeros_like(size, dtype=torch.bool).scatter_(1, largest, True)
        return gone.view(len(x), 1, *x.shape[2:])

    def extra_repr(self) -> str:
        return f"missing={self.missing}, rounds={self.rounds}"
