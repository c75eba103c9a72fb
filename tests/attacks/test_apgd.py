"""APGD against the paper's equations by hand, a linear classifier, and the authors' AutoAttack."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks import apgd
from robustbench_lab.attacks.apgd import checkpoints, targeted_dlr
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BALLS = ("linf", "l2")
N = 24
EPS = {"linf": 0.1, "l2": 0.5}


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet], digits_model: Defended) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N + 10), N + 10))
    right = digits_model(x).argmax(1) == y
    return x[right][:N], y[right][:N]


def test_targeted_dlr_by_hand() -> None:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2); with three classes over z_(1) - z_(3), with two over 1."""
    y, target = torch.tensor([0]), torch.tensor([1])
    cases = {(5.0, 3.0, 2.0, 0.0, -7.0): -2 / 4, (1.0, 4.0, 2.0): 3 / 3, (1.0, 1.5): 0.5}
    for logits, expected in cases.items():
        assert targeted_dlr(torch.tensor([logits]), y, target).item() == pytest.approx(expected, abs=1e-6)


def test_checkpoints_by_hand() -> None:
    """Section 3.2: p = 0, .22, .41, .57, .70, .80, .87, .93, .99."""
    assert list(checkpoints(100).items()) == [(22, 22), (41, 19), (57, 16), (70, 13), (80, 10), (87, 7), (93, 6), (99, 6)]
    assert list(checkpoints(10)) == [3, 5, 6, 7, 8, 9, 10]
    assert list(checkpoints(1)) == [1]


class Line(nn.Module):
    """One pixel, logits [0, -score(x)]: class 0's loss by margin is -score."""

    def __init__(self, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.flatten()[0].item())
        score = self.score(x.flatten(1)[:, 0])
        return torch.stack([torch.zeros_like(score), -score], dim=1)


def test_iterates_by_hand(built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """x = .5, eps = .2, start .7, loss -(x - .5)^2 - 1, 10 steps, checks after 3, 5, ...: steps of .4 cross the ball, cut at its edge.

    x1 = .7 - .4 = .3. z2 = .7: x2 = .3 + .75 * .4 + .25 * (.3 - .7) = .5. There the gradient is 0, sign 0: z3 = .5, and
    x3 = .5 + .25 * (.5 - .3) = .55. Two of three steps did not fall (.7 -> .3 equal, .3 -> .5 a rise, .5 -> .55 a fall): one rise,
    fewer than .75 * 3, so the step is halved and x3 becomes .5, the best point. Then z4 = .5, x4 = .5 + .25 * (.5 - .5) = .5.
    """
    monkeypatch.setattr(apgd, "away", lambda x, radius, budget, rng: x + 0.2)
    model = Line(lambda x: (x - 0.5).square() + 1)
    attack = built("attack", "apgd_ce", "attack.loss=margin", "attack.steps=10")
    x_adv = attack(model, torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), Budget("linf", 0.2), streams(1))
    assert model.seen[:5] == pytest.approx([0.7, 0.3, 0.5, 0.55, 0.5], abs=1e-6)
    assert x_adv.item() == pytest.approx(0.5, abs=1e-6)


def test_the_step_is_halved_by_either_condition() -> None:
    """Condition 1: fewer rises than asked for. Condition 2: nothing changed since the last checkpoint, although there were enough rises."""
    x = torch.zeros(4, 1, 1, 1)
    state = apgd._State.at(x, torch.arange(4), x, torch.zeros(4, dtype=torch.int64), torch.zeros(4), 0.4)
    state.best, state.best_gradient, state.best_loss = x + 1, x + 2, torch.ones(4)
    state.rises = torch.tensor([3.0, 2.0, 3.0, 3.0])
    state.last_best_loss = torch.tensor([0.0, 0.0, 1.0, 1.0])
    state.halved = torch.tensor([False, False, False, True])
    state.check(3.0)
    halved = torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(state.step_size, 0.4 - 0.2 * halved)
    assert torch.equal(state.x_adv.flatten(), halved)
    assert torch.equal(state.gradient.flatten(), 2 * halved)
    assert not state.rises.any()
    assert torch.equal(state.halved, halved.bool())
    state.rises = torch.full((4,), 3.0)
    state.check(3.0)
    assert state.halved.tolist() == [True, False, False, True]  # no new best loss: who was not halved before is now


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ["apgd_ce", "apgd_dlr", "apgd_t"])
@pytest.mark.parametrize("classes", [2, 3])
def test_breaks_exactly_the_images_whose_margin_allows_it(name: str, norm: str, classes: int, built: Callable[..., Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    w = torch.randn(classes, 9, generator=generator)
    x = 0.4 + 0.2 * torch.rand(40, 1, 3, 3, generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, classes)).requires_grad_(False).eval()
    model[1].weight.copy_(w)
    model[1].bias.copy_(-0.5 * w.sum(1))
    logits = model(x)
    y = logits.argmax(1)
    difference = w[None] - w[y][:, None]
    dual = difference.abs().sum(2) if norm == "linf" else difference.norm(dim=2)
    reach = ((logits.gather(1, y[:, None]) - logits) / dual.clamp(min=1e-9)).scatter(1, y[:, None], 9.0).amin(1)
    eps = float(reach.median())
    broken = model(built("attack", name)(model, x, y, Budget(norm, eps), streams(40))).argmax(1) != y
    clear = (reach - eps).abs() > (0.1 if (name, classes) == ("apgd_ce", 3) else 0.01) * eps  # the highest CE is not the largest margin
    assert torch.equal(broken[clear], (reach < eps)[clear])
    assert 10 < int(broken.sum()) < 30


class Quiet(logging.Logger):
    pass


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ["apgd_ce", "apgd_t"])
def test_the_authors_code_from_the_same_starts(
    name: str, norm: str, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Equal verdicts image by image but one; up to the first checkpoint both codes do the same arithmetic."""
    peer = pytest.importorskip("pyautoattack.autopgd_base", reason="the parity extra is not installed")
    x, y = images
    targets = 2 if name == "apgd_t" else None
    monkeypatch.setattr(apgd, "away", lambda x, radius, budget, rng: budget.project(x + _ramp(x, budget.norm, radius), x))
    names = {
        "rand": lambda shape: (_ramp(torch.empty(shape), "linf", 1.0) + 1) / 2,
        "randn": lambda shape: _ramp(torch.empty(shape), "l2", 1.0),
    }
    for drawn, draw in names.items():
        monkeypatch.setattr(peer.torch, drawn, draw)
    knobs = {"norm": {"linf": "Linf", "l2": "L2"}[norm], "eps": EPS[norm], "n_iter": 100, "n_restarts": 1, "seed": 0, "rho": 0.75}
    knobs |= {"device": "cpu", "logger": Quiet("quiet")}
    kind = peer.APGDAttack_targeted if targets else peer.APGDAttack
    attack = kind(digits_model, **knobs, **({"n_target_classes": targets} if targets else {"loss": "ce"}))
    theirs = digits_model(attack.perturb(x, y)).argmax(1) == y
    x_adv = built("attack", name, f"attack.targets={targets or 'null'}")(digits_model, x, y, Budget(norm, EPS[norm]), streams(len(x)))
    robust = digits_model(x_adv).argmax(1) == y
    assert 0.1 * N < robust.sum() < 0.9 * N
    assert (robust != theirs).sum() <= 1
    assert robust.sum() <= theirs.sum() + 1


def _ramp(x: Tensor, norm: str, radius: float) -> Tensor:
    """A fixed direction of length `radius`, the same for both codes."""
    u = torch.linspace(-1, 1, x[0].numel()).sin().mul(7).sin().view(1, *x.shape[1:])
    return (radius * u / (u.abs().max() if norm == "linf" else u.norm())).expand(x.shape).clone()


def test_images_that_fell_cost_no_more_passes(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """Survivors take all steps against all targets, the others stop; a model that does not decide gets every step."""
    x, y = (part[:8] for part in images)
    attack = built("attack", "apgd_t", "attack.targets=3", "attack.steps=10")
    counted = Counted(digits_model)
    robust = digits_model(attack(counted, x, y, Budget("l2", 0.5), streams(8))).argmax(1) == y
    assert 0 < robust.sum() < 8
    assert 8 + 33 * robust.sum() < counted.forward_images < 8 + 33 * 8
    undecided = Counted(digits_model)
    undecided.decides = False  # type: ignore[assignment]
    x_adv = attack(undecided, x, y, Budget("l2", 0.5), streams(8))
    assert undecided.forward_images == 8 + 33 * 8
    assert not ((digits_model(x_adv).argmax(1) == y) & ~robust).any()


def test_of_the_searches_of_an_image_a_misclassified_point_comes_first() -> None:
    x = torch.zeros(2, 1, 1, 1)
    answer = apgd._Answer(x)
    points, right = torch.arange(1.0, 5.0).view(4, 1, 1, 1), torch.zeros(4, dtype=torch.bool)
    answer.offer(torch.tensor([0, 0, 1, 1]), points, torch.tensor([1.0, 5.0, 3.0, 2.0]), right, 2)
    assert answer.x.flatten().tolist() == [2, 3]
    answer.offer(torch.tensor([1, 1]), points[:2], torch.tensor([-1.0, 9.0]), torch.tensor([True, False]), 2)
    assert answer.x.flatten().tolist() == [2, 1]
    answer.offer(torch.tensor([1, 1]), points[2:], torch.tensor([8.0, 9.0]), right[:2], 2)
    assert answer.x.flatten().tolist() == [2, 1]


@pytest.mark.parametrize("norm", BALLS)
def test_restarts_start_elsewhere_and_on_the_ball(norm: str, images: tuple[Tensor, Tensor]) -> None:
    x = torch.full((3, 1, 8, 8), 0.5)
    budget = Budget(norm, 0.2)
    starts = [apgd.away(x, 0.2, budget, streams(3).fold("restart", restart)) for restart in range(2)]
    assert not torch.equal(*starts)
    for start in starts:
        torch.testing.assert_close(budget.distance(start, x), torch.full((3,), 0.2).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attack.steps=0", "steps"),
        ("attack.restarts=0", "restarts"),
        ("attack.rho=0", "rho"),
        ("attack.rho=1.5", "rho"),
        ("attack.targets=0", "targets"),
        ("attack.targets=9", "loss"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "apgd_ce", override)
