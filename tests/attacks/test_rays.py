"""RayS: known distances, and the paper's algorithm written out for one image."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BOX = Budget("linf", math.inf)


class Linear(nn.Module):
    """Logits w_k x + b_k."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T + self.b


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


@pytest.fixture(params=[2, 3])
def linear(request: pytest.FixtureRequest) -> tuple[Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(request.param, 9, generator=generator)
    x = 0.4 + 0.2 * torch.rand(40, 1, 3, 3, generator=generator)
    model = Linear(w, -0.5 * w.sum(1))
    return model, x, model(x).argmax(1)


def distances(model: Linear, x: Tensor, y: Tensor) -> Tensor:
    """To the nearest boundary with another class, in linf: the gap of two logits over the l1 norm of their difference."""
    logits = model(x).double()
    gap = logits.gather(1, y[:, None]) - logits
    length = (model.w[y][:, None] - model.w[None]).abs().sum(2).double()
    return (gap / length).nan_to_num(nan=math.inf).where(length > 0, math.inf).amin(1)


def reference(model: nn.Module, x: Tensor, y: int, queries: int, tolerance: float) -> tuple[Tensor, int]:
    """Algorithms 2 and 3 for one image [C, H, W], as the authors write them: lengths are l2 lengths. Returns x_adv and the queries."""
    size, used = x.numel(), 0

    def wrong(direction: Tensor, radius: float) -> bool:
        nonlocal used
        used += 1
        return int(model(point(direction, radius)[None]).argmax()) != y

    def point(direction: Tensor, radius: float) -> Tensor:
        return (x + radius / math.sqrt(size) * direction.view_as(x)).clamp(0, 1)

    best, best_radius, nearest, level, block = torch.ones(size), math.inf, x, 0, 0
    while used < queries:
        length = math.ceil(size / 2**level)
        start, end = block * length, min(size, (block + 1) * length)
        attempt = best.clone()
        attempt[start:end] *= -1
        if wrong(attempt, min(best_radius, math.sqrt(size))):
            low, high = 0.0, min(best_radius, math.sqrt(size))
            while high - low > tolerance and used < queries:
                middle = (low + high) / 2
                low, high = (low, middle) if wrong(attempt, middle) else (middle, high)
            if high < best_radius:
                best, best_radius, nearest = attempt, high, point(attempt, high)
        block += 1
        if block == 2**level or end == size:
            level, block = level + 1, 0
    return nearest, used


def test_lands_near_the_nearest_misclassified_image(linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]) -> None:
    model, x, y = linear
    x_adv = built("attack", "rays", "attack.queries=3000")(model, x, y, BOX, streams(40))
    assert (model(x_adv).argmax(1) != y).all()
    found, true = BOX.distance(x_adv, x), distances(model, x, y)
    assert (found >= true - 1e-6).all()
    assert (found <= true + 1e-3).float().mean() >= (1.0 if len(model.w) == 2 else 0.6)  # with three classes it is a greedy search
    assert (found <= 1.5 * true + 1e-3).all()


@pytest.mark.parametrize("queries", [1, 7, 40, 500])
def test_asks_what_the_paper_asks(queries: int, linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]) -> None:
    """Also where the budget ends within a binary search, and where an image leaves because nothing can change any more."""
    n = 15
    model, x, y = linear[0], linear[1][:n], linear[2][:n]
    counted = Counted(model)
    x_adv = built("attack", "rays", f"attack.queries={queries}", "attack.tolerance=0.01")(counted, x, y, BOX, streams(n))
    theirs = torch.stack([reference(model, image, int(label), queries, 0.01)[0] for image, label in zip(x, y, strict=True)])
    torch.testing.assert_close(x_adv, theirs, atol=1e-5, rtol=0)
    assert counted.forward_images <= n * queries
    if queries == 7:
        assert counted.forward_images == n * queries
    if queries == 500:
        assert counted.forward_images < n * 200


def test_asks_what_the_paper_asks_of_a_network(
    exact_digits_model: Defended, digits: tuple[ImageSet, ImageSet], built: Callable[..., Any]
) -> None:
    """In double precision: in single, answers at the very boundary depend on the batch that an image is in."""
    x, y, _ = next(digits[1].batches(torch.arange(5), 5))
    x = x.double()
    x_adv = built("attack", "rays", "attack.queries=250")(exact_digits_model, x, y, BOX, streams(5))
    theirs = [reference(exact_digits_model, image, int(label), 250, 1e-3)[0] for image, label in zip(x, y, strict=True)]
    torch.testing.assert_close(x_adv, torch.stack(theirs), atol=1e-6, rtol=0)
    assert (exact_digits_model(x_adv).argmax(1) != y).all()


def test_in_a_ball_images_leave_inside_it_and_the_verdicts_are_those_of_the_distances(
    linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]
) -> None:
    model, x, y = linear
    attack = built("attack", "rays", "attack.queries=600")
    free = BOX.distance(attack(model, x, y, BOX, streams(40)), x)
    eps = float(free.median()) + 1e-4
    # A search ends as far beyond the boundary as its tolerance: what is brought back into a slightly smaller ball may be broken still.
    clear = (free <= eps) | (free > eps + attack.tolerance)
    assert clear.sum() > 30
    counted = Counted(model)
    x_adv = attack(counted, x, y, Budget("linf", eps), streams(40))
    assert torch.equal((model(x_adv).argmax(1) != y)[clear], (free <= eps)[clear])
    assert Budget("linf", eps).contains(x_adv, x)
    assert (x_adv != x).flatten(1).any(1).all()  # what lies outside is brought back into the ball
    transfer = Counted(model)
    transfer.decides = False  # type: ignore[assignment]
    through = attack(transfer, x, y, Budget("linf", eps), streams(40))
    assert transfer.forward_images > counted.forward_images
    assert (BOX.distance(through, x)[free <= eps] == free[free <= eps]).all()


def test_an_image_that_nothing_breaks_stays(built: Callable[..., Any]) -> None:
    model = Linear(torch.zeros(2, 9), torch.tensor([1.0, 0.0]))
    x = torch.rand(3, 1, 3, 3)
    assert torch.equal(built("attack", "rays", "attack.queries=50")(model, x, torch.zeros(3).long(), BOX, streams(3)), x)


@pytest.mark.parametrize("override", ["queries=0", "tolerance=0", "tolerance=a"])
def test_a_wrong_knob_fails_when_built(override: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{override.split('=')[0]}: expected .*, got "):
        built("attack", "rays", f"attack.{override}")
