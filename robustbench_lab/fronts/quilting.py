"""Image quilting as a front: images are put together from patches of training images.

Source: Guo et al. 2018, arXiv:1711.00117, section 4.3; their code, facebookresearch/adversarial_image_defenses (index_patches.py,
quilting_fast.py, quilting.cpp).
Where we differ: the bank's places are all different; theirs are drawn image by image and may repeat. What else their code does otherwise
is a value of `border` and `seam`.
Limits: Athalye et al. 2018 (arXiv:1802.00420), section 5.4.1, leave nothing of it on ImageNet by gradients of the identity. Patches are
kept in 256 levels, to which images of other values are rounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Count, at_most, check, one_of, require
from robustbench_lab.models.defended import full_precision
from robustbench_lab.models.front import Front
from robustbench_lab.transforms.nearest_patches import LEAST_PATCHES, SUBVECTORS, ApproximateIndex, nearest, need_faiss
from robustbench_lab.transforms.quilting import Border, Cut, patches, starts, stitched

AT_ONCE = 500  # training images looked at at a time
LARGEST = 8  # side of a patch: a seam's search takes memory as 4^size


class Quilting(Front):
    """Each patch of an image becomes its nearest of a bank, in l2, laid over the earlier ones along a seam; gradient: the identity's.

    patches: how many are in the bank, at different places of the first `images` training images, or of all where there are fewer. The bank
    is a buffer, kept with the weights: patches * channels * size^2 bytes. size, overlap: of patches, in pixels. neighbours: each patch is
    drawn from as many nearest; with more than 1 the model is stochastic, which its YAML then says by `_stochastic_: true`. border, seam:
    `transforms.quilting`. search: `exact`, on any device, or `faiss`, on the CPU: neighbours that are nearly the nearest, in less time; its
    index is made of the bank when it is first asked.
    Raises LabError for knobs that do not fit each other, the images or the training images, for images that come before there is a bank,
    and where faiss is not installed.
    """

    bank: Tensor
    has_learned: Tensor

    def __init__(self, patches: int, images: int, size: int, overlap: int, neighbours: int, border: Border, seam: Cut, search: str) -> None:
        super().__init__()
        for key, value in {"patches": patches, "images": images, "overlap": overlap, "neighbours": neighbours}.items():
            check(key, value, Count)
        check("size", size, Annotated[Count, at_most(LARGEST)])
        require(overlap < size, "overlap", f"less than size={size}", overlap)
        require(neighbours <= patches, "neighbours", f"at most patches={patches}", neighbours)
        check("border", border, Border)
        check("seam", seam, Cut)
        check("search", search, Annotated[str, one_of(("exact", "faiss"))])
        if search == "faiss":
            need_faiss()
            require(patches >= LEAST_PATCHES, "patches", f"{LEAST_PATCHES} or more for search=faiss", patches)
        self.patches, self.images, self.size, self.overlap = patches, images, size, overlap
        self.neighbours, self.border, self.seam, self.search = neighbours, border, seam, search
        self.random = neighbours > 1  # type: ignore[misc]
        self.register_buffer("bank", torch.zeros(0, 0, dtype=torch.uint8))
        self.register_buffer("has_learned", torch.tensor(False))
        self._index: ApproximateIndex | None = None

    def check(self, shape: Sequence[int]) -> None:
        """Gives the bank its size too, so that weights can be loaded into it."""
        channels, side = shape[0], min(shape[1:])
        largest = side if self.border == "covered" else side - 1
        require(self.size <= largest, "size", f"at most {largest} with border={self.border} and images of {list(shape)}", self.size)
        values = channels * self.size**2
        enough = self.search == "exact" or values >= SUBVECTORS
        require(enough, "search", f"exact for patches of {values} values, fewer than {SUBVECTORS}", self.search)
        if self.bank.shape != (self.patches, values):
            self.bank = self.bank.new_zeros(self.patches, values)

    def fit(self, images: ImageSet, rng: torch.Generator) -> None:
        self.check(images.shape)
        width = images.shape[2] - self.size + 1
        places = (images.shape[1] - self.size + 1) * width
        there = min(self.images, len(images))
        require(
            self.patches <= there * places,
            "defense.fronts.quilting.patches",
            f"at most {there * places}, the places for a patch of {self.size} x {self.size} in {there} images of {list(images.shape)}",
            self.patches,
        )
        chosen = _distinct(self.patches, there * places, rng).sort().values
        needed, which = (chosen // places).unique(return_inverse=True)
        row, column = chosen % places // width, chosen % places % width
        found, start = [], 0
        for x, _, _ in images.batches(needed, AT_ONCE):
            windows = (255 * x).round().to("cpu", torch.uint8).unfold(2, self.size, 1).unfold(3, self.size, 1)
            here = (which >= start) & (which < start + len(x))
            found.append(windows[which[here] - start, :, row[here], column[here]].flatten(1))
            start += len(x)
        self.bank.copy_(torch.cat(found))
        self.has_learned.fill_(True)
        self._index = None

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._index = None

    def transform(self, x: Tensor) -> Tensor:
        if not self.has_learned:
            raise LabError("quilting: expected a bank of patches, which training chooses from its images, got none; train the model first")
        rows, columns = (starts(side, self.size, self.overlap, self.border) for side in x.shape[2:])
        with torch.autocast(x.device.type, enabled=False), full_precision():
            queries = patches(255 * x.float(), rows, columns, self.size)
            found = self._nearest(queries.flatten(3).flatten(0, 2))
        if self.random:
            found = found.gather(1, torch.randint(self.neighbours, (len(found), 1), device=x.device))
        chosen = self.bank[found[:, 0]].view(queries.shape)
        return stitched(chosen, rows, columns, x.shape[2], x.shape[3], self.seam).to(x.dtype) / 255

    def _nearest(self, queries: Tensor) -> Tensor:
        """[Q, neighbours]"""
        if self.search == "exact":
            return nearest(queries, self.bank, self.neighbours)
        return self.approximate_index.nearest(queries, self.bank, self.neighbours)

    @property
    def approximate_index(self) -> ApproximateIndex:
        """Of the bank as it is now."""
        if self._index is None:
            self._index = ApproximateIndex(self.bank)
        return self._index

    def extra_repr(self) -> str:
        shown = ("patches", "size", "overlap", "neighbours", "border", "seam", "search")
        return ", ".join(f"{name}={getattr(self, name)}" for name in shown)


def _distinct(count: int, total: int, rng: torch.Generator) -> Tensor:
    """As many different numbers below `total`, every set alike likely; memory is that of the numbers, however large the total."""
    if count > total // 2:
        return torch.randperm(total, generator=rng)[:count]
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < count:
        found = torch.cat([found, torch.randint(total, (count,), generator=rng)]).unique()
    return found[torch.randperm(len(found), generator=rng)[:count]]
