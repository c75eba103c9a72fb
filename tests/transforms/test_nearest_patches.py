"""The nearest of many patches: exact where it says so, close where it does not."""

import sys

import pytest
import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.transforms import nearest_patches
from robustbench_lab.transforms.nearest_patches import ApproximateIndex, nearest


def drawn(count: int, values: int, seed: int) -> Tensor:
    """uint8, as neighbouring pixels are: a level for each patch, and something on it."""
    rng = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 1, generator=rng) * 200 + torch.rand(count, values, generator=rng) * 55).to(torch.uint8)


@pytest.mark.parametrize("k", [1, 3])
def test_it_is_the_nearest_over_several_tiles(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest_patches, "TILE", 64)
    bank, queries = drawn(500, 27, 0), drawn(150, 27, 1)
    distances = (queries.double()[:, None] - bank.double()).square().sum(dim=2)
    found = nearest(queries.float(), bank, k)
    assert torch.equal(distances.gather(1, found), distances.sort(dim=1).values[:, :k])
    assert (found.sort(dim=1).values.diff(dim=1) > 0).all(), "no patch twice"
    between = queries.float() + 0.5 * torch.rand(queries.shape, generator=torch.Generator().manual_seed(2))
    distances = (between.double()[:, None] - bank.double()).square().sum(dim=2)
    torch.testing.assert_close(distances.gather(1, nearest(between, bank, k)), distances.sort(dim=1).values[:, :k], rtol=1e-5, atol=0.1)


def test_a_level_off_is_told_from_none_and_of_equals_the_first_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the ends of the range, where rounding would be largest."""
    monkeypatch.setattr(nearest_patches, "TILE", 7)
    bank = torch.full((30, 75), 255, dtype=torch.uint8)
    bank[:20] -= torch.eye(75, dtype=torch.uint8)[:20]
    assert nearest(torch.full((1, 75), 255.0), bank, 1).tolist() == [[20]]
    assert nearest(bank[:20].float(), bank, 1)[:, 0].tolist() == list(range(20))


def test_faiss_finds_what_is_nearly_as_near() -> None:
    """For slopes with a little noise it is at most a tenth farther, on average."""
    pytest.importorskip("faiss")

    def slopes(count: int, seed: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed)
        place, noise = torch.linspace(-1, 1, 27), torch.rand(count, 27, generator=rng)
        level, slope = torch.rand(2, count, 1, generator=rng)
        return (64 + 128 * level + 60 * (2 * slope - 1) * place + 4 * noise).to(torch.uint8)

    bank, queries = slopes(2000, 0), slopes(200, 1).float()
    index = ApproximateIndex(bank)

    def mean_distance(found: Tensor) -> float:
        return float((queries - bank[found[:, 0]].float()).norm(dim=1).mean())

    exact, close = nearest(queries, bank, 1), index.nearest(queries, bank, 1)
    assert mean_distance(exact) <= mean_distance(close) <= 1.1 * mean_distance(exact)
    assert torch.equal(ApproximateIndex(bank).nearest(queries, bank, 1), close)
    assert (index.index.search(queries.numpy(), 500)[1] < 0).any(), "the probed lists do not hold as many"
    assert (index.nearest(queries, bank, 500) >= 0).all()


def test_without_faiss_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(LabError, match=r"^search: expected exact where faiss is not installed .*pip install faiss-cpu$"):
        ApproximateIndex(drawn(300, 27, 0))
