"""FAB against nearest points that are known, a brute-force projection, and the authors' AutoAttack."""

import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.fab import nearest_boundary, to_hyperplane
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BALLS = ("linf", "l2")
N = 12


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


def slow_projection(x: Tensor, w: Tensor, gap: Tensor, norm: str) -> Tensor:
    """The same by 200 bisections of t in float64."""
    x, w, gap = x.double(), w.double(), gap.double()
    up = w.sign() * gap.sign()[:, None]
    room = torch.where(up > 0, 1 - x, x)
    rate = torch.ones_like(w) if norm == "linf" else w.abs()
    low, high = torch.zeros_like(gap), torch.full_like(gap, 1e12)
    for _ in range(200):
        middle = (low + high) / 2
        enough = (w.abs() * torch.minimum(middle[:, None] * rate, room)).sum(1) >= gap.abs()
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return up * torch.minimum(high[:, None] * rate, room)


@pytest.mark.parametrize("norm", BALLS)
def test_the_projection_is_exact(norm: str) -> None:
    """Also for pixels at the edge, weights of 0, and a plane that the box does not reach."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(200, 30, generator=generator)
    x[:, :8] = x[:, :8].round()
    w = torch.randn(200, 30, generator=generator) * (0.01 + torch.rand(200, 30, generator=generator))
    w[:, 5:10] = 0
    gap = torch.linspace(-9, 9, 200)
    move = to_hyperplane(x, w, gap, norm)
    torch.testing.assert_close(move.double(), slow_projection(x, w, gap, norm), atol=2e-5, rtol=1e-4)
    reached = ((w * move).sum(1) - gap).abs() < 1e-5
    assert 40 < reached.sum() < 190
    torch.testing.assert_close(to_hyperplane(x, w * 1e-22, gap * 1e-22, norm), move, atol=1e-5, rtol=1e-4)
    assert not to_hyperplane(x, torch.zeros_like(w), gap, norm).any()


def test_the_projection_by_hand() -> None:
    """w = (1, 2) from (.9, .5): a gap of .4 takes .4 / 3 in linf, but the first pixel has only .1: .1 + 2 t = .4. In l2 .4 (1, 2) / 5."""
    x, w, gap = torch.tensor([[0.9, 0.5]]), torch.tensor([[1.0, 2.0]]), torch.tensor([0.4])
    assert to_hyperplane(x, w, gap, "linf")[0].tolist() == pytest.approx([0.1, 0.15], abs=1e-6)
    assert to_hyperplane(x, w, gap, "l2")[0].tolist() == pytest.approx([0.08, 0.16], abs=1e-6)
    assert to_hyperplane(x, w, -gap, "l2")[0].tolist() == pytest.approx([-0.08, -0.16], abs=1e-6)


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", ["fab", "fab_t"])
@pytest.mark.parametrize("norm", BALLS)
def test_the_nearest_point_of_a_linear_classifier(norm: str, name: str, classes: int, edge: bool, built: Callable[..., Any]) -> None:
    """Within 1 %, also where the box cuts; the final search is what brings the last of it."""
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, classes)).requires_grad_(False).eval()
    model[1].weight.copy_(w := torch.randn(classes, 16, generator=generator))
    model[1].bias.copy_(-0.5 * w.sum(1))
    x = torch.rand(20, 1, 4, 4, generator=generator)
    x = (x - 0.5).mul(2).add(0.5).clamp(0, 1) if edge else 0.4 + 0.2 * x
    logits = model(x)
    y = logits.argmax(1)
    distance = torch.full((20,), math.inf, dtype=torch.float64)
    for rival in range(classes):
        difference, gap = w[rival] - w[y], logits.gather(1, y[:, None])[:, 0] - logits[:, rival]
        move = slow_projection(x.flatten(1), difference, gap, norm)
        reached = ((difference * move).sum(1) - gap).abs() < 1e-4
        length = move.abs().amax(1) if norm == "linf" else move.norm(dim=1)
        distance = torch.where(reached & (y != rival), torch.minimum(distance, length), distance)
    budget = Budget(norm, math.inf)
    x_adv = built("attack", name, "attack.steps=30")(model, x, y, budget, streams(20))
    assert (model(x_adv).argmax(1) != y).all()
    ratio = budget.distance(x_adv, x) / distance
    assert (ratio > 0.999).all()
    # The choice of the nearest boundary does not see the box (eq. 6 of the paper): with several, FAB may take the wrong one there.
    if edge and classes > 2 and name == "fab":
        return
    assert (ratio < 1.01).all()
    eps = float(distance.median())
    ball = Budget(norm, eps)
    inside = built("attack", name, "attack.steps=30")(model, x, y, ball, streams(20))
    clear = (distance - eps).abs() > 0.01 * eps
    assert ball.contains(inside, x)
    assert torch.equal((model(inside).argmax(1) != y)[clear], (distance < eps)[clear])


@pytest.mark.parametrize("norm", BALLS)
def test_memory_does_not_grow_with_the_classes(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 gradients at most the nearest so far, the one before and the newest are there at a time."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 40)).requires_grad_(False).eval()
    x, classes = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40).expand(5, 40)
    grad, made, most = torch.autograd.grad, [], 0

    def watched(*arguments: Any, **options: Any) -> tuple[Tensor, ...]:
        nonlocal most
        found = grad(*arguments, **options)
        made.append(weakref.ref(found[0]))
        most = max(most, sum(one() is not None for one in made))
        return found

    monkeypatch.setattr(torch.autograd, "grad", watched)
    lead, w = nearest_boundary(model, x, classes, norm)
    assert (len(made), most <= 3) == (40, True)
    dual = model[1].weight.abs().sum(1) if norm == "linf" else model[1].weight.norm(dim=1)
    best = (model(x).abs() / dual).argmin(1)
    assert torch.equal(lead, model(x).gather(1, best[:, None])[:, 0])
    torch.testing.assert_close(w, model[1].weight[best])


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet], digits_model: Defended) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N + 5), N + 5))
    right = digits_model(x).argmax(1) == y
    return x[right][:N], y[right][:N]


@pytest.mark.parametrize("targeted", [False, True])
@pytest.mark.parametrize("norm", BALLS)
def test_the_authors_code(
    norm: str, targeted: bool, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]
) -> None:
    """Without restarts there is no chance in it. No image is further than with the authors' code by 1 %, the mean is no larger."""
    peer = pytest.importorskip("pyautoattack.fab_pt", reason="the parity extra is not installed")
    x, y = images
    theirs = peer.FABAttack_PT(digits_model, norm={"linf": "Linf", "l2": "L2"}[norm], n_restarts=1, n_iter=20, eps=1e9, device="cpu")
    theirs.target_class = 2  # the likeliest rival
    x_theirs = theirs.attack_single_run(x, y, use_rand_start=False, is_targeted=targeted)
    x_adv = built("attack", "fab", "attack.steps=20", f"attack.targets={1 if targeted else 'null'}")(
        digits_model, x, y, Budget(norm, math.inf), streams(len(x))
    )
    distance, peers = (Budget(norm, math.inf).distance(found, x) for found in (x_adv, x_theirs))
    assert (digits_model(x_adv).argmax(1) != y).all()
    assert (digits_model(x_theirs).argmax(1) != y).all()
    assert (distance < 1.01 * peers).all()
    assert distance.mean() <= peers.mean()
    assert distance.mean() > 0.95 * peers.mean()


def test_images_that_fell_in_a_finite_ball_cost_no_more_passes(
    exact_digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]
) -> None:
    x, y = images[0].double(), images[1]
    attack = built("attack", "fab", "attack.targets=1", "attack.steps=10")
    whole = Counted(exact_digits_model)
    distance = Budget("l2", math.inf).distance(attack(whole, x, y, Budget("l2", math.inf), streams(len(x))), x)
    assert whole.forward_images == len(x) * (1 + 2 * 10 + 1 + 3)
    assert whole.backward_images == len(x) * 10
    quick, ball = Counted(exact_digits_model), Budget("l2", float(distance.median()) * 1.02)
    x_adv = attack(quick, x, y, ball, streams(len(x)))
    assert quick.forward_images < 0.9 * whole.forward_images
    assert torch.equal(exact_digits_model(x_adv).argmax(1) != y, distance <= ball.eps)
    assert ball.contains(x_adv, x)


def test_restarts_never_lose(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    x, y = images
    budget, distances = Budget("linf", math.inf), []
    for restarts in (1, 2):
        counted = Counted(digits_model)
        attack = built("attack", "fab", "attack.targets=1", "attack.steps=5", f"attack.restarts={restarts}")
        distances.append(budget.distance(attack(counted, x, y, budget, streams(len(x))), x))
        assert counted.forward_images == len(x) * (1 + restarts * 10 + 4)
    assert (distances[1] <= distances[0] * 1.001).all()


def test_an_image_that_is_misclassified_already_stays(
    digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]
) -> None:
    x, y = images
    y = (y + 1) % 10
    for eps in (0.1, math.inf):
        counted = Counted(digits_model)
        assert torch.equal(built("attack", "fab")(counted, x, y, Budget("l2", eps), streams(len(x))), x)
        assert counted.forward_images == len(x)


def test_a_gradient_that_is_not_a_number_is_not_hidden(built: Callable[..., Any]) -> None:
    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            score = (x.flatten(1) - x.flatten(1).detach()).square().sum(1).sqrt() + 1.0
            return torch.stack([score, -score], dim=1)

    x = torch.full((1, 1, 2, 2), 0.5)
    assert not built("attack", "fab")(Root(), x, torch.tensor([0]), Budget("linf", math.inf), streams(1)).isfinite().all()


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attack.steps=0", "steps"),
        ("attack.restarts=0", "restarts"),
        ("attack.searches=0", "searches"),
        ("attack.targets=0", "targets"),
        ("attack.alpha_max=2", "alpha_max"),
        ("attack.eta=0.9", "eta"),
        ("attack.beta=0", "beta"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "fab", override)


@pytest.mark.parametrize("norm", BALLS)
def test_no_rounding_decides_where_the_final_search_ends(
    norm: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor], built: Callable[..., Any]
) -> None:
    """Where the network is linear, the rule of false position lands on the very point that it aims at, which must not be on the margin."""

    class Off(nn.Module):
        """The network, off in its last bits."""

        def __init__(self, seed: int) -> None:
            super().__init__()
            self.noise = torch.Generator().manual_seed(seed)

        def forward(self, x: Tensor) -> Tensor:
            logits = model(x)
            return logits * (1 + 1e-15 * torch.randn(logits.shape, generator=self.noise, dtype=logits.dtype))

    model = tiny_net(3, 10).double()
    x, y = edge_images(30, 3).double(), torch.arange(30) % 10
    attack = built("attack", "fab", "attack.targets=9", "attack.steps=3", "attack.searches=2")
    found = [attack(Off(seed), x, y, Budget(norm, math.inf), streams(30)) for seed in range(6)]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-9, rtol=0)
