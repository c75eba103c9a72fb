"""DDN and FMN: distances of linear classifiers, their radii by hand, and Foolbox image by image."""

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

SEARCHES = [("ddn", "l2"), ("fmn", "l2"), ("fmn", "linf")]
N = 24


class Linear(nn.Module):
    """Logits W x + b; W [K, D]. Keeps the images that it was asked about."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = w, b
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return x.flatten(1) @ self.w.T + self.b


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


def linear(classes: int, low: float = 0.4, high: float = 0.6) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier of 1x3x3 images whose boundaries cross the middle of the box. The weights of any two classes differ by the same
    length, so that the likeliest other class is also the nearest; a third one lies clearly behind it."""
    generator = torch.Generator().manual_seed(classes)
    w = 20 * (torch.arange(9) % classes == torch.arange(classes)[:, None]) * torch.randn(9, generator=generator).sign()
    x = low + (high - low) * torch.rand(400, 1, 3, 3, generator=generator)
    model = Linear(w, -0.5 * w.sum(1))
    ranked = model(x).sort(dim=1, descending=True).values
    x = x[ranked[:, 0] - ranked[:, -1] > (1.3 * (ranked[:, 0] - ranked[:, 1]) + 1 if classes > 2 else 0)][:30]
    return model, x, model(x).argmax(1)


def distances(model: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """To the nearest boundary, where no box is in the way: the least of the differences of logits over their dual norms, [B]."""
    logits, w = model(x).double(), model.w.double()
    gap = logits.gather(1, y[:, None]) - logits
    size = (w[y][:, None] - w[None]).norm(p=2 if norm == "l2" else 1, dim=2)
    return (gap / size).scatter(1, y[:, None], math.inf).amin(1)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_reaches_the_nearest_boundary_of_a_linear_classifier(name: str, norm: str, classes: int, built: Callable[..., Any]) -> None:
    model, x, y = linear(classes)
    budget, nearest = Budget(norm, math.inf), distances(model, x, y, norm)
    x_adv = built("attack", name, "attack.steps=400", "attack.gamma=0.02")(model, x, y, budget, streams(30))
    length = budget.distance(x_adv, x)
    assert (model(x_adv).argmax(1) != y).all()
    assert (length >= nearest - 1e-6).all()
    assert (length <= (1.025 if name == "ddn" else 1.01) * nearest + 1e-4).all()  # DDN's radius moves by gamma to the end


@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_reaches_the_nearest_point_of_the_box(name: str, norm: str, built: Callable[..., Any]) -> None:
    """Images of zeros and ones, where every other pixel cannot move the way it should; the optimum is found by bisection along
    clamp(x + t * direction)."""
    model, x, _ = linear(2, low=0.0, high=1.0)
    x = x.round()
    y = model(x).argmax(1)
    w = (model.w[1] - model.w[0]).view(1, 1, 3, 3) * (1 - 2 * y).view(-1, 1, 1, 1)
    direction = w if norm == "l2" else w.sign()
    low, high = torch.zeros(30), torch.full((30,), 100.0)
    for _ in range(60):
        middle = (low + high) / 2
        crossed = model((x + middle.view(-1, 1, 1, 1) * direction).clamp(0, 1)).argmax(1) != y
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    budget = Budget(norm, math.inf)
    nearest = budget.distance((x + high.view(-1, 1, 1, 1) * direction).clamp(0, 1), x)
    x_adv = built("attack", name, "attack.steps=400", "attack.gamma=0.02")(model, x, y, budget, streams(30))
    assert (model(x_adv).argmax(1) != y).all()
    length = budget.distance(x_adv, x)
    assert (length <= 1.03 * nearest + 1e-4).all()
    assert (length >= nearest - 1e-4).all()


def test_ddn_by_hand(built: Callable[..., Any]) -> None:
    """Logits (0, x1 - .75) from (.5, .5) with a first radius of .2: the steps lead along x1; radii .2 * 1.05, then * 1.05, ..., until .25
    is passed: .21, .2205, .231525, .243101, .255256; then .95 of it: .242493, which is right again, and .254618, the nearest so far."""
    model = Linear(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0.0, -0.75]))
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    x_adv = built("attack", "ddn", "attack.steps=8", "attack.initial_norm=0.2")(model, x, y, Budget("l2", math.inf), streams(1))
    radii = [0.0, 0.21, 0.2205, 0.231525, 0.24310125, 0.2552563, 0.2424935, 0.2546182]
    assert [images[0, 0, 0, 0].item() - 0.5 for images in model.asked] == pytest.approx(radii, abs=1e-6)
    assert (x_adv - x).flatten().tolist() == pytest.approx([0.2546182, 0.0], abs=1e-6)


def test_ddn_steps_by_hand(built: Callable[..., Any]) -> None:
    """Step sizes 1, then .01 + .99 (1 + cos(pi / 2)) / 2 = .505: from the first point (.21, 0) the slope points to (0, 1), so the second
    lies at (.21, .505) put onto the radius .2205."""

    class Turning(nn.Module):
        asked: list[Tensor] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.asked.append(x.detach().clone())
            pixel = len(self.asked) - 1
            score = x.flatten(1)[:, pixel % 2]
            return torch.stack([torch.zeros_like(score), score - 0.9], dim=1)

    model, x, y = Turning(), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    built("attack", "ddn", "attack.steps=2", "attack.initial_norm=0.2")(model, x, y, Budget("l2", math.inf), streams(1))
    assert (model.asked[1] - x).flatten().tolist() == pytest.approx([0.21, 0.0], abs=1e-6)
    model.asked.clear()
    built("attack", "ddn", "attack.steps=3", "attack.initial_norm=0.2")(model, x, y, Budget("l2", math.inf), streams(1))
    length = 0.01 + 0.99 * (1 + math.cos(math.pi / 3)) / 2
    scale = 0.2205 / math.hypot(0.21, length)
    assert (model.asked[2] - x).flatten().tolist() == pytest.approx([0.21 * scale, length * scale], abs=1e-6)


def test_ddn_rounds_to_levels(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    x, y = images
    for levels in (16, 255):
        grid, attack = (x * levels).round() / levels, built("attack", "ddn", "attack.steps=30", f"attack.levels={levels}")
        x_adv = attack(digits_model, grid, y, Budget("l2", math.inf), streams(N))
        torch.testing.assert_close(x_adv * levels, (x_adv * levels).round(), atol=1e-4, rtol=0)
        assert (digits_model(x_adv).argmax(1) != y).float().mean() > 0.9


def test_ddn_where_the_loss_is_flat_goes_somewhere(built: Callable[..., Any]) -> None:
    """A model so sure that the slope of its cross-entropy is 0 in float32: an image's own random numbers give the first direction."""
    model = Linear(torch.tensor([[0.0] * 4, [400.0] * 4]), torch.tensor([0.0, -1000.0]))
    x, y = torch.full((6, 1, 2, 2), 0.5), torch.zeros(6, dtype=torch.int64)
    attack, budget = built("attack", "ddn"), Budget("l2", math.inf)
    x_adv = attack(model, x, y, budget, streams(6))
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.8
    assert not torch.equal(model.asked[1][0], model.asked[1][1])
    assert torch.equal(attack(model, x[3:4], y[3:4], budget, streams(6)[torch.tensor([3])]), x_adv[3:4])


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_fmn_by_hand(norm: str, built: Callable[..., Any]) -> None:
    """Logits (0, 2 (x1 - .7)) from (.5, .5): the margin -.4 over the slope 2 gives the radius .2, where float32 says right or wrong by its
    last bit; a boundary that is .2 + a little away in truth is passed at the next radius, .2 (1 + gamma)."""

    class Bent(nn.Module):
        asked: list[Tensor] = []  # noqa: RUF012

        def forward(self, x: Tensor) -> Tensor:
            self.asked.append(x.detach().clone())
            score = x.flatten(1)[:, 0] - 0.7
            score = torch.where(score < -0.001, 2 * score, 2 * (score - 0.004))  # it jumps back by .008 shortly before the boundary
            return torch.stack([torch.zeros_like(score), score], dim=1)

    model, x, y, steps = Bent(), torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]), 4
    built("attack", "fmn", f"attack.steps={steps}")(model, x, y, Budget(norm, math.inf), streams(1))
    gamma = [0.001 + 0.049 * (1 + math.cos(math.pi * k / steps)) / 2 for k in range(steps)]
    second = 0.2 * (1 + gamma[1])  # more than the estimate, .2 + .008 / 2 = .204
    radii = [0.0, 0.2, second, second * (1 - gamma[2])]
    assert [images[0, 0, 0, 0].item() - 0.5 for images in model.asked] == pytest.approx(radii, abs=1e-6)


@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_passes_and_who_leaves(name: str, norm: str, built: Callable[..., Any]) -> None:
    """A free search takes all its steps, but not for images that are misclassified as they are; in a ball, images leave once broken."""
    model, x, y = linear(3)
    attack = built("attack", name, "attack.steps=50", *(["attack.initial_norm=0.1"] if name == "ddn" else []))
    nearest = distances(model, x, y, norm)
    y = torch.where(torch.arange(30) < 10, (y + 1) % 3, y)
    counted = Counted(model)
    x_adv = attack(counted, x, y, Budget(norm, math.inf), streams(30))
    assert torch.equal(x_adv[:10], x[:10])
    assert counted.forward_images == 10 + 20 * 50
    ball = Budget(norm, float(nearest[10:].median()) * 1.001)
    counted, transfer = Counted(model), Counted(model, decides=False)
    x_adv = attack(counted, x, y, ball, streams(30))
    assert ball.contains(x_adv, x)
    broken, clear = model(x_adv).argmax(1) != y, (nearest - ball.eps).abs() > 0.1 * ball.eps
    assert torch.equal((broken & clear)[10:], ((nearest < ball.eps) & clear)[10:])
    assert counted.forward_images <= 10 + 20 * 50 - int(broken[10:].sum())  # who is broken leaves before the last pass at the latest
    attack(transfer, x, y, ball, streams(30))
    assert transfer.forward_images == 10 + 20 * 50


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("ddn", "attack.steps=0", "steps"),
        ("ddn", "attack.gamma=1", "gamma"),
        ("ddn", "attack.initial_norm=0", "initial_norm"),
        ("ddn", "attack.levels=0", "levels"),
        ("ddn", "attack.eot_samples=0", "eot_samples"),
        ("fmn", "attack.steps=1.5", "steps"),
        ("fmn", "attack.loss=ce", "loss"),
        ("fmn", "attack.max_step_size=0", "max_step_size"),
        ("fmn", "attack.min_step_size=2", "min_step_size"),
        ("fmn", "attack.gamma=0", "gamma"),
    ],
)
def test_a_wrong_knob_fails_when_built(name: str, override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", name, override)


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    return x, y


@pytest.mark.parametrize(("name", "norm"), SEARCHES)
def test_foolbox(name: str, norm: str, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """DDN and FMN in linf take the same path; Foolbox's FMN in l2 does not project onto its ball, and ends further away."""
    foolbox = pytest.importorskip("foolbox", reason="the parity extra is not installed")
    x, y = images
    attack = {
        ("ddn", "l2"): foolbox.attacks.DDNAttack,
        ("fmn", "l2"): foolbox.attacks.L2FMNAttack,
        ("fmn", "linf"): foolbox.attacks.LInfFMNAttack,
    }[name, norm](steps=40)
    _, theirs, broken = attack(foolbox.PyTorchModel(digits_model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    budget = Budget(norm, math.inf)
    x_adv = built("attack", name, "attack.steps=40")(digits_model, x, y, budget, streams(N))
    assert torch.equal(digits_model(x_adv).argmax(1) != y, broken)
    assert broken.all()
    length, theirs_length = budget.distance(x_adv, x), budget.distance(theirs, x)
    if (name, norm) == ("fmn", "l2"):
        assert (length < theirs_length + 1e-6).all()
    else:
        assert length.mean() <= 1.005 * theirs_length.mean()
        assert ((length - theirs_length).abs() <= 0.01 * theirs_length + 1e-6).float().mean() > 0.8
