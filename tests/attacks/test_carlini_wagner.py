"""Carlini and Wagner's attack: distances of linear classifiers, its search and its stops by hand, and Foolbox and ART on the digits."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import margin
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

FREE = Budget("l2", math.inf)
N = 12


class Linear(nn.Module):
    """Logits scale * (W x + b); W [K, D]."""

    def __init__(self, w: Tensor, b: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.w, self.b, self.scale = w, b, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.w.T + self.b)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


def linear(classes: int, scale: float = 1.0) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """A linear classifier of 1x3x3 images far from the box's edge, images, their predictions, and distances to the nearest boundary: the
    likeliest other class's, for the weights of two classes differ by the same length, whichever the two."""
    generator = torch.Generator().manual_seed(classes)
    w = (torch.arange(9) % classes == torch.arange(classes)[:, None]) * torch.randn(9, generator=generator).sign()
    x = 0.4 + 0.2 * torch.rand(20, 1, 3, 3, generator=generator)
    model = Linear(w, -0.5 * w.sum(1), scale)
    logits = model(x)
    y = logits.argmax(1)
    gap = (logits.gather(1, y[:, None]) - logits).double() / scale
    nearest = (gap / (w[y][:, None] - w[None]).double().norm(dim=2)).scatter(1, y[:, None], math.inf).amin(1)
    return model, x, y, nearest


@pytest.mark.parametrize(("classes", "scale"), [(2, 1.0), (3, 1.0), (3, 1e-4), (3, 1e3)])
def test_reaches_the_nearest_boundary_of_a_linear_classifier(classes: int, scale: float, built: Callable[..., Any]) -> None:
    """Whatever the scale of the logits: the search for c takes it in."""
    model, x, y, nearest = linear(classes, scale)
    attack = built("attack", "carlini_wagner", "attack.steps=150", "attack.searches=13", f"attack.initial_constant={0.01 / scale}")
    x_adv = attack(model, x, y, FREE, streams(20))
    assert (model(x_adv).argmax(1) != y).all()
    length = FREE.distance(x_adv, x)
    assert (length >= nearest - 1e-6).all()
    assert (length <= 1.05 * nearest + 1e-3).all()


def test_reaches_a_confidence(built: Callable[..., Any]) -> None:
    """The nearest point of margin .3 lies .3 / |w| beyond the boundary."""
    model, x, y, nearest = linear(2)
    further = nearest + 0.3 / (model.w[0] - model.w[1]).norm().double()
    knobs = ["attack.steps=150", "attack.searches=10", "attack.initial_constant=0.01", "attack.confidence=0.3"]
    x_adv = built("attack", "carlini_wagner", *knobs)(model, x, y, FREE, streams(20))
    length = FREE.distance(x_adv, x)
    assert (margin(model(x_adv), y) >= 0.3 - 1e-5).all()
    assert (length <= 1.05 * further + 1e-3).all()
    assert (length >= further - 1e-4).all()


def test_a_confidence_out_of_reach_does_not_hide_what_was_found(built: Callable[..., Any]) -> None:
    """No point of the box has a margin of 100: of the misclassified ones, that of the highest margin counts."""
    model, x, y, _ = linear(3)
    knobs = ["attack.steps=40", "attack.searches=4", "attack.step_size=0.1", "attack.initial_constant=10"]
    confident = built("attack", "carlini_wagner", *knobs, "attack.confidence=100")(model, x, y, FREE, streams(20))
    nearest = built("attack", "carlini_wagner", *knobs)(model, x, y, FREE, streams(20))
    assert (model(confident).argmax(1) != y).all()
    assert (margin(model(confident), y) > margin(model(nearest), y) + 0.1).all()


def test_as_published_only_the_confidence_breaks_an_image(built: Callable[..., Any]) -> None:
    """Where it is out of reach the image comes back; where it is in reach, for some of them here, and at 0, the answer is the same."""
    model, x, y, _ = linear(3)
    knobs = ["attack.steps=40", "attack.searches=4", "attack.step_size=0.1", "attack.initial_constant=10", "attack.abort_early=100"]

    def found(name: str, confidence: float, images: Tensor, labels: Tensor) -> Tensor:
        attack = built("attack", name, *knobs, f"attack.confidence={confidence}")
        return attack(Counted(model), images, labels, FREE, streams(len(images)))

    correct, published = "carlini_wagner_fm", "carlini_wagner_fm_as_published"
    furthest = found(correct, 100, x, y)
    assert torch.equal(found(published, 100, x, y), x)
    assert (model(furthest).argmax(1) != y).all()
    assert torch.equal(found(published, 0, x, y), found(correct, 0, x, y))
    confidence = margin(model(furthest), y).median().item() + 1e-4
    some, others = found(published, confidence, x, y), found(correct, confidence, x, y)
    reached = margin(model(others), y) >= confidence
    assert 0 < reached.sum() < len(x)
    assert torch.equal(some[reached], others[reached])
    assert torch.equal(some[~reached], x[~reached])
    assert (model(some).argmax(1) == y)[~reached].all()


class Recorded(nn.Module):
    """Keeps the images that it was asked about."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.asked: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.detach().clone())
        return self.model(x)


def test_first_steps_by_hand(built: Callable[..., Any]) -> None:
    """One pixel at .5: w = 0, slope d x_adv / d w = .5. Adam's first step is its step size, whatever the gradient: x = (tanh(.1) + 1) / 2 =
    .549834. There, with c = 2 and logits (0, x - .8): g1 = -2 * .5 = -1, g2 = (-2 + 2 * .049834) * 2 * .549834 * .450166 = -.940714;
    mean = (.9 * .1 * g1 + .1 * g2) / .19 = -.968798, square = (.999 * g1^2 + g2^2) / 1.999 = .942443; w = .1 + .1 * .997938."""
    model = Recorded(Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.8])))
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    knobs = ["attack.steps=3", "attack.searches=1", "attack.step_size=0.1", "attack.initial_constant=2", "attack.abort_early=null"]
    built("attack", "carlini_wagner", *knobs)(model, x, y, FREE, streams(1))
    g1, x1 = -1.0, (math.tanh(0.1) + 1) / 2
    g2 = (-2 + 2 * (x1 - 0.5)) * 2 * x1 * (1 - x1)
    mean, square = (0.9 * 0.1 * g1 + 0.1 * g2) / 0.19, (0.999 * 0.001 * g1**2 + 0.001 * g2**2) / (1 - 0.999**2)
    x2 = (math.tanh(0.1 - 0.1 * mean / math.sqrt(square)) + 1) / 2
    assert [images.item() for images in model.asked] == pytest.approx([0.5, 0.5, x1, x2], abs=1e-6)


class Constants(nn.Module):
    """Reads each step's constant off the gradient that arrives; misclassified, from a search's third point on, where it exceeds `enough`.

    The logits are (0, -1), or (0, 1); the score's slope is 1.
    """

    def __init__(self, enough: float = math.inf, steps: int = 1) -> None:
        super().__init__()
        self.enough, self.steps = enough, steps
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        works = len(self.seen) % self.steps == 2 and self.seen[-1] >= self.enough
        score = x.flatten(1).sum(1)
        score = score - score.detach() + (1 if works else -1)
        if score.requires_grad:
            score.register_hook(lambda gradient: self.seen.append(gradient.abs().max().item()))
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.mark.parametrize(
    ("searches", "largest", "constants"),
    [
        (2, 0.05, [0.001, 0.01]),
        (9, 0.05, [0.001, 0.01, 0.05]),  # after the largest has failed, a search would find the same again
        (9, 1e10, [10.0**k for k in range(-3, 6)]),
        (10, 1e10, [*(10.0**k for k in range(-3, 6)), 1e10]),  # with ten searches, the last one jumps to it
    ],
)
def test_constants_grow_tenfold_up_to_the_largest(searches: int, largest: float, constants: list[float], built: Callable[..., Any]) -> None:
    model, x = Constants(), torch.full((1, 1, 1, 1), 0.5)
    knobs = [f"attack.searches={searches}", f"attack.largest_constant={largest}", "attack.steps=1", "attack.abort_early=null"]
    assert torch.equal(built("attack", "carlini_wagner", *knobs)(model, x, torch.tensor([0]), FREE, streams(1)), x)
    assert model.seen == pytest.approx(constants)


@pytest.mark.parametrize("searches", [6, 10])
def test_the_search_halves_between_what_fails_and_what_works(searches: int, built: Callable[..., Any]) -> None:
    model, x = Constants(enough=0.35, steps=3), torch.full((1, 1, 1, 1), 0.5)
    knobs = [f"attack.searches={searches}", "attack.steps=3", "attack.initial_constant=0.01", "attack.abort_early=null"]
    built("attack", "carlini_wagner", *knobs)(model, x, torch.tensor([0]), FREE, streams(1))
    expected = [0.01, 0.1, 1.0, 0.55, 0.325, 0.4375, 0.38125, 0.353125, 0.3390625, 0.34609375]
    assert model.seen[::3] == pytest.approx(expected[:searches])


def test_an_image_whose_loss_stands_still_leaves_the_search(built: Callable[..., Any]) -> None:
    """Looked at after steps 1, 6, 11, ...: an image that nothing moves leaves after the sixth; one that comes closer stays."""

    class Flat(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, -1.0]).expand(len(x), 2) + 0 * x.flatten(1).sum(1, keepdim=True)

    far = Linear(torch.tensor([[0.0], [1.0]]), torch.tensor([0.0, -0.9]))
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.int64)
    for model, early, passes in ((Flat(), 5, 6), (Flat(), "null", 20), (far, 5, 20)):
        counted = Counted(model)
        knobs = ["attack.steps=20", "attack.searches=1", "attack.initial_constant=10", f"attack.abort_early={early}"]
        built("attack", "carlini_wagner", *knobs)(counted, x, y, FREE, streams(3))
        assert counted.forward_images == 3 * (1 + passes)


def test_in_a_ball_an_image_leaves_once_it_is_broken_inside(built: Callable[..., Any]) -> None:
    model, x, y, nearest = linear(2)
    ball = Budget("l2", float(nearest.median()))
    clear = (nearest - ball.eps).abs() > 0.1 * ball.eps
    knobs = ["attack.steps=100", "attack.searches=6", "attack.initial_constant=0.01"]
    attack, counted, free = built("attack", "carlini_wagner", *knobs), Counted(model), Counted(model)
    x_adv = attack(counted, x, y, ball, streams(20))
    broken = model(x_adv).argmax(1) != y
    assert torch.equal(broken[clear], (nearest < ball.eps)[clear])
    assert ball.contains(x_adv, x)
    attack(free, x, y, FREE, streams(20))
    assert counted.forward_images < 0.8 * free.forward_images
    transfer = Counted(model, decides=False)
    attack(transfer, x, y, ball, streams(20))
    assert transfer.forward_images == free.forward_images


def test_images_that_are_misclassified_stay(built: Callable[..., Any]) -> None:
    """Unless a confidence is asked for that they do not have, and no ball says that being misclassified is enough."""
    model, x, y, _ = linear(3)
    for attack, budget in (
        (built("attack", "carlini_wagner"), FREE),
        (built("attack", "carlini_wagner", "attack.confidence=2"), Budget("l2", 1.0)),
    ):
        counted = Counted(model)
        assert torch.equal(attack(counted, x, (y + 1) % 3, budget, streams(20)), x)
        assert counted.forward_images == 20
    confident = model(built("attack", "carlini_wagner", "attack.confidence=2")(Counted(model), x, (y + 1) % 3, FREE, streams(20)))
    assert (margin(confident, (y + 1) % 3) >= 2).all()


def test_the_largest_constant_overflows_nothing(
    tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor], built: Callable[..., Any]
) -> None:
    model, x = tiny_net(3, 3), edge_images(8, 3)
    y = model(x).argmax(1)
    knobs = ["attack.initial_constant=1e10", "attack.steps=60", "attack.searches=4"]
    x_adv = built("attack", "carlini_wagner", *knobs)(model, x, y, FREE, streams(8))
    assert x_adv.isfinite().all()
    assert (model(x_adv).argmax(1) != y).float().mean() > 0.8


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attack.steps=0", "steps"),
        ("attack.searches=0", "searches"),
        ("attack.confidence=-1", "confidence"),
        ("attack.step_size=0", "step_size"),
        ("attack.initial_constant=0", "initial_constant"),
        ("attack.largest_constant=1e-4", "largest_constant"),
        ("attack.abort_early=0", "abort_early"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "carlini_wagner", override)


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    return x, y


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_foolbox(confidence: float, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """Without the early abort the searches are the same, step by step."""
    foolbox = pytest.importorskip("foolbox", reason="the parity extra is not installed")
    x, y = images
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=3, steps=50, stepsize=0.03, confidence=confidence, initial_const=0.1, abort_early=False
    )
    _, theirs, _ = attack(foolbox.PyTorchModel(digits_model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    knobs = ["attack.steps=50", "attack.searches=3", "attack.step_size=0.03", "attack.initial_constant=0.1", "attack.abort_early=null"]
    x_adv = built("attack", "carlini_wagner", *knobs, f"attack.confidence={confidence}")(digits_model, x, y, FREE, streams(N))
    found = FREE.distance(theirs, x) < 3  # Foolbox returns a black image where it has found none
    right = digits_model(x).argmax(1) == y
    assert found.sum() > 0.8 * N
    assert torch.equal(digits_model(x_adv).argmax(1) != y, found)
    both = found & right
    torch.testing.assert_close(FREE.distance(x_adv, x)[both], FREE.distance(theirs, x)[both], rtol=0.01, atol=1e-4)


def test_art(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """ART searches along lines in place of Adam: at its defaults, ours is nearer in fewer passes."""
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y = images
    estimator = classification.PyTorchClassifier(
        digits_model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.CarliniL2Method(estimator, binary_search_steps=4, max_iter=10, initial_const=0.1, batch_size=N, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    digits_model.eval()
    knobs = ["attack.steps=100", "attack.searches=4", "attack.step_size=0.02", "attack.initial_constant=0.1"]
    x_adv = built("attack", "carlini_wagner", *knobs)(digits_model, x, y, FREE, streams(N))
    broken, theirs_broken = digits_model(x_adv).argmax(1) != y, digits_model(theirs).argmax(1) != y
    assert broken.sum() >= theirs_broken.sum()
    both = broken & theirs_broken
    assert both.any()
    assert FREE.distance(x_adv, x)[both].mean() <= 1.01 * FREE.distance(theirs, x)[both].mean()
