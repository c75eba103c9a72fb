"""The mask that the sparse feature masker's loss asks for without its semantic term: no network, only brightness.

Source: our arithmetic. Over free masks m, w1 |m x|_1 + w3 |x - m x|_2 is least at m_p = max(0, 1 - c a_p / s_p^2), where a_p and s_p are
the l1 and l2 norm of pixel p's channels and c = (w1 / w3) |x - m x|_2: bright pixels stay, less about the same amount of light each, and
dark ones go. Yu et al. 2022 (SFM-Defense), section 4, has the loss.
What it is for: at the brightness that a learned mask keeps, whatever a defense owes to the masks' meaning is missing here.
Where we differ: c follows from the brightness that each image shall keep, not from the weights and the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from robustbench_lab.fronts.mask import Mask
from robustbench_lab.knobs import PositiveShare, check


class SoftThreshold(Mask):
    """The soft threshold that keeps the share `kept` of each image's brightness |x|_1; differentiable almost everywhere."""

    def __init__(self, kept: float) -> None:
        super().__init__()
        check("kept", kept, PositiveShare)
        self.kept = kept

    def masks(self, x: Tensor) -> Tensor:
        brightness, squared = x.abs().sum(dim=1, keepdim=True), x.square().sum(dim=1, keepdim=True)
        black = squared == 0
        ratio = torch.where(black, torch.finfo(x.dtype).max, brightness / torch.where(black, 1.0, squared))  # the first to go
        return (1 - self.threshold(brightness.flatten(1), ratio.flatten(1)).view(-1, 1, 1, 1) * ratio).clamp(min=0)

    def threshold(self, brightness: Tensor, ratio: Tensor) -> Tensor:
        """c [B] at which sum_p a_p max(0, 1 - c r_p) is kept * sum_p a_p, exactly, from a and r [B, P].

        For any set of pixels, sum over it of a_p (1 - c r_p) is at most that sum, and equal for the pixels that stay, which are those of
        the least ratios: c is the largest of the roots of such lines.
        """
        ratio, order = ratio.sort(dim=1, descending=True)
        brightness = brightness.gather(1, order)
        wanted = self.kept * brightness.sum(dim=1, keepdim=True)
        stays, slope = (_sums_to_the_end(part) for part in (brightness, brightness * ratio))
        lit = slope > 0
        roots = torch.where(lit, (stays - wanted) / torch.where(lit, slope, 1.0), 0.0)
        return roots.amax(dim=1).clamp(min=0)

    def extra_repr(self) -> str:
        return f"kept={self.kept}"


def _sums_to_the_end(values: Tensor) -> Tensor:
    return values.flip(1).cumsum(dim=1).flip(1)
