"""DeepFool: nearest points of linear classifiers, its equations by hand, and Foolbox and ART image by image."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.deepfool import DeepFool, perturbation
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BALLS = ("linf", "l2")
N = 40


class Linear(nn.Module):
    """Logits W x + b; W [K, D]."""

    def __init__(self, w: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = w, b

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T + self.b


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


def linear(classes: int, low: float = 0.4, high: float = 0.6) -> tuple[Linear, Tensor, Tensor]:
    """A linear classifier of 1x3x3 images whose boundaries all cross the middle of the box; each image is labelled as predicted."""
    generator = torch.Generator().manual_seed(classes)
    w = torch.randn(classes, 9, generator=generator)
    x = low + (high - low) * torch.rand(40, 1, 3, 3, generator=generator)
    model = Linear(w, -0.5 * w.sum(1))
    return model, x, model(x).argmax(1)


def distances(model: Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """To the nearest boundary, where no box is in the way: the least of the differences of logits over their dual norms, [B]."""
    logits, w = model(x).double(), model.w.double()
    gap = logits.gather(1, y[:, None]) - logits
    size = (w[y][:, None] - w[None]).norm(p=2 if norm == "l2" else 1, dim=2)
    return (gap / size).scatter(1, y[:, None], math.inf).amin(1)


@pytest.mark.parametrize("overshoot", [0.0, 0.02])
@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("norm", BALLS)
def test_reaches_the_nearest_boundary_of_a_linear_classifier(norm: str, classes: int, overshoot: float, built: Callable[..., Any]) -> None:
    model, x, y = linear(classes)
    budget, counted = Budget(norm, math.inf), Counted(model)
    x_adv = built("attack", "deepfool", f"attack.overshoot={overshoot}")(counted, x, y, budget, streams(40))
    nearest = distances(model, x, y, norm)
    assert (model(x_adv).argmax(1) != y).all()
    assert (budget.distance(x_adv, x) >= nearest).all()
    far = nearest > 0.005  # beside which the nudge of 1e-5 is small
    assert far.sum() > 20
    assert (budget.distance(x_adv, x) <= 1.005 * (1 + overshoot) * nearest)[far].all()
    assert counted.backward_images <= (classes - 1) * 1.1 * 40  # one step, and a second one where rounding asks for it


@pytest.mark.parametrize("norm", BALLS)
def test_reaches_the_nearest_point_of_the_box(norm: str, built: Callable[..., Any]) -> None:
    """The nearest point of half-space and box is clamp(x + t * direction) for the least t that crosses: found here by bisection."""
    model, x, y = linear(2, low=0.0, high=1.0)
    x = x.round()  # corners: every other pixel cannot move the way it should
    y = model(x).argmax(1)
    w = (model.w[1] - model.w[0]).view(1, 1, 3, 3) * (1 - 2 * y).view(-1, 1, 1, 1)
    direction = w if norm == "l2" else w.sign()
    low, high = torch.zeros(40), torch.full((40,), 100.0)
    for _ in range(60):
        middle = (low + high) / 2
        crossed = model((x + middle.view(-1, 1, 1, 1) * direction).clamp(0, 1)).argmax(1) != y
        low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
    nearest = Budget(norm, math.inf).distance((x + high.view(-1, 1, 1, 1) * direction).clamp(0, 1), x)
    x_adv = built("attack", "deepfool", "attack.overshoot=0.002", "attack.steps=100")(model, x, y, Budget(norm, math.inf), streams(40))
    assert (model(x_adv).argmax(1) != y).all()
    torch.testing.assert_close(Budget(norm, math.inf).distance(x_adv, x), nearest, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("norm", BALLS)
def test_one_step_by_hand(norm: str, built: Callable[..., Any]) -> None:
    """Logits (0, x1 - 2 x2 + .1, x1 - 3) at (.5, .5): f' = (-.4, -2.5), w' = ((1, -2), (1, 0)). The second class is nearer: .4 / sqrt 5
    against 2.5 in l2, .4 / 3 against 2.5 in linf; the step is .4 / 5 (1, -2), or .4 / 3 (1, -1)."""
    model = Linear(torch.tensor([[0.0, 0.0], [1.0, -2.0], [1.0, 0.0]]), torch.tensor([0.0, 0.1, -3.0]))
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    step = [0.08, -0.16] if norm == "l2" else [0.4 / 3, -0.4 / 3]
    for overshoot in (0, 0.5):
        x_adv = built("attack", "deepfool", f"attack.overshoot={overshoot}")(model, x, y, Budget(norm, math.inf), streams(1))
        assert x_adv.flatten().tolist() == pytest.approx([0.5 + (1 + overshoot) * s for s in step], abs=3e-5)


class Curved(nn.Module):
    """Logits (0, .3 - (x - 1)^2) of one pixel: the boundary lies at 1 - sqrt(.3) = .452277, and steps from below fall short of it."""

    def forward(self, x: Tensor) -> Tensor:
        score = 0.3 - (x.flatten(1)[:, 0] - 1) ** 2
        return torch.stack([torch.zeros_like(score), score], dim=1)


@pytest.mark.parametrize("norm", BALLS)
def test_steps_add_up_and_end_at_the_first_crossing(norm: str, built: Callable[..., Any]) -> None:
    """From .1: f' = -.51, w' = 1.8, a step of .283333; from .383333: f' = -.080278, w' = 1.233333, .065090; then the boundary is near."""
    x, y, budget = torch.full((1, 1, 1, 1), 0.1), torch.tensor([0]), Budget(norm, math.inf)
    where = {}
    for steps in (1, 2, 50):
        attack = built("attack", "deepfool", "attack.overshoot=0", f"attack.steps={steps}")
        counted = Counted(Curved())
        where[steps] = attack(counted, x, y, budget, streams(1)).item(), counted.backward_images
    assert where[1] == (pytest.approx(0.383333, abs=3e-5), 1)
    assert where[2] == (pytest.approx(0.448423, abs=3e-5), 2)
    assert where[50][0] == pytest.approx(0.452277, abs=3e-5)
    assert where[50][0] > 0.452277
    assert where[50][1] <= 5
    stretched = built("attack", "deepfool", "attack.overshoot=0.25", "attack.steps=1")(Curved(), x, y, budget, streams(1))
    assert stretched.item() == pytest.approx(0.1 + 1.25 * 0.283333, abs=3e-5)  # .454: it has crossed


def test_only_candidates_count(built: Callable[..., Any]) -> None:
    """At (.5, .5): logits (1, .9, .8); the runner-up lies .1 / .1 away, the third class .2 / 2."""
    model = Linear(torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 2.0]]), torch.tensor([1.0, 0.85, -0.2]))
    x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    for candidates, change in {2: [0.5, 0.0], 3: [0.0, 0.1]}.items():  # the step of 1 ends at the box's edge
        attack = built("attack", "deepfool", f"attack.candidates={candidates}", "attack.overshoot=0")
        x_adv = attack(model, x, y, Budget("l2", math.inf), streams(1))
        assert (x_adv - x).flatten().tolist() == pytest.approx(change, abs=3e-5)


@pytest.mark.parametrize("norm", BALLS)
def test_a_misclassified_image_moves_only_away_from_its_prediction(norm: str, built: Callable[..., Any]) -> None:
    model, x, y = linear(3)
    wrong = (y + 1) % 3
    still = built("attack", "deepfool")(model, x, wrong, Budget(norm, math.inf), streams(40))
    assert torch.equal(still, x)
    away = built("attack", "deepfool", "attack.labels=predicted")(model, x, wrong, Budget(norm, math.inf), streams(40))
    assert torch.equal(away, built("attack", "deepfool")(model, x, y, Budget(norm, math.inf), streams(40)))
    assert (model(away).argmax(1) != y).all()


@pytest.mark.parametrize("norm", BALLS)
def test_in_a_ball_what_lies_outside_is_put_onto_its_edge(norm: str, built: Callable[..., Any]) -> None:
    model, x, y = linear(3)
    free = built("attack", "deepfool")(model, x, y, Budget(norm, math.inf), streams(40))
    length = Budget(norm, math.inf).distance(free, x)
    ball = Budget(norm, float(length.median()) + 1e-6)
    x_adv = built("attack", "deepfool")(model, x, y, ball, streams(40))
    inside = length <= ball.eps
    assert 10 < inside.sum() < 30
    assert torch.equal(x_adv[inside], free[inside])
    torch.testing.assert_close(ball.distance(x_adv, x)[~inside], torch.full_like(length, ball.eps)[~inside], rtol=1e-5, atol=0)


class _Broken(torch.autograd.Function):
    """The identity, whose slope is not a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.where(gradient == 0, 0.0, math.nan)


def test_a_gradient_that_is_not_a_number_is_not_hidden(built: Callable[..., Any]) -> None:
    """Not by another class whose gradient is one, either."""

    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = x.flatten(1).sum(1)
            return torch.stack([0 * score, _Broken.apply(score) - 5, score - 3], dim=1)

    x = torch.full((1, 1, 2, 2), 0.5)
    for norm in BALLS:
        assert not built("attack", "deepfool")(Model(), x, torch.tensor([0]), Budget(norm, math.inf), streams(1)).isfinite().all()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attack.steps=0", "steps"),
        ("attack.candidates=1", "candidates"),
        ("attack.candidates=2.5", "candidates"),
        ("attack.overshoot=-0.1", "overshoot"),
        ("attack.overshoot=.inf", "overshoot"),
        ("attack.labels=true", "labels"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "deepfool", override)


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    return x, y


@pytest.mark.parametrize(("norm", "overshoot"), [("l2", 0.02), ("linf", 0.0)])
def test_foolbox(norm: str, overshoot: float, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """The same path but for the nudge, on almost all images; never further by more than a little, and nearer on average."""
    foolbox = pytest.importorskip("foolbox", reason="the parity extra is not installed")
    x, y = images
    theirs_of = {"l2": foolbox.attacks.L2DeepFoolAttack, "linf": foolbox.attacks.LinfDeepFoolAttack}[norm](overshoot=overshoot)
    _, theirs, broken = theirs_of(foolbox.PyTorchModel(digits_model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)
    budget = Budget(norm, math.inf)
    x_adv = built("attack", "deepfool", f"attack.overshoot={overshoot}")(digits_model, x, y, budget, streams(N))
    assert broken.all()
    assert (digits_model(x_adv).argmax(1) != y).all()
    length, theirs_length = budget.distance(x_adv, x), budget.distance(theirs, x)
    assert length.mean() <= theirs_length.mean()
    assert (length <= 1.02 * theirs_length + 1e-6).all()
    assert ((length / theirs_length.clamp(min=1e-9) - 1).abs() < 0.005).float().mean() > 0.85


def test_art(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """ART cuts every step by the box, one by one: nearer than that on average, and no image less broken."""
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y = images[0][:20], images[1][:20]
    estimator = classification.PyTorchClassifier(
        digits_model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.DeepFool(estimator, max_iter=20, epsilon=0.02, nb_grads=10, batch_size=20, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy()))
    digits_model.eval()
    budget = Budget("l2", math.inf)
    x_adv = built("attack", "deepfool", "attack.labels=predicted")(digits_model, x, y, budget, streams(20))
    clean = digits_model(x).argmax(1)
    crossed = digits_model(theirs).argmax(1) != clean
    assert crossed.float().mean() > 0.8
    assert (digits_model(x_adv).argmax(1) != clean).all()
    length, theirs_length = budget.distance(x_adv, x)[crossed], budget.distance(theirs, x)[crossed]
    assert length.mean() <= theirs_length.mean()
    assert (length <= 1.15 * theirs_length).all()


def smooth_net() -> nn.Sequential:
    """Logits of 3 classes whose boundaries bend, so that a search takes several steps."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(4)
        net[-1].bias -= net(torch.full((1, 9), 0.5, dtype=torch.float64))[0]  # all classes meet in the box's middle, whatever the seed
    return net


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("towards", [False, True])
def test_what_is_found_can_be_differentiated_by_the_weights(norm: str, towards: bool) -> None:
    """Through all steps; against central differences. Some images leave after one step, others after several."""
    net, x = smooth_net(), 0.2 + 0.6 * torch.rand(40, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)
    y = (y + 1) % 3 if towards else y

    def found(steps: int, create_graph: bool = False) -> Tensor:
        ask = lambda points, rows: net(points)  # noqa: E731
        return perturbation(ask, x, y, norm, steps, 3, 0.02, towards=towards, create_graph=create_graph)

    def lengths(create_graph: bool) -> Tensor:
        return found(3, create_graph).flatten(1).norm(dim=1)

    assert 0 < int((found(1) != found(3)).flatten(1).any(dim=1).sum()) < 40, "some images take a second step, some do not"
    assert not lengths(False).requires_grad
    torch.testing.assert_close(lengths(False), lengths(True).detach(), atol=1e-12, rtol=1e-12)
    gradients = torch.autograd.grad(lengths(True).sum(), list(net.parameters()))
    for parameter, gradient in zip(net.parameters(), gradients, strict=True):
        for place in range(0, parameter.numel(), 7):
            flat, before = parameter.data.view(-1), float(parameter.data.view(-1)[place])
            either = []
            for change in (1e-6, -1e-6):
                flat[place] = before + change
                either.append(float(lengths(False).sum()))
            flat[place] = before
            expected = (either[0] - either[1]) / 2e-6
            assert float(gradient.flatten()[place]) == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert any(bool(gradient.any()) for gradient in gradients)


def test_without_the_way_back_through_the_steps_only_the_points_are_constants() -> None:
    net, x = smooth_net(), 0.2 + 0.6 * torch.rand(40, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = net(x).argmax(1)

    def gradient(steps: int, through_steps: bool) -> Tensor:
        delta = perturbation(lambda p, rows: net(p), x, y, "l2", steps, 3, 0.02, create_graph=True, through_steps=through_steps)
        return torch.autograd.grad(delta.flatten(1).norm(dim=1).sum(), net[1].weight)[0]

    torch.testing.assert_close(gradient(1, True), gradient(1, False))
    assert not torch.allclose(gradient(3, True), gradient(3, False), rtol=1e-3)


def test_the_walk_to_a_label_by_hand() -> None:
    """A linear model with logits (x, y, 0): from (1, 0), class 0, to class 1 is half of (-1, 1); to class 2 it is (-1, 0), and 2 % more."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    net[1].weight.data, net[1].bias.data = torch.tensor([[1.0, 0], [0, 1], [0, 0]]), torch.zeros(3)
    x = torch.tensor([[1.0, 0.0], [1.0, -0.5]]).view(2, 2, 1, 1)
    found = perturbation(lambda p, rows: net(p), x, torch.tensor([1, 2]), "l2", 1, 3, 0.02, towards=True)
    torch.testing.assert_close(found.flatten(1), 1.02 * torch.tensor([[-0.5, 0.5], [-1.0, 0.0]]))


@pytest.mark.parametrize("labels", ["ground_truth", "predicted"])
def test_linearised_at_the_sum_as_the_authors_do(labels: str) -> None:
    """Against a plain loop, image by image, of the authors' code (LTS4/DeepFool, Python): all gradients at x + r, asked at x + 1.02 r."""
    net, x = smooth_net(), 0.2 + 0.6 * torch.rand(30, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = torch.arange(30) % 3
    attack = DeepFool(steps=4, candidates=3, overshoot=0.02, labels=labels, linearise_at="sum")
    found = attack(net, x, y, Budget("l2", math.inf), rng=ImageRandom.of(torch.arange(30), 0))
    for image, label, x_adv in zip(x, y, found, strict=True):
        k = int(label if labels == "ground_truth" else net(image[None]).argmax())
        r, step = torch.zeros_like(image), 0
        while step < 4 and int(net((image + 1.02 * r)[None]).argmax()) == k:
            point = (image + r)[None].requires_grad_()
            logits = net(point)[0]
            ways = []
            for j in set(range(3)) - {k}:
                slope = torch.autograd.grad(logits[j] - logits[k], point, retain_graph=True)[0][0]
                gap = (logits[j] - logits[k]).abs().detach()
                ways.append((float(gap / slope.norm()), gap / slope.norm() ** 2 * slope))
            r, step = r + min(ways, key=lambda way: way[0])[1], step + 1
        torch.testing.assert_close(x_adv, (image + 1.02 * r).clamp(0, 1), atol=1e-9, rtol=1e-9)


def test_rivals_are_those_of_the_clean_image() -> None:
    """Logits (2, 1 - x / 10, 10 x) at x = 0: class 1 is the likeliest rival, whose boundary is 10 off; that of class 2, .2 off, counts only
    among three."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 3))
    net[1].weight.data, net[1].bias.data = torch.tensor([[0.0], [-0.1], [10.0]]), torch.tensor([2.0, 1.0, 0.0])
    x, y = torch.zeros(1, 1, 1, 1), torch.tensor([0])
    two, three = (float(perturbation(lambda p, rows: net(p), x, y, "l2", 3, candidates, 0.02)) for candidates in (2, 3))
    assert two == pytest.approx(-10.2, rel=1e-5)
    assert three == pytest.approx(0.204, rel=1e-5)
