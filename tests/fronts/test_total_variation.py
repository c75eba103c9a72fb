"""Total-variation minimisation: against other solvers of the same energy, by hand, and its gradient by differences."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.total_variation import TotalVariationMinimisation
from robustbench_lab.transforms.total_variation import VERSIONS, TotalVariation

WEIGHT = 1 / 0.03
WORDS = ["defense=preprocessed", "front@defense.fronts=[total_variation]", "backbone=small_cnn"]
Pair = tuple[Tensor, Tensor]


def energy(version: str = "fixed", tolerance: float = 1e-7, weight: float = WEIGHT, **others: Any) -> TotalVariation:
    knobs = {"penalty": 16.0, "relaxation": 1.8, "sweeps": 2, "iterations": 3000} | others
    return TotalVariation(weight=weight, version=version, tolerance=tolerance, **knobs)


def front(**knobs: Any) -> TotalVariationMinimisation:
    given = {"dropped": 0.5, "weight": WEIGHT, "version": "fixed", "penalty": 6.0, "relaxation": 1.8, "tolerance": 1e-4, "sweeps": 2}
    return TotalVariationMinimisation(**(given | {"iterations": 200} | knobs))


def pictures(count: int, side: int) -> Tensor:
    """Smooth shades, an edge and some noise, float64."""
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(count, 3, 4, 4, generator=generator, dtype=torch.double)
    smooth = F.interpolate(small, size=(side, side), mode="bilinear")
    edge = (torch.arange(side) > side // 2).double() * 0.3
    return (0.6 * smooth + edge + 0.1 * torch.rand(smooth.shape, generator=generator, dtype=torch.double)).clamp(0, 1)


def differences(u: Tensor) -> Pair:
    return F.pad(u[..., 1:] - u[..., :-1], (0, 1)), F.pad(u[..., 1:, :] - u[..., :-1, :], (0, 0, 0, 1))


def variation(u: Tensor) -> Tensor:
    across, down = differences(u)
    return (across.square() + down.square()).sqrt().sum((2, 3))


def energies(u: Tensor, x: Tensor, kept: Tensor) -> Tensor:
    return variation(u) + WEIGHT / 2 * (kept * (u - x).square()).sum((2, 3))


def primal_dual(x: Tensor, kept: Tensor, steps: int) -> Tensor:
    """Chambolle and Pock 2011, algorithm 1."""
    u, ahead, across, down, step = x * kept, x * kept, torch.zeros_like(x), torch.zeros_like(x), 8**-0.5
    for _ in range(steps):
        across, down = (dual + step * part for dual, part in zip((across, down), differences(ahead), strict=True))
        length = (across.square() + down.square()).sqrt().clamp(min=1)
        across, down = across / length, down / length
        divergence = across - F.pad(across[..., :-1], (1, 0)) + down - F.pad(down[..., :-1, :], (0, 0, 1, 0))
        before, u = u, (u + step * (divergence + WEIGHT * kept * x)) / (1 + step * WEIGHT * kept)
        ahead = 2 * u - before
    return u


@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_its_energy_is_that_of_a_primal_dual_solver(dropped: float) -> None:
    x = pictures(4, 16)
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) >= dropped
    least = energies(primal_dual(x, kept, 4000), x, kept)
    ours = energy(tolerance=1e-8).minimise(x, kept if dropped else None)
    assert (energies(ours, x, kept) <= least * (1 + 1e-6)).all()
    quick = energies(front().variation.minimise(x, kept), x, kept)
    assert (quick <= least * (1 + 3e-3)).all(), "with the knobs of the choice"


def test_without_dropping_it_is_scikit_image_s() -> None:
    """denoise_tv_bregman is `as_released` within the image: at the border it holds on to what is mirrored there, which we do not have, so
    that the image is embedded; denoise_tv_chambolle is `fixed`."""
    restoration = pytest.importorskip("skimage.restoration")
    x = pictures(2, 16)
    framed = F.pad(x, (12, 12, 12, 12), mode="replicate")

    def theirs(solve: Callable[..., Any], images: Tensor, **knobs: Any) -> Tensor:
        return torch.stack([torch.from_numpy(solve(image.numpy(), channel_axis=0, **knobs)) for image in images])

    bregman = theirs(restoration.denoise_tv_bregman, framed, weight=WEIGHT, max_num_iter=2000, eps=1e-8)
    released = energy("as_released").minimise(framed)
    assert (released - bregman)[..., 12:-12, 12:-12].abs().max() < 1e-4
    chambolle = theirs(restoration.denoise_tv_chambolle, x, weight=1 / WEIGHT, max_num_iter=3000, eps=1e-12)
    assert (energy("fixed").minimise(x) - chambolle).abs().max() < 2e-3
    assert (energy("fixed").minimise(x) - energy("as_released").minimise(x)).abs().max() > 5e-3, "two energies"


@pytest.mark.parametrize("version", VERSIONS)
def test_how_it_is_found_does_not_matter(version: str) -> None:
    x = pictures(3, 12)
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.8
    ours = energy(version).minimise(x, kept)
    slow = energy(version, penalty=2 * WEIGHT, relaxation=1.0, sweeps=10).minimise(x, kept)
    assert (ours - slow).abs().max() < 1e-3
    one = energy(version).minimise(x[1:2], kept[1:2])
    assert (ours[1:2] - one).abs().max() < 1e-6, "others in the batch change nothing"


def as_released(x: Tensor, kept: Tensor, iterations: int) -> Tensor:
    """The published loop: raster order, 10 sweeps, differences d and duals b of a penalty of twice the weight."""
    height, width = x.shape
    penalty, u, z = 2 * WEIGHT, x * kept, torch.zeros_like(x)
    bx, by = torch.zeros_like(x), torch.zeros_like(x)
    for _ in range(iterations):
        for _ in range(10):
            for row in range(height):
                for column in range(width):
                    near = [u[i, j] for i, j in ((row - 1, column), (row + 1, column)) if 0 <= i < height]
                    near += [u[row, j] for j in (column - 1, column + 1) if 0 <= j < width]
                    inner = z[row, column] + sum(near)
                    there = (penalty * inner + WEIGHT * x[row, column]) / (WEIGHT + penalty * len(near))
                    u[row, column] = there if kept[row, column] else inner / 4
        tx, ty = (part + dual for part, dual in zip(differences(u), (bx, by), strict=True))
        length = (tx.square() + ty.square()).sqrt() * penalty
        dx, dy = (t * length / (length + 1) for t in (tx, ty))
        bx, by = tx - dx, ty - dy
        across, down = dx - bx, dy - by
        z = F.pad(across[:, :-1], (1, 0)) - across + F.pad(down[:-1], (0, 0, 1, 0)) - down
    return u


def test_as_released_is_the_published_loop() -> None:
    x = pictures(1, 4)[0, 0]
    kept = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 0]], dtype=torch.bool)
    ours = energy("as_released", tolerance=1e-9).minimise(x[None, None], kept[None, None])[0, 0]
    assert (ours - as_released(x, kept, 120)).abs().max() < 1e-4
    assert ours[0, 0] < 0.9 * ours[0, 1], "a missing corner is pulled towards black"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_constant_image_stays(version: str) -> None:
    x = torch.full((1, 1, 8, 8), 0.7)
    torch.testing.assert_close(energy(version).minimise(x), x)


def test_a_dropped_pixel_of_a_constant_image_is_restored() -> None:
    x, kept = torch.full((1, 1, 8, 8), 0.7), torch.ones(1, 1, 8, 8, dtype=torch.bool)
    kept[0, 0, [0, 0, 3, 7], [0, 5, 3, 7]] = False
    corrupted = torch.where(kept, x, 0.1)  # what is missing does not count
    restored = energy(tolerance=1e-6).minimise(corrupted, kept)
    assert (restored - 0.7).abs().max() < 1e-4


def test_two_pixels_by_hand() -> None:
    """Of 0 and 1 side by side each moves by 1 / weight towards the other; at a weight of 1 they meet."""
    x = torch.tensor([[[[0.0, 1.0]]]])
    assert energy(weight=4.0).minimise(x).flatten().tolist() == pytest.approx([0.25, 0.75], abs=1e-5)
    assert energy(weight=1.0).minimise(x).flatten().tolist() == pytest.approx([0.5, 0.5], abs=1e-5)


def test_the_front_drops_and_smooths() -> None:
    x = pictures(40, 16).float()
    torch.manual_seed(0)
    shown = front()(x)
    assert variation(shown).mean() < 0.6 * variation(x).mean()
    assert 0 <= shown.min() <= shown.max() <= 1
    torch.manual_seed(0)
    kept = torch.rand_like(x) >= 0.5
    torch.testing.assert_close(shown, energy(tolerance=1e-4, penalty=6.0, iterations=200).minimise(x, kept).clamp(0, 1))
    near = (shown - x).abs()
    assert near[kept].mean() < 0.04
    assert near[~kept].mean() < 0.06
    assert front().random
    still = front(dropped=0.0)
    assert not still.random
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dropped", [0.0, 0.3])
def test_its_gradient_is_that_of_the_minimum(version: str, dropped: float) -> None:
    """Against differences of the minimum, along random directions; a missing pixel has none."""
    x, solver = pictures(2, 6), energy(version, tolerance=1e-9)
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(5)) >= dropped
    given = kept if dropped else None
    toward = torch.rand(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((solver.minimise(image, given) * toward).sum(), image)
    assert not gradient[~kept].any()
    for seed in range(3):
        along = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        ends = [(solver.minimise(x + step * along, given) * toward).sum() for step in (1e-5, -1e-5)]
        assert float(ends[0] - ends[1]) / 2e-5 == pytest.approx(float((gradient * along).sum()), rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("key", ["weight", "penalty", "tolerance", "sweeps", "iterations", "relaxation"])
def test_strengths_are_positive(key: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense.fronts.total_variation.{key}: expected a .* number >"):
        run_objects(*WORDS, f"defense.fronts.total_variation.{key}=0")


@pytest.mark.parametrize(("key", "word"), [("dropped", "1"), ("version", "new"), ("relaxation", "2")])
def test_other_knobs_are_named(key: str, word: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense.fronts.total_variation.{key}: expected"):
        run_objects(*WORDS, f"defense.fronts.total_variation.{key}={word}")
