"""MIM and diverse inputs: the momentum by hand and against ART; the resize and padding against torch's, image by image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steady import steady
from torch import Tensor, nn

from robustbench_lab.attacks.diverse_input import resize_and_pad
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BALLS = ("linf", "l2")
N, STEPS = 60, 6


class Scripted(nn.Module):
    """At each pass the score's slope is the next row of the script, whatever the image; raising class 0's loss raises the score."""

    def __init__(self, script: list[list[float]]) -> None:
        super().__init__()
        self.script, self.passes = torch.tensor(script, dtype=torch.float32), 0

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.script[self.passes]
        self.passes += 1
        return torch.stack([-score, score], dim=1)


class Recorder(nn.Module):
    """Keeps what it is given; the logits are means, so that it takes any size."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return torch.stack([x.flatten(1).mean(1), -x.square().flatten(1).mean(1)], dim=1)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 0)


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    return x, y


@pytest.mark.parametrize("norm", BALLS)
def test_momentum_by_hand(norm: str, built: Callable[..., Any]) -> None:
    """Slopes (3, 1), then (-10, -10), over their mean size (1.5, .5) and (-1, -1): velocities (1.5, .5) and (.5, -.5).

    Without the division the second would be (-7, -9); with decay .5, (-.25, -.75).
    """
    x, y, budget = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64), Budget(norm, 0.4)
    knobs = ("attack.loss=margin", "attack.keep=last", "attack.steps=2", "attack.relative_step_size=0.25")
    first = {"linf": torch.ones(2), "l2": torch.tensor([3.0, 1.0]) / 10**0.5}[norm]
    for decay, velocity in {1.0: [0.5, -0.5], 0.5: [-0.25, -0.75], 0.0: [-1.0, -1.0]}.items():
        second = torch.tensor(velocity)
        second = second.sign() if norm == "linf" else second / second.norm()
        x_adv = built("attack", "mim", *knobs, f"attack.decay={decay}")(Scripted([[3, 1], [-10, -10]]), x, y, budget, streams(1))
        torch.testing.assert_close(x_adv.flatten(), 0.5 + 0.1 * (first + second), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("script", "pixels"),
    [
        ([[3, -1], [0, 0]], [0.7, 0.3]),  # goes on by momentum
        ([[0, 0], [1e-30, -1e-30]], [0.6, 0.4]),  # no division by zero, and no slope too small
        ([[1, 1], [torch.nan, 1]], [torch.nan, torch.nan]),  # what is no number shows, and is not taken for a robust image
    ],
)
def test_gradients_of_zero_and_not_a_number(script: list[list[float]], pixels: list[float], built: Callable[..., Any]) -> None:
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.zeros(1, dtype=torch.int64)
    knobs = ("attack.loss=margin", "attack.keep=last", "attack.steps=2", "attack.relative_step_size=0.25")
    x_adv = built("attack", "mim", *knobs)(Scripted(script), x, y, Budget("linf", 0.4), streams(1))
    torch.testing.assert_close(x_adv.flatten(), torch.tensor(pixels), equal_nan=True)


@pytest.mark.parametrize("norm", BALLS)
def test_without_momentum_it_is_pgd(
    norm: str, exact_digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]
) -> None:
    x, y = images[0].double(), images[1]
    knobs, budget = ("attack.steps=4", "attack.relative_step_size=0.4"), Budget(norm, {"linf": 0.1, "l2": 0.8}[norm])
    mim = built("attack", "mim", *knobs, "attack.decay=0")(exact_digits_model, x, y, budget, streams(N))
    pgd = built("attack", "pgd", *knobs, "attack.random_start=none")(exact_digits_model, x, y, budget, streams(N))
    torch.testing.assert_close(mim, pgd, atol=1e-5, rtol=0)


def test_the_first_misclassified_iterate_for_fewer_passes(
    exact_digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]
) -> None:
    """An image leaves with its first misclassified iterate, which a search that ends there also returns."""
    x, y = images[0].double(), images[1]
    budget, counted = Budget("linf", 0.12), Counted(exact_digits_model)
    knobs = ("attack.step_size=0.03", "attack.relative_step_size=null")

    def search(steps: int, *more: str) -> Tensor:
        return built("attack", "mim", *knobs, f"attack.steps={steps}", *more)(counted, x, y, budget, streams(N))

    x_adv, passes = search(5), counted.forward_images
    ends = [search(steps, "attack.keep=last") for steps in range(1, 6)]
    expected, taken = ends[-1].clone(), torch.full((N,), 5)
    for number, end in reversed(list(enumerate([x, *ends[:-1]], start=1))):
        wrong = exact_digits_model(end).argmax(1) != y
        expected[wrong], taken[wrong] = end[wrong], number
    torch.testing.assert_close(x_adv, expected, atol=1e-5, rtol=0)
    assert passes == taken.sum()
    assert N < passes < 5 * N
    counted.decides = False  # type: ignore[assignment]
    assert torch.equal(search(5), ends[-1])


class Soft(nn.Module):
    """Logits over 5, and images squeezed into [.3, .7]: no step reaches the box, which ART cuts by in another order."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - 0.3) / 0.4) / 5


@pytest.mark.parametrize("norm", BALLS)
def test_art(norm: str, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    (x, y), model = images, Soft(digits_model.network).eval()
    x, eps = 0.3 + 0.4 * x, {"linf": 0.04, "l2": 0.29}[norm]
    estimator = classification.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    knobs = {"norm": np.inf if norm == "linf" else 2, "eps": eps, "eps_step": eps / 4, "decay": 0.9, "max_iter": STEPS}
    theirs = torch.from_numpy(
        evasion.MomentumIterativeMethod(estimator, **knobs, batch_size=N, verbose=False).generate(x.numpy(), y.numpy())
    )
    model.eval()
    ours = built("attack", "mim", "attack.keep=last", "attack.decay=0.9", f"attack.steps={STEPS}", "attack.relative_step_size=0.25")

    def search(x: Tensor) -> Tensor:
        return ours(model, x, y, Budget(norm, eps), streams(N))

    x_adv, kept = search(x), steady(search, x, 1e-5)
    assert kept.sum() > 0.8 * N
    torch.testing.assert_close(x_adv[kept], theirs[kept], atol=1e-5, rtol=0)
    robust = model(x_adv).argmax(1) == y
    assert torch.equal(robust[kept], (model(theirs).argmax(1) == y)[kept])
    assert 0.1 * N < robust.sum() < 0.9 * N


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (13, 21)])
def test_resize_and_pad_is_torchs_image_by_image(height: int, width: int) -> None:
    """Nearest neighbour ("nearest-exact" samples elsewhere), zeros around, and the gradient through both."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(30, 3, height, width, generator=generator, requires_grad=True)
    side = (height + 7, width + 5)
    grown = torch.stack([torch.randint(0, 8, (30,), generator=generator), torch.randint(0, 6, (30,), generator=generator)], dim=1)
    room = torch.tensor([7, 5]) - grown
    size, corner = torch.tensor([height, width]) + grown, (torch.rand(30, 2, generator=generator) * (room + 1)).long()
    result = resize_and_pad(x, size, corner, [torch.arange(length) for length in side])
    expected = []
    for image, (h, w), (top, left) in zip(x, size.tolist(), corner.tolist(), strict=True):
        resized = F.interpolate(image[None], (h, w), mode="nearest")
        expected.append(F.pad(resized, (left, side[1] - w - left, top, side[0] - h - top))[0])
    assert torch.equal(result, torch.stack(expected))
    weight = torch.rand(result.shape, generator=generator)
    ours, theirs = (torch.autograd.grad((weight * images).sum(), x)[0] for images in (result, torch.stack(expected)))
    torch.testing.assert_close(ours, theirs)


def test_resize_and_pad_by_hand() -> None:
    """The row (1, 2) at size 3 is (1, 1, 2): floor(0, 2/3, 4/3); put at place 1 of 5: (0, 1, 1, 2, 0)."""
    x = torch.tensor([[[[1.0, 2.0]]]])
    places = [torch.arange(1), torch.arange(5)]
    assert resize_and_pad(x, torch.tensor([[1, 3]]), torch.tensor([[0, 1]]), places).flatten().tolist() == [0, 1, 1, 2, 0]


def test_the_network_is_given_what_the_authors_give(built: Callable[..., Any]) -> None:
    """32 pixels to 35: all sizes from 32 to 34, the corner within the room that is left but its end, as their integers are drawn."""
    x, y = torch.ones(400, 1, 32, 32), torch.zeros(400, dtype=torch.int64)
    model = Recorder()
    attack = built("attack", "diverse_input", "attack.steps=1", "attack.resize_back=false", "attack.labels=ground_truth")
    attack(model, x, y, Budget("linf", 0.1), streams(400))
    padded, plain = sorted(model.seen, key=lambda seen: -seen.shape[2])
    assert padded.shape[1:] == (1, 35, 35)
    assert torch.equal(plain, x[: len(plain)])
    assert len(padded) + len(plain) == 400
    assert 160 < len(padded) < 240  # probability .5
    seen = set()
    for image in padded[:, 0]:
        down, right = image.any(dim=1).nonzero()[:, 0], image.any(dim=0).nonzero()[:, 0]
        assert len(down) == len(right)
        seen.add((len(down), down[0].item(), right[0].item()))
    corners = {32: range(3), 33: range(2), 34: range(1)}
    assert seen == {(size, top, left) for size, room in corners.items() for top in room for left in room}


def test_draws_change_with_the_step_and_the_sample(built: Callable[..., Any]) -> None:
    x, y = torch.rand(50, 1, 32, 32), torch.zeros(50, dtype=torch.int64)
    model, knobs = Recorder(), ("attack.labels=ground_truth", "attack.probability=1", "attack.step_size=1e-9")
    built("attack", "diverse_input", *knobs, "attack.steps=2", "attack.eot_samples=2")(model, x, y, Budget("linf", 0.1), streams(50))
    assert len(model.seen) == 4
    for i in range(4):
        for j in range(i):
            same = (model.seen[i] - model.seen[j]).abs().flatten(1).amax(dim=1) < 1e-6
            assert same.float().mean() < 0.5  # nine placements of three sizes


@pytest.mark.parametrize("back", [True, False])
def test_each_image_keeps_its_place_in_the_batch(back: bool, built: Callable[..., Any]) -> None:
    """The gradient of an image comes from that image: without a transformation MIM's, with one that of the transformed image alone."""
    x, y = torch.rand(20, 3, 20, 20, generator=torch.Generator().manual_seed(0)), torch.zeros(20, dtype=torch.int64)
    budget, knobs = (
        Budget("l2", 1.0),
        ("attack.labels=ground_truth", "attack.steps=2", "attack.step_size=0.3", f"attack.resize_back={back}"),
    )
    never = built("attack", "diverse_input", *knobs, "attack.probability=0")(Recorder(), x, y, budget, streams(20))
    mim = built(
        "attack", "mim", "attack.steps=2", "attack.step_size=0.3", "attack.relative_step_size=null", "attack.decay=0", "attack.keep=last"
    )
    torch.testing.assert_close(never, mim(Recorder(), x, y, budget, streams(20)), atol=1e-6, rtol=0)
    attack = built("attack", "diverse_input", *knobs)
    together = attack(Recorder(), x, y, budget, streams(20))
    alone = [attack(Recorder(), x[i : i + 1], y[:1], budget, streams(20)[i : i + 1]) for i in range(20)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)
    assert not torch.allclose(together, never, atol=1e-3)


def test_resized_back_is_torchs(built: Callable[..., Any]) -> None:
    """What a network of fixed size sees is the padded image, taken back by nearest neighbour."""
    x, y = torch.rand(40, 1, 32, 32, generator=torch.Generator().manual_seed(0)), torch.zeros(40, dtype=torch.int64)
    seen = {}
    for back in (True, False):
        model = Recorder()
        knobs = ("attack.labels=ground_truth", "attack.steps=1", "attack.probability=1", f"attack.resize_back={back}")
        built("attack", "diverse_input", *knobs)(model, x, y, Budget("linf", 0.1), streams(40))
        (seen[back],) = model.seen
    assert torch.equal(seen[True], F.interpolate(seen[False], (32, 32), mode="nearest"))


def test_a_scale_that_adds_no_pixel_is_refused(built: Callable[..., Any]) -> None:
    x, y = torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(LabError, match=r"^attack\.scale: 1\.1.* adds no pixel to images of \(4, 4\); choose a larger one"):
        built("attack", "diverse_input")(Recorder(), x, y, Budget("linf", 0.1), streams(2))


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("mim", "attack.steps=0", "steps"),
        ("mim", "attack.step_size=0.1", "step_size"),  # with relative_step_size: both
        ("mim", "attack.relative_step_size=null", "step_size"),  # neither
        ("mim", "attack.relative_step_size=0", "relative_step_size"),
        ("mim", "attack.decay=-1", "decay"),
        ("mim", "attack.keep=best", "keep"),
        ("mim", "attack.loss=hinge", "loss"),
        ("diverse_input", "attack.probability=1.1", "probability"),
        ("diverse_input", "attack.scale=1", "scale"),
        ("diverse_input", "attack.resize_back=nearest", "resize_back"),
        ("diverse_input", "attack.keep=first", "keep"),
    ],
)
def test_a_wrong_knob_fails_when_built(name: str, override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", name, override)
