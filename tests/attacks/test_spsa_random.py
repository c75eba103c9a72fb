"""SPSA and random sampling: known answers, and the paper's estimate by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import margin
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


class Linear(nn.Module):
    """Logits [0, w x + b], and -9 for a third class; it remembers its questions."""

    def __init__(self, w: Tensor, b: float) -> None:
        super().__init__()
        self.w, self.b = w, b
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.clone())
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score, torch.full_like(score, -9.0)], dim=1)


class Above(nn.Module):
    """Class 1 where the first pixel is above a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x.flatten(1)[:, 0] > self.threshold).long(), 2).float()


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


@pytest.fixture
def linear() -> tuple[Linear, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(9, generator=generator)
    x = 0.4 + 0.2 * torch.rand(60, 1, 3, 3, generator=generator)
    model = Linear(w, -0.5 * float(w.sum()))
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_spsa_breaks_exactly_the_images_whose_margin_allows_it(
    norm: str, linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]
) -> None:
    model, x, y = linear
    dual = float(model.w.abs().sum() if norm == "linf" else model.w.norm())
    reach = (model(x)[:, 1] - model(x)[:, 0]).abs().double() / dual
    eps = float(reach.median())
    x_adv = built("attack", "spsa", "attack.steps=60")(model, x, y, Budget(norm, eps), streams(60))
    broken = model(x_adv).argmax(1) != y
    # Adam's steps have nearly the same length in each pixel: in l2 they end further from the best point than along the gradient.
    short = 0.02 if norm == "linf" else 0.15
    assert broken[reach < eps * (1 - short)].all()
    assert not broken[reach > eps].any()
    assert 20 < int(broken.sum()) < 40
    assert Budget(norm, eps).contains(x_adv, x)


@pytest.mark.parametrize("samples", [1, 3, 64, 70])
def test_the_estimate_by_hand(samples: int, linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]) -> None:
    """Of a linear function: the mean of v (w v), whatever delta; in chunks of any size."""
    model, x, y = linear
    attack = built("attack", "spsa", f"attack.samples={samples}", "attack.delta=0.02")
    model.asked.clear()
    estimate = attack.estimate(model, x[:5], y[:5], streams(5), 10**6)
    v = torch.cat([(asked.view(2, 5, -1, 9)[0] - x[:5].view(5, 1, 9)) / 0.02 for asked in model.asked], dim=1)
    assert v.shape == (5, samples, 9)
    torch.testing.assert_close(v.abs(), torch.ones_like(v), atol=1e-4, rtol=0)
    minus = torch.cat([(asked.view(2, 5, -1, 9)[1] - x[:5].view(5, 1, 9)) / 0.02 for asked in model.asked], dim=1)
    torch.testing.assert_close(minus, -v, atol=1e-4, rtol=0)
    if samples > 1:
        assert len(v.round().flatten(0, 1).unique(dim=0)) > min(4, samples)
        assert v.mean().abs() < 4 / math.sqrt(v.numel())
    if samples > 64:  # a second word of random bits
        assert not torch.equal(v[:, 64:].round(), v[:, : samples - 64].round())
    sign = 1.0 - 2.0 * y[:5, None]  # the margin of label 0 rises with the score
    slopes = (v * (v @ model.w)[:, :, None]).mean(1) * sign
    torch.testing.assert_close(estimate.view(5, 9), slopes, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(attack.estimate(model, x[:5], y[:5], streams(5), 30), estimate, atol=1e-4, rtol=1e-4)


def test_the_first_step_of_adam_by_hand(built: Callable[..., Any]) -> None:
    """It has the length of the step size in each pixel, whatever the slope: .02 up; the second one, with equal slopes, too."""
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    model = Linear(torch.tensor([0.01]), -9.0)
    for steps, pixel in {1: 0.52, 2: 0.54, 10: 0.55}.items():
        attack = built("attack", "spsa", f"attack.steps={steps}", "attack.samples=2", "attack.step_size=0.02")
        assert attack(model, x, y, Budget("linf", 0.05), streams(1)).item() == pytest.approx(pixel, abs=2e-5)


def test_spsa_asks_about_images_only_and_in_bounded_batches(built: Callable[..., Any]) -> None:
    model, x = Linear(torch.randn(9), -20.0), torch.randint(0, 2, (3, 1, 3, 3)).float()
    built("attack", "spsa", "attack.steps=2", "attack.samples=300")(model, x, torch.zeros(3).long(), Budget("linf", 0.1), streams(3))
    assert all(asked.min() >= 0 and asked.max() <= 1 for asked in model.asked)
    assert max(len(asked) for asked in model.asked) <= 256
    assert sum(len(asked) for asked in model.asked) == 2 * 3 * 2 * 300


def test_spsa_leaves_broken_images_if_the_model_decides(linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]) -> None:
    model, x, y = linear
    attack, counts = built("attack", "spsa", "attack.steps=30", "attack.samples=8"), []
    for decides in (True, False):
        counted = Counted(model)
        counted.decides = decides  # type: ignore[assignment]
        x_adv = attack(counted, x, y, Budget("linf", 0.2), streams(60))
        counts.append(counted.forward_images)
        assert (margin(model(x_adv), y) > 0).all()
    assert counts[1] == 30 * 16 * 60
    assert counts[0] < counts[1] / 2


@pytest.mark.parametrize(("draws", "chance"), [(1, 0.1), (10, 1 - 0.9**10)])
def test_random_sampling_hits_as_often_as_it_should(draws: int, chance: float, built: Callable[..., Any]) -> None:
    """A pixel uniform on [.4, .6], and a threshold that a tenth of it lies above."""
    n = 4000
    x, y = torch.full((n, 1, 1, 2), 0.5), torch.zeros(n, dtype=torch.int64)
    attack, model = built("attack", "random_sampling", f"attack.draws={draws}"), Above(0.58)
    x_adv = attack(model, x, y, Budget("linf", 0.1), streams(n))
    assert model(x_adv).argmax(1).float().mean() == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / n))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.3), ("l2", 0.5), ("linf", math.inf)])
def test_random_sampling_returns_the_first_misclassified_draw(norm: str, eps: float, built: Callable[..., Any]) -> None:
    """Whatever else is in the batch; where there is none, the last draw."""
    model, budget, n, draws = Above(0.72), Budget(norm, eps), 30, 40
    x, y, rng = torch.full((n, 1, 1, 2), 0.5), torch.zeros(n, dtype=torch.int64), streams(n)
    attack = built("attack", "random_sampling", f"attack.draws={draws}")
    x_adv = attack(model, x, y, budget, rng)
    drawn = torch.stack([budget.random_start(x, rng.fold("draw").at(torch.full((n,), number))) for number in range(draws)])
    wrong = torch.stack([model(images).argmax(1) == 1 for images in drawn])
    first = [int(hits.nonzero()[0]) if hits.any() else draws - 1 for hits in wrong.T]
    assert len(set(first)) > 4
    assert torch.equal(x_adv, drawn[first, torch.arange(n)])
    assert torch.equal(attack(model, x[:1], y[:1], budget, rng[:1]), x_adv[:1])
    if norm == "linf" and eps < 1:
        wrong_label = attack(Above(2.0), x, y, budget, rng)
        assert torch.equal(wrong_label, drawn[-1])


def test_random_sampling_goes_on_with_unbroken_images_only(built: Callable[..., Any]) -> None:
    x, y = torch.full((300, 1, 1, 1), 0.5), torch.zeros(300, dtype=torch.int64)
    counted = Counted(Above(0.5))
    built("attack", "random_sampling")(counted, x, y, Budget("linf", 0.1), streams(300))
    assert counted.forward_images < 300 * 20
    counted = Counted(Above(2.0))
    built("attack", "random_sampling")(counted, x[:7], y[:7], Budget("linf", 0.1), streams(7))
    assert counted.forward_images == 7 * 1000


@pytest.mark.parametrize(
    ("name", "override"),
    [
        ("spsa", "steps=0"),
        ("spsa", "samples=0"),
        ("spsa", "delta=0"),
        ("spsa", "step_size=-1"),
        ("spsa", "loss=own"),
        ("random_sampling", "draws=0"),
    ],
)
def test_a_wrong_knob_fails_when_built(name: str, override: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{override.split('=')[0]}: expected .*, got "):
        built("attack", name, f"attack.{override}")
