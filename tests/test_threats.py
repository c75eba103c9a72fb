"""What must hold for any image and any step: where a budget lets an attack go, and what threat models may say."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, ThreatModel

SHAPE = (3, 2, 3)  # images, each two rows of three pixels
BALLS = ("linf", "l2")  # the norms that have a direction
ball_sizes = st.one_of(st.sampled_from([0.0, 1e-30, 1e-8, 8 / 255, 0.5, 100.0, math.inf]), st.floats(0, 3))
pixels = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0, 1, width=32))
anything = st.one_of(st.sampled_from([0.0, 1.0, -1e-30, 1e-30]), st.floats(-1000, 1000, width=32))


def tensors(values: st.SearchStrategy[float]) -> st.SearchStrategy[Tensor]:
    n = math.prod(SHAPE)
    return st.lists(values, min_size=n, max_size=n).map(lambda v: torch.tensor(v, dtype=torch.float32).view(len(v) // 6, 1, 2, 3))


def lengths(delta: Tensor, norm: str) -> Tensor:
    flat = delta.double().flatten(1)
    if norm == "l0":
        return (delta != 0).any(1).flatten(1).sum(1).double()
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


budgets = st.one_of(
    st.builds(Budget, st.sampled_from(BALLS), ball_sizes),
    st.builds(Budget, st.just("l0"), st.sampled_from([0.0, 1, 2, 5, 6.0, 100, math.inf])),
)
quick = settings(max_examples=80, deadline=None)


@quick
@given(budgets, tensors(pixels), tensors(anything))
def test_project_lands_inside_and_stays_there(budget: Budget, x: Tensor, far: Tensor) -> None:
    inside = budget.project(far, x)
    assert inside.dtype == x.dtype
    assert inside.min() >= 0
    assert inside.max() <= 1
    assert (lengths(inside.double() - x.double(), budget.norm) <= budget.eps + 1e-6).all()
    assert budget.contains(inside, x)
    torch.testing.assert_close(budget.project(inside, x), inside, atol=1e-6, rtol=0)


@quick
@given(st.builds(Budget, st.sampled_from(BALLS), ball_sizes), tensors(pixels), tensors(pixels))
def test_project_leaves_a_point_of_the_ball_where_it_is(budget: Budget, x: Tensor, other: Tensor) -> None:
    reach = lengths(other - x, budget.norm)
    shrunk = x + (other - x) * (0.99 * budget.eps / reach.clamp(min=1e-9)).clamp(max=1).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(budget.project(shrunk, x), shrunk, atol=1e-6, rtol=0)


@quick
@given(st.floats(0, 2), tensors(pixels), tensors(anything))
def test_project_finds_the_nearest_point_in_linf(eps: float, x: Tensor, far: Tensor) -> None:
    """Pixel by pixel, the nearest of an interval: its middle value with the two ends."""
    low, high = (x.double() - eps).clamp(min=0), (x.double() + eps).clamp(max=1)
    nearest = torch.stack([low, far.double(), high]).median(dim=0).values
    torch.testing.assert_close(Budget("linf", eps).project(far, x).double(), nearest, atol=1e-6, rtol=0)


@quick
@given(st.floats(0.001, 0.3), tensors(st.floats(0.3125, 0.6875, width=32)), tensors(anything))
def test_project_finds_the_nearest_point_in_l2(eps: float, x: Tensor, far: Tensor) -> None:
    """Far from the box's edge: the point of the sphere on the line to the centre, or the point itself."""
    delta = far.double() - x.double()
    nearest = x.double() + delta * (eps / lengths(delta, "l2").clamp(min=eps)).view(-1, 1, 1, 1)
    torch.testing.assert_close(Budget("l2", eps).project(far, x).double(), nearest, atol=1e-6, rtol=0)


@quick
@given(budgets, tensors(pixels), st.integers(0, 2**31))
def test_random_starts_are_inside_and_belong_to_the_image(budget: Budget, x: Tensor, seed: int) -> None:
    rng = ImageRandom.of(torch.arange(3), seed)
    start = budget.random_start(x, rng)
    assert budget.contains(start, x)
    assert start.shape == x.shape
    assert start.dtype == x.dtype
    assert torch.equal(budget.random_start(x[2:], rng[2:]), start[2:])


@pytest.mark.parametrize("eps", [0.05, math.inf])
@pytest.mark.parametrize("norm", BALLS)
def test_random_starts_fill_the_ball_evenly(norm: str, eps: float) -> None:
    """Of a ball in three dimensions, the one of half its size holds an eighth."""
    x = torch.full((4000, 3, 1, 1), 0.5)
    delta = Budget(norm, eps).random_start(x, ImageRandom.of(torch.arange(4000), 0)) - x
    size = 0.5 if eps == math.inf else eps
    inner = lengths(delta, "linf" if eps == math.inf else norm) < size / 2
    assert inner.float().mean() == pytest.approx(1 / 8, abs=4 * (1 / 8 * 7 / 8 / 4000) ** 0.5)
    torch.testing.assert_close(delta.mean(0).flatten(), torch.zeros(3), atol=4 * size / 4000**0.5, rtol=0)
    assert lengths(delta, norm).max() > 0.98 * size


# Gradients of 1e-30 have squares that are 0 in float32: the direction must survive.
slopes = st.one_of(st.sampled_from([0.0, 1e-30, -1e-30, 1e-36, 1e30, -1.0]), st.floats(-1e4, 1e4, width=32))


@quick
@given(st.sampled_from(BALLS), tensors(slopes))
def test_steepest_has_length_one_and_climbs_fastest(norm: str, gradient: Tensor) -> None:
    step = Budget(norm, 0.1).steepest(gradient)
    assert step.isfinite().all()
    flat = gradient.double().flatten(1)
    some = flat.abs().amax(1) > 1e-37
    expected = some.double()
    torch.testing.assert_close(lengths(step, norm)[some], expected[some], atol=1e-5, rtol=0)
    assert not step[~flat.any(1)].any()
    dual = flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)
    torch.testing.assert_close((step.double().flatten(1) * flat).sum(1)[some], dual[some], rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm", BALLS)
def test_a_gradient_that_is_not_a_number_is_not_a_step_of_zero(norm: str) -> None:
    gradient = torch.ones(2, 1, 2, 2)
    gradient[1, 0, 1, 1] = torch.nan
    step = Budget(norm, 0.1).steepest(gradient)
    assert step[0].isfinite().all()
    assert step[1].isnan().any()


def test_steps_and_distances_by_hand() -> None:
    gradient = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]], [[[3e-30, -4e-30]]]])
    assert Budget("linf", 1).steepest(gradient).flatten(1).tolist() == [[1, -1], [0, 0], [1, -1]]
    torch.testing.assert_close(Budget("l2", 1).steepest(gradient).flatten(1), torch.tensor([[0.6, -0.8], [0.0, 0.0], [0.6, -0.8]]))
    x, x_adv = torch.zeros(1, 1, 1, 2), torch.tensor([[[[0.3, 0.4]]]])
    assert Budget("linf", 1).distance(x_adv, x).tolist() == pytest.approx([0.4])
    assert Budget("l2", 1).distance(x_adv, x).tolist() == pytest.approx([0.5])
    assert Budget("l2", 1).distance(x_adv, x).dtype == torch.float64
    assert Budget("l2", 0.25).project(x_adv, x).flatten().tolist() == pytest.approx([0.15, 0.2])
    assert Budget("linf", 0.35).project(x_adv, x).flatten().tolist() == pytest.approx([0.3, 0.35])
    # The ball's point (1.15, 1.2) is cut by the box.
    assert Budget("l2", 0.25).project(1 + x_adv, x + 1).flatten().tolist() == [1, 1]


def test_distance_sees_what_float32_sums_do_not() -> None:
    """A hundred thousand pixels moved by 1e-4: their squares, added to 1 one by one in float32, would be lost."""
    x, x_adv = torch.zeros(1, 1, 1, 100_001), torch.full((1, 1, 1, 100_001), 1e-4)
    x_adv[..., 0] = 1
    assert Budget("l2", 1).distance(x_adv, x).item() == pytest.approx(math.sqrt(1.001), rel=1e-7)


@pytest.mark.parametrize("norm", BALLS)
def test_contains_says_no(norm: str) -> None:
    x, budget = torch.full((2, 1, 2, 2), 0.5), Budget(norm, 0.1)
    out = x.clone()
    out[1, 0, 0, 0] += 0.1001
    assert budget.contains(x, x)
    assert not budget.contains(out, x)
    assert budget.contains(out, x, tolerance=1e-3)
    assert not Budget(norm, math.inf).contains(x + 0.5001, x)
    assert not Budget(norm, math.inf).contains(x - 0.5001, x)
    assert not budget.contains(torch.full_like(x, torch.nan), x)


def test_in_l0_pixels_are_counted_whole() -> None:
    """Two images of two channels and three pixels: the pixel that changed most stays, with both its channels."""
    x = torch.full((1, 2, 1, 3), 0.5)
    x_adv = x + torch.tensor([[[[0.3, 0.0, -0.2]], [[0.0, 0.0, 0.25]]]])  # squares .09, 0, .1025
    assert Budget("l0", 3).distance(x_adv, x).tolist() == [2]
    assert Budget("l0", 2).contains(x_adv, x)
    assert not Budget("l0", 1).contains(x_adv, x)
    torch.testing.assert_close(Budget("l0", 1).project(x_adv, x), x + torch.tensor([[[[0.0, 0.0, -0.2]], [[0.0, 0.0, 0.25]]]]))
    assert torch.equal(Budget("l0", 0).project(x_adv, x), x)
    beyond = x + torch.tensor([[[[0.6, 0.0, 9.0]], [[0.0, 0.0, 0.0]]]])  # what the box cuts does not count
    assert Budget("l0", 1).project(beyond, x)[0, :, 0].tolist() in ([[1.0, 0.5, 0.5], [0.5] * 3], [[0.5, 0.5, 1.0], [0.5] * 3])
    with pytest.raises(LabError, match=r"^eps: expected a whole number of pixels, or inf, with norm=l0, got 0\.5"):
        Budget("l0", 0.5)
    with pytest.raises(LabError, match=r"^budget\.norm: in l0 there is no steepest step"):
        Budget("l0", 1).steepest(x)


def test_random_starts_in_l0_choose_each_pixel_alike() -> None:
    x = torch.full((3000, 2, 1, 3), 0.5)
    start = Budget("l0", 1).random_start(x, ImageRandom.of(torch.arange(3000), 0))
    changed = (start != x).any(1).flatten(1)
    assert (changed.sum(1) == 1).all()
    torch.testing.assert_close(changed.float().mean(0), torch.full((3,), 1 / 3), atol=4 * (2 / 9 / 3000) ** 0.5, rtol=0)


@pytest.mark.parametrize("eps", [-0.1, math.nan, "0.1", "8/255", None, True, [0.1], -math.inf])
def test_wrong_eps(eps: Any) -> None:
    with pytest.raises(LabError, match=r"^eps: expected a number >= 0"):
        Budget("linf", eps)


@pytest.mark.parametrize("norm", ["l1", "Linf", "", None, 2, math.inf])
def test_wrong_norm(norm: Any) -> None:
    with pytest.raises(LabError, match=r"^norm: expected one of linf, l2, l0, got"):
        Budget(norm, 0.1)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"sees": "everything"},
            r"^sees: expected one of defended, learned, twin, substitute, queries, got 'everything'",
        ),
        ({"answers": "scores"}, r"^answers: expected logits or labels, got 'scores'"),
        ({"overrides": ["seed=1"]}, r"^overrides: expected none with sees=defended, got \['seed=1'\]"),
        ({"sees": "queries", "overrides": ["seed=1"]}, r"^overrides: expected none with sees=queries"),
        ({"sees": "twin"}, r"^overrides: expected how the run that the attacker sees differs.*, got \[\]"),
        ({"sees": "substitute"}, r"^overrides: "),
    ],
)
def test_wrong_threat_models(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        ThreatModel(**{"sees": "defended", "overrides": [], "answers": "logits", **knobs})
