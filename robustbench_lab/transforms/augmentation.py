"""Training augmentation, a whole batch at once and on its device: random crops with zero padding, and horizontal flips.

Source: Krizhevsky et al. 2012, section 4.1, in the form of He et al. 2016, section 4.2 (CIFAR-10: padding 4). The
random numbers come from outside, so that the caller ties them to images.
"""

import torch
from torch import Tensor
from torch.nn import functional


def random_crop(x: Tensor, padding: int, offsets: Tensor) -> Tensor:
    """Each image shifted by its own whole number of pixels, black where it moved in from outside.

    `x` [B, C, H, W]; `offsets` int64 [B, 2], row and column in 0..2 padding, at which the crop starts in the image
    padded by `padding` zeros on every side ([padding, padding] is the image itself). Returns [B, C, H, W].
    """
    height, width = x.shape[-2:]
    # A view of every possible crop, [B, C, 2 padding + 1, 2 padding + 1, H, W], of which one an image is copied.
    crops = functional.pad(x, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return crops[torch.arange(len(x), device=x.device), :, offsets[:, 0], offsets[:, 1]]


def random_flip(x: Tensor, flips: Tensor) -> Tensor:
    """The images where `flips`, bool [B], is true mirrored left to right; `x` and the result [B, C, H, W]."""
    return torch.where(flips[:, None, None, None], x.flip(-1), x)
