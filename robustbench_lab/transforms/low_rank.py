"""Completion of images of which some pixels are missing by low rank, a whole batch at once, and its gradient.

Source: Mazumder, Hastie and Tibshirani 2010 (Spectral Regularization Algorithms for Learning Large Incomplete Matrices), JMLR 11,
algorithm 1: soft-impute along a path of falling thresholds, each beginning where the last one ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from robustbench_lab.knobs import Count, Knobs, at_least, below, require

LEAST = 1e-3  # share of the largest singular value that its square, in float32, still tells from 0


@dataclass(frozen=True, kw_only=True)
class LowRank(Knobs):
    """Of each image the rows by all columns of all channels, H x (W C), is one matrix, whose channels share their rows' structure.

    The thresholds on singular values fall by equal factors from the share `first` of the largest one, of the image with its missing pixels
    black, to the share `last`, below which float32 has no more of a singular value: `thresholds` of them, with `iterations` at each.
    """

    first: Annotated[float, at_least(LEAST), below(1)]
    last: Annotated[float, at_least(LEAST), below(1)]
    thresholds: Count
    iterations: Count

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.last <= self.first, "last", f"at most {self.first}, the first threshold", self.last)

    def complete(self, x: Tensor, missing: Tensor) -> Tensor:
        """x [B, C, H, W] with what is missing, bool of that shape or one that broadcasts to it, filled in; the rest stays as it is.

        Differentiable, exactly: through the thresholds, and through the singular vectors, whose values may be alike.
        """
        gone = _as_matrices(missing.expand_as(x))
        known = _as_matrices(x).masked_fill(gone, 0)
        largest = torch.linalg.matrix_norm(known, ord=2)
        falling = torch.logspace(0, 1, self.thresholds, base=self.last / self.first, dtype=x.dtype, device=x.device) * self.first
        filled = known
        for threshold in falling:
            for _ in range(self.iterations):
                low = _Shrinkage.apply(filled @ filled.mT, threshold * largest) @ filled
                filled = torch.where(gone, low, known)
        completed = filled.unflatten(2, (x.shape[3], x.shape[1])).permute(0, 3, 1, 2)
        return torch.where(missing, completed, x)


def _as_matrices(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).flatten(2)


class _Shrinkage(torch.autograd.Function):
    """f(G) [B, H, H] of G = A A', f(s^2) = max(0, 1 - threshold / s): f(G) A is A with its singular values s less the threshold.

    Backward by the divided differences of f (Daleckii and Krein 1965), which are finite where eigenvalues meet, as singular vectors'
    derivatives are not: threshold / (s t (s + t)) between two s and t above the threshold.
    """

    @staticmethod
    def forward(ctx: Any, gram: Tensor, threshold: Tensor) -> Tensor:
        squares, vectors = torch.linalg.eigh(gram)
        ctx.save_for_backward(squares, vectors, threshold)
        share, _ = _shrunk(squares, threshold)
        return (vectors * share[:, None]) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        squares, vectors, threshold = ctx.saved_tensors
        share, inverse = _shrunk(squares, threshold)
        gaps, stays = squares[:, :, None] - squares[:, None], inverse > 0
        one_stays = stays[:, :, None] ^ stays[:, None]
        quotients = (share[:, :, None] - share[:, None]) / gaps.masked_fill(~one_stays | (gaps == 0), 1)
        sizes, product = squares.clamp(min=0).sqrt(), inverse[:, :, None] * inverse[:, None]
        both_stay = threshold[:, None, None] * product / (sizes[:, :, None] + sizes[:, None]).masked_fill(product == 0, 1)
        inner = vectors.mT @ ((gradient + gradient.mT) / 2) @ vectors
        of_gram = vectors @ (torch.where(one_stays, quotients, both_stay) * inner) @ vectors.mT
        return of_gram, -(inverse * inner.diagonal(dim1=1, dim2=2)).sum(1)


def _shrunk(squares: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """f(s^2) and 1 / s where s is above its image's threshold, 0 elsewhere, of squares [B, H] and thresholds [B]."""
    stays = squares > threshold[:, None].square()
    inverse = squares.masked_fill(~stays, 1).rsqrt()
    return (1 - threshold[:, None] * inverse).masked_fill(~stays, 0), inverse.masked_fill(~stays, 0)
