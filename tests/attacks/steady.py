"""Which images two codes of one algorithm must agree on in single precision."""

from collections.abc import Callable

import torch
from torch import Tensor

TRIALS, AWAY = 3, 1e-6


def steady(search: Callable[[Tensor], Tensor], x: Tensor, tolerance: float) -> Tensor:
    """The images whose result moves by less than `tolerance` when they start a few roundings away, bool [B].

    Near a kink of the network, or where a slope is almost zero and only its sign counts, two orders of the same sums end elsewhere.
    """
    found, kept = search(x), torch.ones(len(x), dtype=torch.bool)
    draw = torch.Generator().manual_seed(0)
    for _ in range(TRIALS):
        near = (x + AWAY * (2 * torch.rand(x.shape, generator=draw) - 1)).clamp(0, 1)
        kept &= (search(near) - found).abs().flatten(1).amax(1) < tolerance
    return kept
