"""Reduction of an image's bit depth, the "colour depth" squeezer.

Source: Xu, Evans and Qi 2018 (Feature Squeezing), arXiv:1704.01155, section III-A.
"""

import torch
from torch import Tensor


def reduce_bit_depth(x: Tensor, bits: int) -> Tensor:
    """The nearest of the 2^bits equally spaced values from 0 to 1: round(x (2^bits - 1)) / (2^bits - 1), `bits` from 1 to 8.

    A value half-way between two goes to the one of even number, as in the authors' numpy.rint: with 1 bit, 0.5 becomes 0. `x` and the
    result [B, C, H, W] in [0, 1].
    """
    highest = 2**bits - 1
    return torch.round(x * highest) / highest
