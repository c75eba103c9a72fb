"""The seam between an image and a patch that is laid over a part of it: a minimum cut, exactly, for many at once.

Source: Kwatra et al. 2003 (Graphcut Textures), section 3; the costs are those of facebookresearch/adversarial_image_defenses, quilting.cpp.
There a general max-flow finds the cut of one patch; a lattice this narrow allows dynamic programming over its rows, whose state is
which cells of a row are new.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from robustbench_lab.knobs import require


class Seam:
    """Finds seams where the cells `stays` have to be old and `goes` new; both bool [h, w].

    Between neighbours i, old, and j, new, the boundary costs sum_c |new_j - old_i|. Of equally good cuts it is the one with the fewest new
    cells: there is just one, and a max-flow that counts as new what still reaches the sink finds the same. Time and memory are those of
    4^w numbers a pair of patches, where two rows are free. Raises LabError where a cell has to be both.
    """

    def __init__(self, stays: Tensor, goes: Tensor) -> None:
        require(not bool((stays & goes).any()), "stays, goes", "no cell that has to be both", (stays & goes).tolist())
        height, width = stays.shape
        steps = ((0, 1), (0, -1), (1, 0), (-1, 0))
        cells = [(row, column) for row in range(height) for column in range(width)]
        edges = [(cell, (cell[0] + down, cell[1] + right)) for cell in cells for down, right in steps]
        edges = [(i, j) for i, j in edges if j in cells and not (goes[i] or stays[j])]  # of the others none is ever cut
        self.tails, self.heads = (torch.tensor([row * width + column for row, column in ends]) for ends in zip(*edges, strict=True))
        self.rows = [_labellings(*ties) for ties in zip(stays, goes, strict=True)]
        self.costs = []
        for number, below in enumerate(self.rows):  # what a labelling of a row adds, after each of the row above
            above = self.rows[number - 1] if number else torch.zeros(1, width, dtype=torch.bool)
            pairs = torch.stack([above[:, None].expand(-1, len(below), -1), below.expand(len(above), -1, -1)])
            costs = torch.zeros(len(edges), len(above), len(below), dtype=torch.float64)
            for place, ((row, column), (other_row, other_column)) in enumerate(edges):
                if max(row, other_row) == number:
                    costs[place] = ~pairs[row - number + 1][..., column] & pairs[other_row - number + 1][..., other_column]
            self.costs.append(costs)

    def to(self, device: torch.device) -> Seam:
        self.tails, self.heads = self.tails.to(device), self.heads.to(device)
        self.rows, self.costs = ([part.to(device) for part in parts] for parts in (self.rows, self.costs))
        return self

    def new_cells(self, old: Tensor, new: Tensor) -> Tensor:
        """Which cells to take from `new`, bool [B, h, w]. old, new: whole numbers [B, C, h, w], as float32 holds them and sums of them."""
        jumps = (new.flatten(2)[..., self.heads] - old.flatten(2)[..., self.tails]).abs().sum(dim=1).double()
        total, cheapest = jumps.new_zeros(len(jumps), 1), []
        for costs in self.costs:
            added = (jumps @ costs.flatten(1)).unflatten(1, costs.shape[1:])  # whole numbers far below 2^53: ties are ties
            total, before = (total[:, :, None] + added).min(dim=1)  # the first of equals
            cheapest.append(before)
        state = total.argmin(dim=1)
        labels = []
        for row, before in zip(self.rows[::-1], cheapest[::-1], strict=True):
            labels.append(row[state])
            state = before.gather(1, state[:, None])[:, 0]
        return torch.stack(labels[::-1], dim=1)


def _labellings(stays: Tensor, goes: Tensor) -> Tensor:
    """Every labelling of a row [w] that its ties allow, bool [S, w]: true for new.

    Old comes before new. What is new in the least of equally good cuts is new in all of them, so that it is the first.
    """
    allowed = [(False,) if old else (True,) if new else (False, True) for old, new in zip(stays.tolist(), goes.tolist(), strict=True)]
    return torch.tensor(list(itertools.product(*allowed)))
