"""The VAT loss on linear softmax models, whose divergence, curvature and gradients are known."""

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.defenses.base import Batch
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom


def linear(w: Tensor) -> Defended:
    """Logits w x, w [K, P]."""
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    layer.weight.data = w.clone()
    return Defended(nn.Sequential(nn.Flatten(), layer))


def batch_of(x: Tensor, y: Tensor) -> Batch:
    ids = torch.arange(len(x))
    rng = ImageRandom.of(ids, 0)
    return Batch(x, y, ids, torch.zeros_like(ids), 0, rng, rng)


@pytest.mark.parametrize("xi", ["null", "0.01"])
def test_two_classes_by_hand(xi: str, built: Callable[..., Any]) -> None:
    """Logits (x1, 2 x2): the curvature is p0 p1 (1, -2)(1, -2)', so that r = +-eps (1, -2) / sqrt 5, the end that the start points to.

    With m = x1 - 2 x2 and p = 1 / (1 + e^-m), r moves m by +-eps sqrt 5; CE of class 0 is ln(1 + e^-m).
    """
    defense = built("defense", "vat", "defense.weight=3", "defense.eps=0.4", f"defense.xi={xi}")
    model = linear(torch.tensor([[1.0, 0.0], [0.0, 2.0]])).double()  # a difference quotient of step xi
    x = torch.rand(16, 1, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch = batch_of(x, torch.zeros(16, dtype=torch.int64))
    away = torch.tensor([1.0, -2.0], dtype=torch.float64) / math.sqrt(5)
    ends = (batch.rng.fold("vat").normal(2).double() @ away).sign()
    assert len(ends.unique()) == 2

    total = 0.0
    for (one, other), end in zip(x.view(16, 2).tolist(), ends.tolist(), strict=True):
        m = one - 2 * other
        p, q = (1 / (1 + math.exp(-z)) for z in (m, m + end * 0.4 * math.sqrt(5)))
        divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
        total += (math.log(1 + math.exp(-m)) + 3 * divergence) / 16
    torch.testing.assert_close(defense.moved(model, batch), x + 0.4 * ends.view(16, 1, 1, 1) * away, atol=1e-5, rtol=0)
    assert defense.loss(model, batch).item() == pytest.approx(total, abs=1e-5)


def random_problem() -> tuple[Defended, Batch]:
    generator = torch.Generator().manual_seed(3)
    model, x = linear(torch.randn(4, 9, generator=generator)), torch.rand(12, 1, 3, 3, generator=generator)
    return model, batch_of(x, torch.arange(12) % 4)


def test_many_iterations_end_at_the_leading_eigenvector(built: Callable[..., Any]) -> None:
    """Of W' (diag p - p p') W, by its own decomposition, at a distance of eps, outside the box too."""
    model, batch = random_problem()
    r = (built("defense", "vat", "defense.power_iterations=300").moved(model, batch) - batch.x).flatten(1).double()
    p, w = model(batch.x).double().softmax(1).detach(), model.get_parameter("network.1.weight").double().detach()
    values, vectors = torch.linalg.eigh(w.T @ (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]) @ w)
    apart = values[:, -2] < 0.9 * values[:, -1]
    assert apart.sum() >= 8
    torch.testing.assert_close(r.norm(dim=1), torch.full((12,), 2.1).double(), rtol=1e-5, atol=0)
    assert (F.cosine_similarity(r, vectors[:, :, -1]).abs()[apart] > 1 - 1e-6).all()


def test_one_iteration_is_not_yet_there_and_changes_more_than_a_random_direction(built: Callable[..., Any]) -> None:
    model, batch = random_problem()
    short, long = (built("defense", "vat", "defense.eps=0.1", f"defense.power_iterations={n}").moved(model, batch) for n in (1, 300))
    random = batch.x + 0.1 * F.normalize(batch.rng.fold("vat").normal(9)).view_as(batch.x)
    clean = model(batch.x).softmax(1)
    nothing, some, most = (kl_divergence(model(x), clean).mean() for x in (random, short, long))
    assert 1.5 * nothing < some < most


@pytest.mark.parametrize("clip", ["true", "false"])
def test_clip(clip: str, built: Callable[..., Any]) -> None:
    model, batch = random_problem()
    moved, free = (built("defense", "vat", f"defense.clip={word}").moved(model, batch) for word in (clip, "false"))
    assert free.min() < 0
    assert free.max() > 1
    torch.testing.assert_close(moved, free.clamp(0, 1) if clip == "true" else free)


def test_the_gradient(built: Callable[..., Any]) -> None:
    """With p and r held fixed: of CE (p - e_y) x', of the divergence (q - p)(x + r)', means over the images."""
    model, batch = random_problem()
    defense = built("defense", "vat", "defense.weight=2")
    gradient = torch.autograd.grad(defense.loss(model, batch), list(model.parameters()))[0]
    x, moved = batch.x.flatten(1), defense.moved(model, batch).flatten(1)
    with torch.no_grad():
        p, q = model(batch.x).softmax(1), model(moved).softmax(1)
        by_hand = ((p - F.one_hot(batch.y, 4)).T @ x + 2 * (q - p).T @ moved) / 12
    torch.testing.assert_close(gradient, by_hand, atol=1e-5, rtol=1e-4)


def test_no_label_moves_an_image_and_no_curvature_is_no_error(built: Callable[..., Any]) -> None:
    model, batch = random_problem()
    defense = built("defense", "vat")
    assert torch.equal(defense.moved(model, batch), defense.moved(model, batch_of(batch.x, 3 - batch.y)))
    flat = linear(torch.zeros(4, 9))
    r = defense.moved(flat, batch) - batch.x
    assert r.flatten(1).norm(dim=1).tolist() == pytest.approx([2.1] * 12, rel=1e-5)
    assert defense.loss(flat, batch).item() == pytest.approx(math.log(4))


class Passes(nn.Module):
    """A layer that notes the mode and the images of each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((self.training, x.detach()))
        return x


def test_clean_and_moved_images_pass_once_each_in_train_mode(built: Callable[..., Any]) -> None:
    passes, norm = Passes(), nn.BatchNorm2d(1)
    model = Defended(nn.Sequential(passes, norm, nn.Flatten(), nn.Linear(9, 4)))
    batch = random_problem()[1]
    for xi, searches in (("null", 1), ("0.01", 2)):
        passes.seen.clear()
        norm.reset_running_stats()
        defense = built("defense", "vat", f"defense.xi={xi}")
        moved = defense.moved(model.train(), batch)
        passes.seen.clear()
        defense.loss(model, batch)
        assert [mode for mode, _ in passes.seen] == [False] * searches + [True, True]
        torch.testing.assert_close(passes.seen[-2][1], batch.x)
        torch.testing.assert_close(passes.seen[-1][1], moved)
        assert norm.num_batches_tracked == 2
        assert model.training


def test_a_compiled_network_is_searched_too(run_objects: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled code cannot be differentiated twice, which the exact product asks for."""
    _, model, defense, _ = run_objects("defense=vat", "backbone=small_cnn")
    batch = batch_of(torch.rand(4, 1, 8, 8), torch.arange(4))
    expected = defense.moved(model, batch)
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))  # as inductor, but no C++ compiler needed
    model.network.compile(dynamic=False, backend="aot_eager")
    torch.testing.assert_close(defense.moved(model, batch), expected)
    model.attach_fast_copy(compiled=True)
    torch.testing.assert_close(defense.moved(model, batch), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("defense.weight=-1", "weight"),
        ("defense.eps=0", "eps"),
        ("defense.eps=inf", "eps"),
        ("defense.power_iterations=0", "power_iterations"),
        ("defense.xi=0", "xi"),
        ("defense.clip=1", "clip"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: expected .*, got "):
        built("defense", "vat", override)
