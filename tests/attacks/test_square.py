"""Square: known answers, the paper's formulas by hand, and the authors' AutoAttack package."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import margin
from robustbench_lab.attacks.square import bump, bumps, square, stripes, tiles
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


class Linear(nn.Module):
    """Logits [0, w x + b], and -9 for a third class that never wins."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score, torch.full_like(score, -9.0)], dim=1)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


@pytest.fixture
def linear() -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier of 1x8x8 images that lie far from the box's limits."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(64, generator=generator)
    x = 0.4 + 0.2 * torch.rand(60, 1, 8, 8, generator=generator)
    model = Linear(w, -0.5 * float(w.sum()))
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize(("norm", "short"), [("linf", 0.01), ("l2", 0.3)])
def test_breaks_exactly_the_images_whose_margin_allows_it(
    norm: str, short: float, linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]
) -> None:
    """In linf single pixels reach the corner that is best; in l2 bumps of 3x3 pixels cannot follow a gradient of noise all the way."""
    model, x, y = linear
    dual = float(model.w.abs().sum() if norm == "linf" else model.w.norm())
    reach = (model(x)[:, 1] - model(x)[:, 0]).abs().double() / dual
    eps = float(reach.median())
    x_adv = built("attack", "square", "attack.queries=1200")(model, x, y, Budget(norm, eps), streams(60))
    broken = model(x_adv).argmax(1) != y
    assert int((reach < eps * (1 - short)).sum()) > 15
    assert int((reach > eps).sum()) > 15
    assert broken[reach < eps * (1 - short)].all()
    assert not broken[reach > eps].any()
    assert Budget(norm, eps).contains(x_adv, x)


def test_the_side_of_the_square_by_hand(built: Callable[..., Any]) -> None:
    """28x28, p = 0.8: sqrt(627.2) = 25.04; p / 2: 17.71; p / 512: 1.11. Of 5000 queries, proposal 6 is number 12 of 10,000."""
    attack = built("attack", "square")
    assert [attack.side(query, "linf", 28, 28) for query in (0, 5, 6, 25, 26, 4001)] == [25, 25, 18, 18, 13, 1]
    assert [attack.side(query, "l2", 28, 28) for query in (0, 6, 4001)] == [25, 19, 3]
    assert [attack.side(0, norm, 40, 8) for norm in ("linf", "l2")] == [8, 8]
    assert attack.side(0, "l2", 2, 2) == 2
    assert built("attack", "square", "attack.queries=10000").side(10, "linf", 28, 28) == 25
    assert built("attack", "square", "attack.queries=10000").side(11, "linf", 28, 28) == 18


def test_the_bump_by_hand() -> None:
    """Side 3, n = 1: 1 + 1/4 in the middle of each half and 1/4 around it; each half has length 1 before both are scaled."""
    upper, lower = (1.25**2 + 2 * 0.25**2) ** 0.5, (1.25**2 + 5 * 0.25**2) ** 0.5
    expected = torch.tensor(
        [
            [0.25 / upper, 1.25 / upper, 0.25 / upper],
            [-0.25 / lower, -0.25 / lower, -0.25 / lower],
            [-0.25 / lower, -1.25 / lower, -0.25 / lower],
        ]
    )
    shape = bumps(3, torch.device("cpu")).view(2, 3, 3)
    torch.testing.assert_close(shape[0], expected / 2**0.5)
    torch.testing.assert_close(shape[1], expected.T / 2**0.5)
    torch.testing.assert_close(bumps(1, torch.device("cpu")), -torch.ones(2, 1))


@pytest.mark.parametrize("side", [2, 3, 4, 5, 6, 9, 17])
def test_the_bump_is_the_one_of_the_authors(side: int) -> None:
    peer = pytest.importorskip("pyautoattack.square", reason="the parity extra is not installed")
    theirs = peer.SquareAttack(None, norm="L2", device="cpu").eta(side)
    ours = bumps(side, torch.device("cpu")).view(2, side, side)
    assert torch.allclose(ours[0], theirs, atol=1e-6) or torch.allclose(ours[1], theirs, atol=1e-6)


def test_a_square_goes_to_the_other_side_of_the_ball() -> None:
    """Each channel of one 2x2 square moves by 2 eps or nowhere; some channel does; every place and every other sign is equally likely."""
    n, budget = 7000, Budget("linf", 0.1)
    x = torch.full((n, 3, 4, 5), 0.5)
    draws = streams(n).integers(1 << 30, 6)
    moved = (square(x, x + 0.1, budget, 2, draws) - (x + 0.1)) / 0.2
    rounded = moved.round()
    torch.testing.assert_close(moved, rounded, atol=1e-5, rtol=0)
    assert set(rounded.unique().tolist()) == {-1.0, 0.0}
    changed = rounded.abs().amax(1)
    assert (changed.flatten(1).sum(1) == 4).all()
    corner = changed[:, :-1, :-1] * changed[:, 1:, 1:]  # only the upper left pixel of a square has its lower right neighbour in it
    assert torch.allclose(corner.mean(0), torch.full((3, 4), 1 / 12), atol=0.02)
    pattern = (rounded.abs().amax((2, 3)) @ torch.tensor([1.0, 2.0, 4.0])).long().bincount(minlength=8)
    assert pattern[0] == 0
    assert torch.allclose(pattern[1:] / n, torch.full((7,), 1 / 7), atol=0.02)


def test_a_square_is_cut_by_the_box() -> None:
    x = torch.tensor([0.0, 1.0, 0.05]).view(3, 1, 1, 1)
    x_best = torch.tensor([0.1, 0.9, 0.15]).view(3, 1, 1, 1)
    x_new = square(x, x_best, Budget("linf", 0.1), 1, torch.zeros(3, 6, dtype=torch.int64))
    torch.testing.assert_close(x_new.flatten(), torch.tensor([0.0, 1.0, 0.0]))  # the sign is drawn again only where it changes nothing


def test_a_bump_gives_the_second_square_and_the_rest_of_the_ball_to_the_first() -> None:
    """Algorithm 3 on one image, written out with slices."""
    generator = torch.Generator().manual_seed(0)
    x = torch.full((1, 2, 6, 6), 0.5)
    x_best = x + 0.02 * torch.randn(1, 2, 6, 6, generator=generator)
    eps, side = 1.1 * float((x_best - x).norm()), 3
    x_new = bump(x, x_best, Budget("l2", eps), side, torch.tensor([[1, 2, 2, 1, 0b10, 1]]))
    delta = (x_best - x)[0].clone()
    first, second = (slice(1, 4), slice(2, 5)), (slice(2, 5), slice(1, 4))
    union = torch.zeros(6, 6, dtype=torch.bool)
    union[first] = union[second] = True
    unused = eps**2 - delta.square().sum()
    old = [delta[channel][first].clone() for channel in range(2)]
    available = [(delta[channel][union].square().sum() + unused / 2).sqrt() for channel in range(2)]
    for channel, sign in enumerate((-1, 1)):
        delta[channel][second] = 0
        new = sign * bumps(3, torch.device("cpu"))[1].view(3, 3) + old[channel] / old[channel].norm()
        delta[channel][first] = new / new.norm() * available[channel]
    torch.testing.assert_close(x_new[0], x[0] + delta, atol=1e-6, rtol=0)
    assert Budget("l2", eps).distance(x_new, x).item() == pytest.approx(eps, rel=1e-5)


def test_starts() -> None:
    x = torch.full((50, 3, 32, 30), 0.5)
    up = stripes(x, Budget("linf", 0.1), streams(50))
    torch.testing.assert_close((up - x).abs(), torch.full_like(x, 0.1))
    assert (up == up[:, :, :1]).all()  # one value down each column
    assert (up > 0.5).float().mean() == pytest.approx(0.5, abs=0.03)
    grid = tiles(x, Budget("l2", 2.0), streams(50)) - x
    torch.testing.assert_close(grid.flatten(1).norm(dim=1), torch.full((50,), 2.0))
    torch.testing.assert_close(grid[:, :, 1:31].square().unflatten(2, (5, 6)).sum((3, 4)), torch.full((50, 3, 5), 4 / 3 / 5))
    assert not grid[:, :, 0].any()
    for size in (1, 2, 4, 5, 7, 11):
        assert (
            Budget("l2", 0.1).distance(tiles(x[:, :, :size, :size], Budget("l2", 0.1), streams(50)), x[:, :, :size, :size]).min() > 0.0999
        )


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_more_queries_never_lower_the_loss(
    norm: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor], built: Callable[..., Any]
) -> None:
    """And without a verdict to leave on, all of them are used. The schedule is that of 80 queries throughout."""
    model, x, budget = tiny_net(3, 10, seed=3), edge_images(30, 3), Budget(norm, 0.1)
    y = model(x).argmax(1)
    last = torch.full((30,), -torch.inf)
    for queries in (1, 10, 80):
        counted = Counted(model)
        counted.decides = False  # type: ignore[assignment]
        attack = built("attack", "square", f"attack.queries={queries}", "attack.halve_p_at=[]", "attack.p_init=0.1")
        value = margin(model(attack(counted, x, y, budget, streams(30))), y)
        assert (value >= last).all()
        assert counted.forward_images == 30 * queries
        last = value
    assert (last > 0).any()


def test_images_leave_when_they_are_misclassified(linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]) -> None:
    """Restarts as well are for the others only, and keep the best of them."""
    model, x, y = linear
    counted = Counted(model)
    built("attack", "square")(counted, x, y, Budget("linf", 0.3), streams(60))
    assert counted.forward_images < 60 * 40
    attacks = [built("attack", "square", "attack.queries=8", f"attack.restarts={restarts}") for restarts in (1, 4)]
    values = [margin(model(attack(model, x, y, Budget("linf", 0.02), streams(60))), y) for attack in attacks]
    assert (values[1] > 0).sum() >= (values[0] > 0).sum() > 0
    assert (values[1] >= values[0]).all()
    assert (values[1] > values[0])[values[0] <= 0].any()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.6)])
def test_autoattack(norm: str, eps: float, digits_model: Defended, digits: tuple[ImageSet, ImageSet], built: Callable[..., Any]) -> None:
    """As many queries as the authors' package: no more images survive, up to one."""
    peer = pytest.importorskip("pyautoattack.square", reason="the parity extra is not installed")
    n, queries = 60, 200
    x, y, _ = next(digits[1].batches(torch.arange(n), n))
    x_adv = built("attack", "square", f"attack.queries={queries}")(digits_model, x, y, Budget(norm, eps), streams(n))
    attack = peer.SquareAttack(digits_model, norm={"linf": "Linf", "l2": "L2"}[norm], n_queries=queries, eps=eps, device="cpu")
    theirs = attack.perturb(x.clone(), y.clone())
    ours, robust = ((digits_model(images).argmax(1) == y).sum().item() for images in (x_adv, theirs))
    assert 0.2 * n < robust < 0.9 * n
    assert ours <= robust + 1
    assert Budget(norm, eps).contains(x_adv, x)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("queries=0", "queries"),
        ("restarts=0", "restarts"),
        ("p_init=0", "p_init"),
        ("p_init=1.5", "p_init"),
        ("halve_p_at=[10,5]", "halve_p_at"),
        ("halve_p_at=[a]", "halve_p_at"),
        ("loss=own", "loss"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "square", f"attack.{override}")
