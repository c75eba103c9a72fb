"""JSMA: saliencies by hand, the pair search against all pairs, balls, and ART."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.jsma import best_pair, best_single
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

L0 = Budget("l0", math.inf)
N = 40


class Linear(nn.Module):
    """Logits scale * (w (x - .5) + b), w [K, F]."""

    def __init__(self, w: Tensor, b: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.w, self.b, self.scale = w, b, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * ((x.flatten(1) - 0.5) @ self.w.T + self.b)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 0)


def half(pixels: int, n: int = 1) -> tuple[Tensor, Tensor]:
    return torch.full((n, 1, 1, pixels), 0.5), torch.zeros(n, dtype=torch.int64)


def all_pairs(rise: list[float], fall: list[float]) -> float:
    """The largest saliency of a pair, by trying them all; 0 if none has both sums above zero."""
    sums = [(rise[p] + rise[q], fall[p] + fall[q]) for q in range(len(rise)) for p in range(q)]
    return max((r * f for r, f in sums if r > 0 and f > 0), default=0.0)


@pytest.mark.parametrize("kind", ["free", "agreeing", "opposed", "coarse", "negative"])
@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_the_best_pair_is_the_best_of_all(count: int, kind: str) -> None:
    """Also where rise and fall oppose each other (every candidate counts), with ties, and with features that may not move."""
    generator = torch.Generator().manual_seed(count)
    rise, fall = torch.randn(2, 60, count, generator=generator).double()
    if kind == "agreeing":
        fall = rise + 0.1 * fall
    elif kind == "opposed":
        fall = 0.3 - rise
    elif kind == "coarse":
        rise, fall = rise.round(), fall.round()
    elif kind == "negative":
        rise, fall = -rise.abs() + 0.5, fall.abs() - 0.2
    barred = torch.rand(60, count, generator=generator) < torch.linspace(0, 1.1, 60)[:, None]
    rise, fall = rise.masked_fill(barred, -math.inf), fall.masked_fill(barred, -math.inf)
    pair, found = best_pair(rise, fall)
    for r, f, chosen, any_found in zip(rise.tolist(), fall.tolist(), pair.tolist(), found.tolist(), strict=True):
        best = all_pairs(r, f)
        assert any_found == (best > 0)
        if any_found:
            p, q = chosen
            assert p != q
            assert (r[p] + r[q]) * (f[p] + f[q]) == pytest.approx(best, rel=1e-12)


def test_the_pair_search_goes_through_memory_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    rise = torch.randn(9, 30, generator=generator)
    whole = best_pair(rise, 0.3 - rise)
    monkeypatch.setattr("robustbench_lab.attacks.jsma.MOST_PAIRS", 100)
    parts = best_pair(rise, 0.3 - rise)
    assert torch.equal(whole[0], parts[0])
    assert torch.equal(whole[1], parts[1])


def test_one_feature_by_hand() -> None:
    """Saliencies rise * fall where both are above zero: 2, none (-1), none (both below), 3; where there is none, none is found."""
    index, found = best_single(torch.tensor([[1.0, 1, -3, 3], [1, -1, 0, 0]]), torch.tensor([[2.0, -1, -3, 1], [-1, 1, 0, 5]]))
    assert index[0].item() == 3
    assert found.tolist() == [True, False]


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_equation_8_by_hand(scale: float, pairs: bool, built: Callable[..., Any]) -> None:
    """Target 1 of three classes, rows (0, 0, 0), (3, 2, 1, -9), (-1, -2, 0, 5): rise = (3, 2, 1, -9), fall = (1, 2, 0, -5).

    One feature: saliencies 3, 4, 0, -: the second, which ends at class 1. Pairs: 5 * 3, 4 * 1, 3 * 2: the first and second.
    However small the slopes are.
    """
    w = torch.tensor([[0.0, 0, 0, 0], [3, 2, 1, -9], [-1, -2, 0, 5]])
    model, (x, y) = Linear(w, torch.tensor([0.4, 0.0, 0.3]), scale), half(4)
    attack = built("attack", "jsma", "attack.targets=least_likely", f"attack.pairs={pairs}")
    x_adv = attack(model, x, y, L0, streams(1))
    assert x_adv.flatten().tolist() == ([1, 1, 0.5, 0.5] if pairs else [0.5, 1, 0.5, 0.5])
    assert model(x_adv).argmax(1).item() == 1


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_a_linear_model_is_left_by_its_steepest_features(direction: str, built: Callable[..., Any]) -> None:
    """Two classes, +-w: the saliency is w^2, so features go in the order of |w|, as far as their direction allows."""
    w = torch.tensor([0.5, -2.0, 1.0, 3.0, -0.1, -1.5])
    model, (x, y) = Linear(torch.stack([-w, w]), torch.tensor([1.6, 0.0])), half(6)
    allowed = {"up": w > 0, "down": w < 0, "both": w != 0}[direction]
    expected, left = x.flatten().clone(), 1.6
    for i in w.abs().argsort(descending=True).tolist():
        if allowed[i] and left > 0:
            expected[i] += 0.5 * w[i].sign()
            left -= 2 * 0.5 * w[i].abs().item()
    assert left <= 0
    x_adv = built("attack", "jsma_untargeted", f"attack.direction={direction}")(model, x, y, L0, streams(1))
    torch.testing.assert_close(x_adv.flatten(), expected)
    assert model(x_adv).argmax(1).item() == 1


def test_a_feature_goes_once_or_until_its_end(built: Callable[..., Any]) -> None:
    """w = (2, 1), theta .2 from .5, 1.5 to go: once, (.7, .7) is .6 on the way and all there is; else (1, .9) after 3 + 2 steps."""
    w = torch.tensor([2.0, 1.0])
    model, (x, y) = Linear(torch.stack([-w, w]), torch.tensor([2.75, 0.0])), half(2)
    knobs = ("attack.theta=0.2", "attack.direction=up")
    once, on = (
        built("attack", "jsma_untargeted", *knobs, f"attack.revisit={again}")(model, x, y, L0, streams(1)) for again in (False, True)
    )
    assert once.flatten().tolist() == pytest.approx([0.7, 0.7])
    assert on.flatten().tolist() == pytest.approx([1.0, 0.9])
    linf = built("attack", "jsma_untargeted", *knobs, "attack.revisit=true")(model, x, y, Budget("linf", 0.3), streams(1))
    assert linf.flatten().tolist() == pytest.approx([0.8, 0.8])


def test_no_way_back(built: Callable[..., Any]) -> None:
    """A model that wants the pixel at .75 but never gives in: with steps of .5 down and up, a search that turned round would never end."""

    class Valley(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            value = -((x.flatten(1) - 0.75) ** 2).sum(1)
            return torch.stack([-value + 5, value], dim=1)

    x, y = half(1)
    x_adv = built("attack", "jsma_untargeted", "attack.revisit=true", "attack.theta=0.4")(Valley(), x, y, L0, streams(1))
    assert x_adv.item() == pytest.approx(0.9)


@pytest.mark.parametrize("pairs", [False, True])
def test_gamma_and_l0_bound_what_moves(pairs: bool, built: Callable[..., Any]) -> None:
    """Ten equal features, all of them needed: as many move as the bound has steps for. A pixel of two channels counts once in l0."""
    model = Linear(torch.stack([-torch.ones(10), torch.ones(10)]), torch.tensor([9.9, 0.0]))
    x, y = half(10)
    knobs = ("attack.direction=up", f"attack.pairs={pairs}")
    for gamma, moved in {0.35: 2 if pairs else 3, 0.4: 4, 0.05: 0, 1: 10}.items():
        x_adv = built("attack", "jsma_untargeted", *knobs, f"attack.gamma={gamma}")(model, x, y, L0, streams(1))
        assert (x_adv != x).sum() == moved
    attack = built("attack", "jsma_untargeted", *knobs)
    for eps, moved in {3: 2 if pairs else 3, 4: 4, 0: 0, 12: 10}.items():
        assert (attack(model, x, y, Budget("l0", eps), streams(1)) != x).sum() == moved
    two_channels = x.view(1, 2, 1, 5)
    x_adv = attack(model, two_channels, y, Budget("l0", 2), streams(1))
    assert (x_adv != two_channels).sum() in ((2, 4) if pairs else (4,))
    assert Budget("l0", 2).distance(x_adv, two_channels) <= 2


def test_in_l2_an_image_is_given_up_once_outside(built: Callable[..., Any]) -> None:
    """Each step is .5 long; three are needed (length .87). In a ball of .6 the second step leaves it and is drawn back."""
    model, (x, y) = Linear(torch.stack([-torch.ones(4), torch.ones(4)]), torch.tensor([2.9, 0.0])), half(4)
    attack = built("attack", "jsma_untargeted", "attack.direction=up")
    assert (attack(model, x, y, Budget("l2", 1.0), streams(1)) != x).sum() == 3
    inside = attack(model, x, y, Budget("l2", 0.6), streams(1))
    assert (inside != x).sum() == 2
    assert Budget("l2", 0.6).distance(inside, x).item() == pytest.approx(0.6)


def test_targets(built: Callable[..., Any]) -> None:
    """Four classes, one per pixel, the true one first: each image ends in its target, random ones in all."""
    model, (x, y) = Linear(4 * torch.eye(4) - 1, torch.tensor([0.3, 0.2, 0.1, 0.0])), half(4, 40)
    ends = {}
    for targets in ("rival", "least_likely", "random"):
        knobs = (f"attack.targets={targets}", "attack.pairs=false", "attack.direction=both")
        ends[targets] = model(built("attack", "jsma", *knobs)(model, x, y, L0, streams(40))).argmax(1)
    assert ends["rival"].unique().tolist() == [1]
    assert ends["least_likely"].unique().tolist() == [3]
    assert ends["random"].unique().tolist() == [1, 2, 3]
    two = Linear(2 * torch.eye(2) - 1, torch.tensor([0.1, 0.0]))
    for targets in ("rival", "least_likely", "random", "none"):
        x2, y2 = half(2, 3)
        attack = built("attack", "jsma", f"attack.targets={targets}", "attack.pairs=false", "attack.direction=both")
        assert (two(attack(two, x2, y2, L0, streams(3))).argmax(1) == 1).all()


@pytest.mark.parametrize("theta", [1.0, 0.2])
def test_art(theta: float, digits_model: Defended, digits: tuple[ImageSet, ImageSet], built: Callable[..., Any]) -> None:
    """The same targets. ART looks at the target's slope alone, and lets features move on to the end of their range."""
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    predicted = digits_model(x).argmax(1)
    x, y = x[predicted == y], y[predicted == y]
    target = digits_model(x).scatter(1, y[:, None], -math.inf).argmax(1)
    estimator = classification.PyTorchClassifier(
        digits_model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.SaliencyMapMethod(estimator, theta=theta, gamma=1.0, batch_size=N, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy(), np.eye(10)[target.numpy()]))
    digits_model.eval()
    knobs = ("attack.targets=rival", "attack.revisit=true", f"attack.theta={theta}")
    x_adv = built("attack", "jsma", *knobs)(digits_model, x, y, L0, streams(len(x)))
    hit, theirs_hit = (digits_model(images).argmax(1) == target for images in (x_adv, theirs))
    assert hit.sum() >= theirs_hit.sum() - 1
    assert hit.float().mean() > 0.9
    both = hit & theirs_hit
    assert L0.distance(x_adv, x)[both].mean() <= 1.25 * L0.distance(theirs, x)[both].mean()  # of 6 to 10 pixels, by the network


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attack.theta=0", "theta"),
        ("attack.theta=-1", "theta"),
        ("attack.theta=2", "theta"),
        ("attack.direction=left", "direction"),
        ("attack.revisit=1", "revisit"),
        ("attack.gamma=0", "gamma"),
        ("attack.gamma=1.5", "gamma"),
        ("attack.pairs=2", "pairs"),
        ("attack.targets=7", "targets"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "jsma", override)
