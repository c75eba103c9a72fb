"""The virtual adversarial perturbation: eigenvectors that are known, and ART from the same random start."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.attacks.vat import exact_product, finite_difference
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, per_image

N = 30
LONG = "attack.steps=300"


class Linear(nn.Module):
    """Logits scale * (w x + b), w [K, F]."""

    def __init__(self, w: Tensor, b: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.w, self.b, self.scale = w, b, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x.flatten(1) @ self.w.T + self.b)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 0)


def linear(classes: int, scale: float = 1.0) -> tuple[Linear, Tensor, Tensor]:
    """A linear softmax model and images far from the box's limits."""
    generator = torch.Generator().manual_seed(classes)
    w, b = torch.randn(classes, 9, generator=generator), torch.randn(classes, generator=generator)
    return Linear(w, b, scale), 0.4 + 0.2 * torch.rand(20, 1, 3, 3, generator=generator), torch.zeros(20, dtype=torch.int64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Up to the sign, which the eigenvector leaves open: [B]."""
    return nn.functional.cosine_similarity(a.double().flatten(1), b.double().flatten(1)).abs()


@pytest.mark.parametrize("xi", ["null", "0.001"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_direction_is_the_dominant_eigenvector(classes: int, xi: str, built: Callable[..., Any]) -> None:
    """H = W' (diag p - p p') W, by its own eigenvalues; with two classes the difference of the rows of W."""
    model, x, y = linear(classes)
    x_adv = built("attack", "vat", LONG, f"attack.xi={xi}")(model, x, y, Budget("l2", 0.1), streams(20))
    p, w = model(x).double().softmax(1), model.w.double()
    fisher = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    values, vectors = torch.linalg.eigh(w.T @ fisher @ w)
    apart = values[:, -2] < 0.9 * values[:, -1]
    assert apart.sum() >= 15
    assert (cosine(x_adv - x, vectors[:, :, -1])[apart] > (1 - 1e-5 if xi == "null" else 0.999)).all()
    if classes == 2:
        assert (cosine(x_adv - x, (w[0] - w[1]).expand(20, -1)) > 0.9999).all()
    torch.testing.assert_close(Budget("l2", 0.1).distance(x_adv, x), torch.full((20,), 0.1).double(), rtol=1e-4, atol=0)


def test_a_product_by_hand(built: Callable[..., Any]) -> None:
    """Two classes at p = (.5, .5), rows (1, 0) and (0, 2): F = .25 [[1, -1], [-1, 1]], H = .25 (1, -2)(1, -2)'; of (1, 0): .25 (1, -2)."""
    model, x = Linear(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([0.5, 0.0])), torch.full((1, 1, 1, 2), 0.5)
    d = torch.tensor([[[[1.0, 0.0]]]])
    for product, factor in ((exact_product(model, x)[0], 1.0), (finite_difference(model, x, 1e-2)[0], 1e-2)):
        assert (product(d) / factor).flatten().tolist() == pytest.approx([0.25, -0.5], abs=1e-3)


def test_the_exact_direction_does_not_vanish_where_the_model_is_sure(built: Callable[..., Any]) -> None:
    """p = (1, e^-30, e^-60) up to float32: only the runner-up makes the curvature, along the difference of its row and the first."""
    w = torch.tensor([[1.0, 2.0, -1.0], [-2.0, 1.0, 0.0], [1.0, 1.0, 3.0]])
    x = torch.full((4, 1, 1, 3), 0.5)
    model = Linear(w, torch.tensor([0.0, -30.0, -60.0]) - x[0].flatten() @ w.T)
    assert model(x).softmax(1)[0, 0] == 1
    x_adv = built("attack", "vat")(model, x, torch.zeros(4, dtype=torch.int64), Budget("l2", 0.1), streams(4))
    assert (cosine(x_adv - x, (w[0] - w[1]).expand(4, -1)) > 0.9999).all()


def test_both_signs_takes_the_end_where_the_output_changes_more(built: Callable[..., Any]) -> None:
    model, x, y = linear(3)
    budget, clean = Budget("l2", 0.3), model(x).softmax(1)
    one, both = (built("attack", "vat", f"attack.both_signs={signs}")(model, x, y, budget, streams(20)) for signs in ("false", "true"))
    other = budget.project(2 * x - one, x)
    change, other_change = (kl_divergence(model(images), clean) for images in (one, other))
    assert 3 < (other_change > change).sum() < 17  # the start decides, as a coin would
    torch.testing.assert_close(both, torch.where(per_image(other_change > change, x), other, one), atol=1e-6, rtol=0)


def test_no_label_is_looked_at(built: Callable[..., Any]) -> None:
    model, x, y = linear(3)
    attack = built("attack", "vat")
    results = [attack(model, x, labels, Budget("l2", 0.3), streams(20)) for labels in (y, y + 1, y + 2)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_model_without_curvature_keeps_the_start(built: Callable[..., Any]) -> None:
    x, y = torch.full((4, 1, 3, 3), 0.5), torch.zeros(4, dtype=torch.int64)
    flat = Linear(torch.zeros(2, 9), torch.zeros(2))
    x_adv = built("attack", "vat")(flat, x, y, Budget("l2", 0.3), streams(4))
    torch.testing.assert_close(Budget("l2", 0.3).distance(x_adv, x), torch.full((4,), 0.3).double(), rtol=1e-4, atol=0)
    assert (cosine(x_adv - x, streams(4).normal(1, 3, 3)) > 0.9999).all()


def test_passes(built: Callable[..., Any]) -> None:
    model, x, y = linear(3)
    for name, overrides, forward, backward in (
        ("vat", ("attack.both_signs=false",), 1, 6),  # the Jacobian's transpose once, then once for each product
        ("vat", (), 3, 6),
        ("vat_efficient_defenses", (), 6, 5),
    ):
        counted = Counted(model)
        built("attack", name, *overrides)(counted, x, y, Budget("l2", 0.3), streams(20))
        assert (counted.forward_images, counted.backward_images) == (forward * 20, backward * 20)


class Probabilities(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).softmax(1)


class Softer(nn.Module):
    """Logits over 5: a divergence that finite differences of float32 outputs can see."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) / 5


def test_art(
    digits_model: Defended,
    digits: tuple[ImageSet, ImageSet],
    built: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """ART takes the gradient at d itself, xi = 1, pixel by pixel by differences of .001; our start is put in the place of its own."""
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    model = Softer(digits_model.network)
    estimator = classification.PyTorchClassifier(
        Probabilities(model), nn.NLLLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    start = streams(N).normal(*x.shape[1:]).flatten(1).numpy()
    monkeypatch.setattr(np.random, "randn", lambda *shape: start)
    attack = evasion.VirtualAdversarialMethod(estimator, max_iter=2, finite_diff=1e-3, eps=0.8, batch_size=N, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy()))
    digits_model.eval()
    budget = Budget("l2", 0.8)
    x_adv = built("attack", "vat", "attack.steps=2", "attack.xi=1", "attack.both_signs=false")(model, x, y, budget, streams(N))
    assert nn.functional.cosine_similarity((x_adv - x).flatten(1), (theirs - x).flatten(1)).median() > 0.995
    robust, theirs_robust = (model(images).argmax(1) == y for images in (x_adv, theirs))
    assert (robust != theirs_robust).sum() <= 1
    assert 0.1 * N < robust.sum() < 0.9 * N


@pytest.mark.parametrize(
    ("override", "key"),
    [("attack.steps=0", "steps"), ("attack.xi=0", "xi"), ("attack.xi=small", "xi"), ("attack.both_signs=1", "both_signs")],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "vat", override)
