"""Completion by low rank: matrices of low rank come back, and its gradient is that of differences."""

import pytest
import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.transforms.low_rank import LowRank, _Shrinkage

AS_CHOSEN = LowRank(first=0.5, last=0.002, thresholds=15, iterations=3)


def of_rank(rank: int, side: int = 32, count: int = 4) -> Tensor:
    """Images whose rows, through all channels, are mixtures of as many rows."""
    generator = torch.Generator().manual_seed(rank)
    rows = torch.rand(count, side, rank, generator=generator)
    columns = torch.rand(count, rank, side * 3, generator=generator)
    return (rows @ columns / rank).unflatten(2, (side, 3)).permute(0, 3, 1, 2)


def some(x: Tensor, share: float) -> Tensor:
    return torch.rand(len(x), 1, *x.shape[2:], generator=torch.Generator().manual_seed(9)) < share


@pytest.mark.parametrize("rank", [1, 2])
def test_what_is_of_low_rank_comes_back(rank: int) -> None:
    x = of_rank(rank)
    missing = some(x, 0.3)
    completed = AS_CHOSEN.complete(torch.where(missing, 0.5, x), missing)
    assert (completed - x).abs().max() < 1e-2
    assert torch.equal(completed.masked_select(~missing), x.masked_select(~missing)), "what is there stays"
    assert (torch.where(missing, 0, x) - x).abs().max() > 0.5


def test_what_is_not_of_low_rank_does_not() -> None:
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    missing = some(x, 0.3)
    assert (AS_CHOSEN.complete(x, missing) - x).abs().max() > 0.3


def test_where_nothing_is_missing_it_is_the_identity() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(AS_CHOSEN.complete(x, torch.zeros(2, 1, 8, 8, dtype=torch.bool)), x)


def test_black_images_and_images_that_are_missing_whole_stay_finite() -> None:
    x = torch.zeros(2, 3, 8, 8, requires_grad=True)
    missing = torch.tensor([True, False]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    completed = AS_CHOSEN.complete(x, missing)
    assert not completed.any()
    assert torch.autograd.grad(completed.sum(), x)[0].isfinite().all()


def test_one_step_by_hand() -> None:
    """The matrix [[1, 1], [1, ?]] at a threshold of half of its largest singular value s, that of [[1, 1], [1, 0]], (1 + sqrt 5) / 2: the
    other one, (sqrt 5 - 1) / 2 = .618, is below s / 2, and of s u u' is left half, .309 * ... at the missing place s / 2 * u_2^2."""
    x, missing = torch.tensor([[[[1.0, 1.0], [1.0, 0.3]]]]), torch.tensor([[[[False, False], [False, True]]]])
    size = (1 + 5**0.5) / 2
    second = 1 / (1 + size**2)  # u is (size, 1) / |(size, 1)|
    completed = LowRank(first=0.5, last=0.5, thresholds=1, iterations=1).complete(x, missing)
    assert float(completed[0, 0, 1, 1]) == pytest.approx(size / 2 * second, abs=1e-5)


def test_it_is_soft_impute_by_singular_values() -> None:
    x = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    missing = some(x, 0.3)
    for image, gone, ours in zip(x, missing, LowRank(first=0.4, last=0.1, thresholds=2, iterations=2).complete(x, missing), strict=True):
        matrix, hole = image.permute(1, 2, 0).flatten(1), gone.expand_as(image).permute(1, 2, 0).flatten(1)
        filled = matrix.masked_fill(hole, 0)
        largest = torch.linalg.svdvals(filled)[0]
        for share in (0.4, 0.4, 0.1, 0.1):
            u, sizes, v = torch.linalg.svd(filled, full_matrices=False)
            filled = torch.where(hole, (u * (sizes - share * largest).clamp(min=0)) @ v, matrix)
        assert (ours.permute(1, 2, 0).flatten(1) - filled).abs().max() < 1e-6


def test_its_gradient_is_its_own() -> None:
    x = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    missing = some(x, 0.3)
    low_rank = LowRank(first=0.4, last=0.1, thresholds=2, iterations=2)
    torch.autograd.gradcheck(lambda y: low_rank.complete(y, missing), x.requires_grad_(), atol=1e-6)


def test_the_gradient_of_shrinkage_at_singular_values_that_are_alike() -> None:
    turned, _ = torch.linalg.qr(torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double))
    matrix = turned[0] @ torch.diag(torch.tensor([2.0, 1.0, 1.0, 0.2], dtype=torch.double)) @ turned[1]
    threshold = torch.tensor([0.5], dtype=torch.double, requires_grad=True)

    def shrunk(matrix: Tensor, threshold: Tensor) -> Tensor:
        return _Shrinkage.apply(matrix @ matrix.mT, threshold) @ matrix

    assert torch.linalg.svdvals(shrunk(matrix[None], threshold))[0].tolist() == pytest.approx([1.5, 0.5, 0.5, 0], abs=1e-9)
    torch.autograd.gradcheck(shrunk, (matrix[None].requires_grad_(), threshold), atol=1e-6)


def test_thresholds_fall() -> None:
    with pytest.raises(LabError, match=r"^last: expected at most 0.1, the first threshold, got 0.2"):
        LowRank(first=0.1, last=0.2, thresholds=3, iterations=1)
    with pytest.raises(LabError, match=r"^last: expected a finite number >= 0.001"):
        LowRank(first=0.1, last=0.0, thresholds=3, iterations=1)
