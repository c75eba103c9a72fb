"""Seams: the least cut there is, and of several the one that a max-flow names."""

import itertools
from collections.abc import Iterator

import networkx
import pytest
import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.transforms.seam import Seam


def levels(*shape: int, high: int, seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed)).float()


def neighbours(height: int, width: int) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    for row, column in itertools.product(range(height), range(width)):
        for down, right in ((0, 1), (0, -1), (1, 0), (-1, 0)):
            if 0 <= row + down < height and 0 <= column + right < width:
                yield (row, column), (row + down, column + right)


def ties(height: int, width: int, above: int, before: int, first_stays: bool) -> tuple[Tensor, Tensor]:
    stays, goes = torch.zeros(2, height, width, dtype=torch.bool)
    if first_stays:
        stays[: min(above, 1)] = stays[:, : min(before, 1)] = True
    goes[above:, before:] = True
    return stays, goes


def by_brute_force(old: Tensor, new: Tensor, stays: Tensor, goes: Tensor) -> Tensor:
    """Of [C, h, w]: every labelling is tried."""
    found = {}
    for labels in itertools.product((False, True), repeat=stays.numel()):
        taken = torch.tensor(labels).view(stays.shape)
        if not (taken & stays).any() and not (~taken & goes).any():
            cut = [(i, j) for i, j in neighbours(*stays.shape) if not taken[i] and taken[j]]
            found[labels] = (sum(float((new[:, *j] - old[:, *i]).abs().sum()) for i, j in cut), sum(labels))
    least = min(found.values())
    (best,) = [labels for labels, cost in found.items() if cost == least]
    return torch.tensor(best).view(stays.shape)


@pytest.mark.parametrize("high", [2, 256])
@pytest.mark.parametrize(("above", "before"), [(2, 0), (0, 2), (2, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("first_stays", [True, False])
def test_it_is_the_least_of_all_labellings(high: int, above: int, before: int, first_stays: bool) -> None:
    """On 3 x 3, with many equal costs (two levels) and with few."""
    stays, goes = ties(3, 3, above, before, first_stays)
    old, new = levels(2, 4, 2, 3, 3, high=high, seed=above + 3 * before)
    found = Seam(stays, goes).new_cells(old, new)
    assert found.tolist() == [by_brute_force(*pair, stays, goes).tolist() for pair in zip(old, new, strict=True)]


@pytest.mark.parametrize("high", [3, 256])
@pytest.mark.parametrize("first_stays", [True, False])
def test_it_is_the_cut_that_a_max_flow_finds(high: int, first_stays: bool) -> None:
    stays, goes = ties(5, 5, 2, 3, first_stays)
    old, new = levels(2, 6, 3, 5, 5, high=high, seed=int(first_stays))
    found = Seam(stays, goes).new_cells(old, new)
    for taken, one, other in zip(found, old, new, strict=True):
        graph = networkx.DiGraph([("old", "new", {"capacity": 0})])
        graph.add_edges_from(("old", cell) for cell in map(tuple, stays.nonzero().tolist()))  # without a capacity: never cut
        graph.add_edges_from((cell, "new") for cell in map(tuple, goes.nonzero().tolist()))
        for i, j in neighbours(5, 5):
            graph.add_edge(i, j, capacity=int((other[:, *j] - one[:, *i]).abs().sum()))
        side = networkx.minimum_cut(graph, "old", "new")[1][1] - {"new"}
        assert set(map(tuple, taken.nonzero().tolist())) == side


def test_by_hand() -> None:
    """One row of five, the first old, the last two new. A boundary costs |new - old| across it: 4, 5 or 1; the last is least."""
    old, new = torch.tensor([[0.0, 0, 7, 0, 0], [4.0, 4, 5, 8, 0]]).view(2, 1, 1, 1, 5)
    seam = Seam(torch.tensor([[True, False, False, False, False]]), torch.tensor([[False, False, False, True, True]]))
    assert seam.new_cells(old, new).tolist() == [[[False, False, False, True, True]]]
    assert seam.new_cells(old + torch.tensor([0.0, 0, 9, 0, 0]), new).tolist() == [[[False, True, True, True, True]]]


def test_a_cell_cannot_be_both() -> None:
    with pytest.raises(LabError, match="stays, goes: expected no cell that has to be both"):
        Seam(torch.ones(2, 2).bool(), torch.eye(2).bool())
