"""Attacks on problems whose answer is known: linear classifiers, and models that are written to show one thing."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Plain
from robustbench_lab.attacks.gradients import kl_divergence, margin
from robustbench_lab.attacks.pgd import PGD, _Circles
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended, cross_entropy
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BALLS = ("linf", "l2")
CLIMBERS = ["fgsm", "pgd", "pgd100", "pgd_trades"]


class Linear(nn.Module):
    """Logits [0, w x + b]."""

    def __init__(self, w: Tensor, b: float = 0.0) -> None:
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w + self.b
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Flat(nn.Module):
    """Logits whose gradient is zero everywhere: an attack on it stays where it starts."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


@pytest.fixture
def linear() -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier of 1x3x3 images, far from the box's limits, with margins up to what an eps of 0.3 reaches."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(9, generator=generator)
    x = 0.4 + 0.2 * torch.rand(60, 1, 3, 3, generator=generator)
    model = Linear(w, -0.5 * float(w.sum()))
    return model, x, model(x).argmax(1)


def dual_norm(w: Tensor, norm: str) -> float:
    return float(w.abs().sum() if norm == "linf" else w.norm())


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", CLIMBERS)
def test_breaks_exactly_the_images_whose_margin_allows_it(
    name: str, norm: str, linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]
) -> None:
    """A step of length eps moves the score by eps times the dual norm of w, and nothing moves it further."""
    model, x, y = linear
    last = ("attack.keep=last",) if name.startswith("pgd") else ()
    attack = built("attack", name, *last)
    score = (model(x)[:, 1] - model(x)[:, 0]).abs().double()
    reach = score / dual_norm(model.w, norm)  # the smallest eps that breaks each image
    eps = float(reach.median())
    if name == "pgd_trades":
        attack = built("attack", name, f"attack.step_size={eps / 4}")
    x_adv = attack(model, x, y, Budget(norm, eps), streams(60))
    broken = model(x_adv).argmax(1) != y
    clear = (reach - eps).abs() > 0.05 * eps  # ten steps from a random start end a few per cent short in l2
    assert 20 < int(broken[clear].sum()) < int(clear.sum()) - 20
    assert torch.equal(broken[clear], (reach < eps)[clear])
    torch.testing.assert_close(Budget(norm, eps).distance(x_adv, x), torch.full((60,), eps).double(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("overrides", [("attack.random_start=none",), ("attack.restarts=3", "attack.keep=best")])
@pytest.mark.parametrize("norm", BALLS)
def test_pgd_reaches_the_worst_case(
    norm: str, overrides: tuple[str, ...], linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]
) -> None:
    model, x, y = linear
    x_adv = built("attack", "pgd", "attack.keep=last", *overrides)(model, x, y, Budget(norm, 0.1), streams(60))
    sign = 1.0 - 2.0 * y
    worst = nn.functional.softplus(sign * model(x)[:, 1] + 0.1 * dual_norm(model.w, norm))  # the loss is log(1 + exp(-margin))
    torch.testing.assert_close(cross_entropy(model(x_adv), y), worst, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", BALLS)
def test_fgsm_goes_to_the_nearest_point_of_the_boundary(
    norm: str, linear: tuple[Linear, Tensor, Tensor], built: Callable[..., Any]
) -> None:
    """By hand: w = (1, -2), x = (.5, .5); linf by .1: x + .1 (1, -1); l2 by .1: x + .1 (1, -2) / sqrt 5."""
    x = torch.full((1, 1, 1, 2), 0.5)
    x_adv = built("attack", "fgsm")(Linear(torch.tensor([1.0, -2.0])), x, torch.tensor([0]), Budget(norm, 0.1), streams(1))
    expected = [0.6, 0.4] if norm == "linf" else [0.5 + 0.1 / 5**0.5, 0.5 - 0.2 / 5**0.5]
    assert x_adv.flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("norm", BALLS)
def test_the_loss_that_is_climbed(norm: str, built: Callable[..., Any]) -> None:
    """Three classes with logits x1, x2, -9 x1 - 9 x2: the margin looks at the runner-up alone, `own` at the model's loss."""

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            flat = x.flatten(1)
            return torch.stack([flat[:, 0], flat[:, 1], -9 * flat.sum(1)], dim=1)

    model, x, y = Plain(Three()), torch.tensor([[[[0.6, 0.5]]]]), torch.tensor([0])
    model.own_loss = lambda logits, y: logits[:, 0]  # type: ignore[assignment]
    for loss, direction in {"margin": [-1.0, 1.0], "own": [1.0, 0.0]}.items():
        x_adv = built("attack", "fgsm", f"attack.loss={loss}")(model, x, y, Budget(norm, 0.01), streams(1))
        unit = torch.tensor(direction) / (2**0.5 if norm == "l2" and loss == "margin" else 1)
        torch.testing.assert_close((x_adv - x).flatten(), 0.01 * unit, atol=1e-6, rtol=0)


def test_losses_by_hand() -> None:
    logits, y = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, 4.0]]), torch.tensor([0, 2])
    assert margin(logits, y).tolist() == [2.0, -4.0]
    third = torch.full((1, 3), 1 / 3)
    uniform_target = kl_divergence(torch.log(torch.tensor([[0.5, 0.25, 0.25]])), third)
    # (ln(2/3) + 2 ln(4/3)) / 3 = ln(32/27) / 3
    assert uniform_target.item() == pytest.approx(0.0566330123, abs=1e-7)
    assert kl_divergence(torch.zeros(1, 3), third).item() == pytest.approx(0, abs=1e-7)


def test_predicted_labels_do_not_look_at_the_true_ones(built: Callable[..., Any]) -> None:
    """The model says 1 for x > .5; with the wrong label 0, raising the true label's loss raises x, the prediction's lowers it."""
    model, x = Linear(torch.tensor([1.0]), -0.5), torch.full((1, 1, 1, 1), 0.7)
    for labels, pixel in {"ground_truth": 0.8, "predicted": 0.6}.items():
        for name in ("fgsm", "pgd"):
            last = ("attack.keep=last",) if name == "pgd" else ()
            attack = built("attack", name, f"attack.labels={labels}", *last)
            x_adv = attack(model, x, torch.tensor([0]), Budget("linf", 0.1), streams(1))
            assert x_adv.item() == pytest.approx(pixel, abs=1e-6)


def test_eot_averages_the_gradients_of_several_passes(built: Callable[..., Any]) -> None:
    """Scripted weights (3, -1), (-1, -1), (-1, 5): the first pass says (+, -), their mean (1/3, 1) says (+, +)."""
    script = torch.tensor([[3.0, -1.0], [-1.0, -1.0], [-1.0, 5.0]])

    class Scripted(nn.Module):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            score = x.flatten(1) @ script[self.passes % 3]
            self.passes += 1
            return torch.stack([score, -score], dim=1)

    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([1])
    attack = built("attack", "fgsm", "attack.eot_samples=3", "attack.loss=margin")
    model = Scripted()
    assert attack(model, x, y, Budget("linf", 0.1), streams(1)).flatten().tolist() == pytest.approx([0.6, 0.6])
    assert model.passes == 3
    gradient, value, logits = attack.gradient(Scripted(), x, y, margin)
    assert gradient.flatten().tolist() == pytest.approx([2 / 3, 2.0])  # the margin is twice the score
    assert value.tolist() == pytest.approx([4 / 3])  # scores 1, -1, 2
    assert logits.flatten().tolist() == pytest.approx([2 / 3, -2 / 3])
    one = built("attack", "fgsm", "attack.loss=margin")
    assert one(Scripted(), x, y, Budget("linf", 0.1), streams(1)).flatten().tolist() == pytest.approx([0.6, 0.4])


@pytest.mark.parametrize("norm", BALLS)
def test_step_lengths(norm: str, built: Callable[..., Any]) -> None:
    x, y, budget = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), Budget(norm, 0.08)
    model = Linear(torch.tensor([1.0]))
    lengths = {
        ("attack.step_size=0.01", "attack.relative_step_size=null"): 0.01,
        ("attack.relative_step_size=0.25",): 0.02,
        ("attack.step_size=3/255", "attack.relative_step_size=null"): 3 / 255,
        ("attack.relative_step_size=5",): 0.08,  # longer than the ball
    }
    for overrides, length in lengths.items():
        attack = built("attack", "pgd", "attack.random_start=none", "attack.steps=1", "attack.keep=last", *overrides)
        assert attack(model, x, y, budget, streams(1)).item() == pytest.approx(0.5 + length, abs=1e-6)
    attack = built("attack", "pgd", "attack.random_start=none", "attack.steps=3", "attack.keep=last")
    assert attack(model, x, y, budget, streams(1)).item() == pytest.approx(0.56, abs=1e-6)


def test_random_starts(built: Callable[..., Any]) -> None:
    x, y = torch.full((4, 1, 40, 40), 0.5), torch.zeros(4, dtype=torch.int64)
    start = {
        kind: built("attack", "pgd", "attack.steps=1", f"attack.random_start={kind}", f"attack.start_scale={scale}")(
            Flat(), x, y, Budget("linf", 0.1), streams(4)
        ) - x
        for kind, scale in {"none": "null", "uniform": "null", "gaussian": 0.02}.items()
    }  # fmt: skip
    assert not start["none"].any()
    assert start["uniform"].abs().max() == pytest.approx(0.1, abs=1e-3)
    assert start["uniform"].std() == pytest.approx(0.1 / 3**0.5, rel=0.03)
    assert start["gaussian"].mean() == pytest.approx(0, abs=1e-3)
    assert start["gaussian"].std() == pytest.approx(0.02, rel=0.03)
    assert not torch.equal(start["uniform"][0], start["uniform"][1])
    wide = built("attack", "pgd", "attack.random_start=gaussian", "attack.start_scale=1")
    assert Budget("l2", 0.1).contains(wide(Flat(), x, y, Budget("l2", 0.1), streams(4)), x)


def test_random_fgsm_takes_its_random_step_from_the_budget(built: Callable[..., Any]) -> None:
    """alpha .05 up or down, then .1 - .05 up: .5 or .6; on a flat loss only the random step is left."""
    x, y, budget = torch.full((2, 1, 20, 20), 0.5), torch.ones(2, dtype=torch.int64), Budget("linf", 0.1)
    attack = built("attack", "random_fgsm", "attack.labels=ground_truth")
    x_adv = attack(Linear(-torch.ones(400)), x, y, budget, streams(2))
    assert (((x_adv - 0.5).abs() < 1e-6) | ((x_adv - 0.6).abs() < 1e-6)).all()
    assert (x_adv > 0.55).float().mean() == pytest.approx(0.5, abs=0.06)
    flat = attack(Flat(), x, y, budget, streams(2))
    torch.testing.assert_close((flat - x).abs(), torch.full_like(x, 0.05), atol=1e-6, rtol=0)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("start", ["none", "uniform"])
def test_more_search_is_never_worse(
    norm: str,
    start: str,
    tiny_net: Callable[..., Defended],
    edge_images: Callable[..., Tensor],
    built: Callable[..., Any],
) -> None:
    """Image by image, the best of more iterates or restarts beats the last iterate of one, for it is among them."""
    model, x, budget = tiny_net(3, 10, seed=3), edge_images(40, 3), Budget(norm, 1.0 if norm == "l2" else 0.15)
    y = model(x).argmax(1)
    knobs = [f"attack.random_start={start}", "attack.steps=4", "attack.relative_step_size=0.9", "attack.keep=last"]

    def score(*more: str) -> Tensor:
        """Loss, and far above any loss where the image is misclassified."""
        logits = model(built("attack", "pgd", *knobs, *more)(model, x, y, budget, streams(40)))
        return cross_entropy(logits, y).detach() + 1000 * (logits.argmax(1) != y)

    last = score()
    ladder = [last, score("attack.keep=best")]
    if start != "none":
        ladder += [score("attack.restarts=2", "attack.keep=best"), score("attack.restarts=5", "attack.keep=best")]
        assert (score("attack.restarts=3") >= last - 1e-4).all()
    for less, more in pairwise(ladder):
        assert (more >= less - 1e-4).all()
    assert (ladder[-1] > last + 1e-3).any()


def test_the_best_iterate_puts_a_misclassified_image_before_a_higher_loss() -> None:
    """One pixel, one step from .5 to .9: the loss is higher after the step, but only the start is misclassified."""

    class Bump(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pixel = x.flatten(1)[:, 0]
            zero = torch.zeros_like(pixel)
            third = torch.where(pixel < 0.7, pixel, pixel - 1)  # wins at .5; at .9 lies below 0
            return torch.stack([zero, zero - 1, third], dim=1)

    attack = PGD(
        loss=lambda logits, y: _pixel_of(logits),  # rises with the pixel, whatever the class
        labels="ground_truth", eot_samples=1, steps=1, step_size=0.4, relative_step_size=None, random_start="none", start_scale=None,
        restarts=1, keep="best",
    )  # fmt: skip
    x_adv = attack(Bump(), torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), Budget("linf", 0.4), streams(1))
    assert x_adv.item() == 0.5


def _pixel_of(logits: Tensor) -> Tensor:
    """Undo Bump: its third logit is the pixel, less 1 above .7."""
    return torch.where(logits[:, 2] < 0, logits[:, 2] + 1, logits[:, 2])


@pytest.mark.parametrize("label", [0, 1])
def test_a_gradient_that_is_not_a_number_is_not_hidden_by_keeping_the_best(label: int, built: Callable[..., Any]) -> None:
    """A root of zero has a finite value and no gradient; returning the start would look like robustness."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x.flatten(1) - x.flatten(1).detach()).square().sum(1).sqrt() + 1.0
            return torch.stack([score, -score] if label == 0 else [-score, score], dim=1)

    x, y = torch.full((1, 1, 2, 2), 0.5), torch.tensor([label])
    for keep in ("last", "best", "first"):
        attack = built("attack", "pgd", "attack.random_start=none", f"attack.keep={keep}")
        assert not attack(Root(), x, y, Budget("linf", 0.1), streams(1)).isfinite().all()


@pytest.mark.parametrize("norm", BALLS)
def test_leaving_at_the_first_misclassified_iterate_changes_no_verdict(
    norm: str, digits: tuple[ImageSet, ImageSet], exact_digits_model: Defended, built: Callable[..., Any]
) -> None:
    """The best of all iterates and the first broken one agree on what is broken; the second takes fewer passes."""
    x, y, ids = next(digits[1].batches(torch.arange(60), 60))
    budget, found, passes = Budget(norm, 0.1 if norm == "linf" else 0.5), {}, {}
    for keep in ("best", "first"):
        model = Counted(exact_digits_model)
        attack = built("attack", "pgd", f"attack.keep={keep}", "attack.restarts=2")
        found[keep] = exact_digits_model(attack(model, x.double(), y, budget, ImageRandom.of(ids, 0))).argmax(1) != y
        passes[keep] = model.forward_images + model.backward_images
    assert torch.equal(found["first"], found["best"])
    assert 10 < found["first"].sum() < 50
    assert passes["first"] < 0.7 * passes["best"]


def test_restarts_keep_what_an_earlier_one_broke_with_its_last_step(
    digits: tuple[ImageSet, ImageSet], exact_digits_model: Defended, built: Callable[..., Any]
) -> None:
    """Few steps, so that many images fall with the last one, which no gradient looks at any more."""
    x, y, ids = next(digits[1].batches(torch.arange(100), 100))
    budget, rng, model = Budget("linf", 0.08), ImageRandom.of(ids, 0), Counted(exact_digits_model)

    def broken_by(keep: str, restarts: int) -> Tensor:
        attack = built("attack", "pgd", "attack.steps=2", f"attack.restarts={restarts}", f"attack.keep={keep}")
        return exact_digits_model(attack(model, x.double(), y, budget, rng)).argmax(1) != y

    broken = {(keep, restarts): broken_by(keep, restarts) for keep in ("first", "best") for restarts in (1, 2, 4)}
    for restarts in (1, 2, 4):
        assert torch.equal(broken["first", restarts], broken["best", restarts])
    assert broken["first", 1].sum() < broken["first", 4].sum() < 100
    assert (broken["first", 4] | ~broken["first", 1]).all()


def test_no_image_leaves_where_the_model_does_not_decide(
    digits: tuple[ImageSet, ImageSet], digits_model: Defended, built: Callable[..., Any]
) -> None:
    """On a stand-in for another model, or on one lucky draw, an image must be attacked to the end."""
    x, y, ids = next(digits[1].batches(torch.arange(20), 20))
    budget, rng = Budget("linf", 0.1), ImageRandom.of(ids, 0)
    last = built("attack", "pgd", "attack.keep=last")(digits_model, x, y, budget, rng)
    first = built("attack", "pgd")
    assert torch.equal(first(Counted(digits_model, decides=False), x, y, budget, rng), last)
    assert torch.equal(first(digits_model, x, y, budget, rng), last)  # so in training: only an evaluation says that it decides
    assert not torch.equal(first(Counted(digits_model), x, y, budget, rng), last)


@pytest.mark.parametrize("norm", BALLS)
def test_a_search_that_goes_in_circles_ends_where_it_would_have_ended(
    norm: str, digits: tuple[ImageSet, ImageSet], exact_digits_model: Defended, built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    x, y, ids = next(digits[1].batches(torch.arange(40), 40))
    attack, found, passes = built("attack", "pgd", "attack.keep=last", "attack.steps=60"), [], []
    for never in (False, True):
        if never:
            monkeypatch.setattr("robustbench_lab.attacks.pgd._Circles.ended", lambda self, x_adv, number: torch.zeros(len(x_adv)) > 1)
        model = Counted(exact_digits_model)
        found.append(attack(model, x.double(), y, Budget(norm, 0.08 if norm == "linf" else 0.5), ImageRandom.of(ids, 0)))
        passes.append(model.forward_images)
    torch.testing.assert_close(found[0], found[1], atol=1e-6, rtol=0)
    assert passes[1] == 60 * 40
    if norm == "linf":
        assert passes[0] < 0.7 * passes[1]


def test_circles_by_hand() -> None:
    """0, then 1 2 3 1 2 3 ...: period 3, found at step 7, where the iterate of step 4 comes back. Twelve steps end at 3, as step 9 does."""
    circles, path = _Circles(12), [1, 2, 3] * 4
    ended = [bool(circles.ended(torch.full((1, 1), float(path[number - 1])), number)) for number in range(1, 10)]
    assert ended == [False] * 8 + [True]
    assert path[9 - 1] == path[12 - 1]


def test_a_random_model_has_no_circles(built: Callable[..., Any]) -> None:
    """Its iterate may come back and go elsewhere."""

    class Fickle(nn.Module):
        stochastic, decides, samples, calls = True, False, 1, 0
        own_loss = staticmethod(cross_entropy)

        def draw(self, x: Tensor) -> Tensor:
            return self(x)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            score = x.flatten(1).sum(1) * (1 if self.calls > 40 else -1 if self.calls % 2 else 1)
            return torch.stack([torch.zeros_like(score), score], dim=1)

    model = Fickle()
    x_adv = built("attack", "pgd", "attack.steps=50")(
        model, torch.full((1, 1, 1, 1), 0.5), torch.tensor([0]), Budget("linf", 0.1), streams(1)
    )
    assert model.calls == 50
    assert x_adv.item() == pytest.approx(0.6)
