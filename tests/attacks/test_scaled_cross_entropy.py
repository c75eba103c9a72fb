"""Cross-entropy on logits of unit standard deviation: by hand, at any scale, and where others are blind."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import scaled_cross_entropy
from robustbench_lab.models.defended import cross_entropy
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


def test_by_hand() -> None:
    """Logits 1, 3: mean 2, deviation 1. Logits 0, 0, 6: mean 2, variance (4 + 4 + 16) / 3 = 8."""
    two = scaled_cross_entropy(torch.tensor([[1.0, 3.0]]), torch.tensor([0]))
    assert two.item() == pytest.approx(math.log(1 + math.exp(2)))
    three = scaled_cross_entropy(torch.tensor([[0.0, 0.0, 6.0]]), torch.tensor([2]))
    assert three.item() == pytest.approx(math.log(1 + 2 * math.exp(-6 / math.sqrt(8))))
    mixed = scaled_cross_entropy(torch.tensor([[1.0, 3.0]]), torch.tensor([[0.5, 0.5]]))
    assert mixed.item() == pytest.approx(math.log(1 + math.exp(2)) - 1)


def test_the_gradient_is_that_of_cross_entropy_at_a_fixed_temperature() -> None:
    logits = torch.randn(6, 5, dtype=torch.float64).requires_grad_()
    y = torch.arange(6) % 5
    (ours,) = torch.autograd.grad(scaled_cross_entropy(logits, y).sum(), logits)
    deviation = logits.detach().std(dim=1, correction=0, keepdim=True)
    (expected,) = torch.autograd.grad(cross_entropy(logits / deviation, y).sum(), logits)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1e4])
def test_scale_and_shift_of_the_logits_do_not_matter(scale: float) -> None:
    logits, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
    torch.testing.assert_close(scaled_cross_entropy(scale * (logits + 7), y), scaled_cross_entropy(logits, y))


def test_equal_logits_have_a_finite_gradient() -> None:
    logits = torch.full((1, 4), 3.0, requires_grad=True)
    value = scaled_cross_entropy(logits, torch.tensor([1]))
    assert value.item() == pytest.approx(math.log(4))
    assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


class Steep(nn.Module):
    """Logits so large that the softmax is 1 in float32, and cross-entropy has no slope."""

    def forward(self, x: Tensor) -> Tensor:
        score = 1e4 * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-score, score], dim=1)


def test_it_sees_a_slope_where_cross_entropy_is_saturated(built: Callable[..., Any]) -> None:
    x, y = torch.full((1, 1, 1, 1), 0.45), torch.tensor([0])
    rng, ball = ImageRandom.of(torch.arange(1), 0), Budget("linf", 0.1)
    moved = {}
    for loss in ("ce", "ce_scaled"):
        knobs = ["attack.random_start=none", f"attack.loss={loss}"]
        moved[loss] = built("attack", "pgd", *knobs)(Steep(), x, y, ball, rng).item() - x.item()
    assert moved == {"ce": 0.0, "ce_scaled": pytest.approx(0.1)}
