"""The nearest of many small patches: exactly, on any device, or about, by faiss on the CPU.

Patches are rows of levels, 0 to 255; those of the bank are uint8. Source of the approximate index: Johnson et al. 2017,
arXiv:1702.08734, as facebookresearch/adversarial_image_defenses uses it (index_patches.py, quilting_fast.py).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from robustbench_lab.errors import LabError

TILE = 1024  # queries and patches of one matrix product: 4 MiB of distances
MIDDLE = 128.0  # distances do not change with it, and rounding is least about it
# As released: lists, of which as many are probed; dimensions after a rotated PCA, in sub-vectors, each coded in so many bits.
LISTS, PROBES, DIMENSIONS, SUBVECTORS, BITS = 200, 5, 64, 16, 8
LEAST_PATCHES = 2**BITS  # that codes can be learned from


def nearest(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    """The k nearest in l2 of bank [N, P] to each of queries [Q, P], the nearest first: int64 [Q, k]; N of k or more.

    For k = 1 of equally near ones the first. Whole levels of up to 341 values a patch are compared exactly, because every product and sum
    then is a whole number below 2^24; others up to float32's rounding. The caller sees to it that products are made in float32.
    """
    return torch.cat([_nearest_of_tile(tile.float() - MIDDLE, bank, k) for tile in queries.split(TILE)])


def _nearest_of_tile(queries: Tensor, bank: Tensor, k: int) -> Tensor:
    best = queries.new_full((len(queries), k), math.inf)  # |t|^2 - 2 x't, which is the squared distance but for |x|^2
    found = torch.zeros_like(best, dtype=torch.int64)
    for start in range(0, len(bank), TILE):
        patches = bank[start : start + TILE].float() - MIDDLE
        scores = torch.addmm(patches.square().sum(dim=1), queries, patches.T, alpha=-2)
        closer = (scores.amin(dim=1) < best[:, -1]).nonzero()[:, 0]  # few, but at the beginning: where it lies is asked of these alone
        scores = scores[closer]
        if k == 1:
            place = scores.argmin(dim=1, keepdim=True)
            best[closer], found[closer] = scores.gather(1, place), start + place
            continue
        place = torch.arange(start, start + scores.shape[1], device=scores.device).expand_as(scores)
        best[closer], order = torch.cat([best[closer], scores], dim=1).topk(k, largest=False)
        found[closer] = torch.cat([found[closer], place], dim=1).gather(1, order)
    return found


class ApproximateIndex:
    """faiss's inverted lists of product codes after a rotated PCA, learned from bank [N, P] itself, N of LEAST_PATCHES or more.

    Patches of fewer values than DIMENSIONS keep as many as SUBVECTORS divides, as released. The same bank gives the same index on the same
    machine. Raises LabError where faiss is not installed.
    """

    def __init__(self, bank: Tensor) -> None:
        faiss = need_faiss()
        values = bank.shape[1]
        kept = DIMENSIONS if values >= DIMENSIONS else values - values % SUBVECTORS
        self._coarse = faiss.IndexFlatL2(kept)  # held here: the index only points to it
        self._lists = faiss.IndexIVFPQ(self._coarse, kept, LISTS, SUBVECTORS, BITS)
        self._lists.nprobe = PROBES
        self._lists.cp.min_points_per_centroid = self._lists.pq.cp.min_points_per_centroid = 1  # or a small bank is warned of, 17 times
        self._rotation = faiss.PCAMatrix(values, kept, 0, True)
        self.index: Any = faiss.IndexPreTransform(self._rotation, self._lists)
        rows = bank.cpu().float().numpy()
        self.index.train(rows)
        self.index.add(rows)

    def nearest(self, queries: Tensor, bank: Tensor, k: int) -> Tensor:
        """As the function, about: exact for those queries of which the probed lists hold fewer than k."""
        found = torch.from_numpy(self.index.search(queries.detach().cpu().float().numpy(), k)[1]).to(queries.device)
        missing = (found < 0).any(dim=1)
        if missing.any():
            found[missing] = nearest(queries[missing], bank, k)
        return found


def need_faiss() -> ModuleType:
    """Raises LabError, with the install command, where the package is missing."""
    try:
        import faiss
    except ImportError as error:
        raise LabError(
            f"search: expected exact where faiss is not installed ({error}), got faiss; install it: python -m pip install faiss-cpu"
        ) from error
    return faiss
