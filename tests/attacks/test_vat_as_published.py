"""VAT as Efficient Defenses' code called it: against a transcription of CleverHans' functions in NumPy, and its two ends by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

N, FEATURES, CLASSES = 12, 6, 4


class Linear(nn.Module):
    def __init__(self, w: Tensor) -> None:
        super().__init__()
        self.w = w

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w.T


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def l2_batch_normalize(d: np.ndarray) -> np.ndarray:
    d = d / (1e-12 + np.abs(d).max(axis=1, keepdims=True))
    return d / np.sqrt(1e-6 + (d**2).sum(axis=1, keepdims=True))


def transcribed(w: np.ndarray, x: np.ndarray, d: np.ndarray, eps: float, steps: int, xi: float, images: int) -> np.ndarray:
    """x + d of a linear network: the gradient of mean KL(softmax(p) || softmax(q)), with q = softmax(w (x + xi d)), by hand."""
    target = softmax(softmax(x @ w.T))
    for _ in range(steps):
        q = softmax((x + xi * l2_batch_normalize(d)) @ w.T)
        outer = (softmax(q) - target) / images  # slope of the divergence at q
        inner = q * (outer - (q * outer).sum(axis=1, keepdims=True))  # at the logits
        d = inner @ w
    return x + eps * l2_batch_normalize(d)


@pytest.mark.parametrize("images", [1, 12, 10**12, 10**14])
def test_as_cleverhans_has_it(images: int, built: Callable[..., Any]) -> None:
    """In double precision, with an xi that it resolves; the more images, the shorter the change."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(CLASSES, FEATURES, generator=generator).double()
    x = (0.4 + 0.2 * torch.rand(N, 1, 2, 3, generator=generator)).double()
    rng = ImageRandom.of(torch.arange(N), 0)
    attack = built("attack", "vat_as_published", "attack.xi=1e-2", f"attack.averaged_over={images}")
    ours = attack(Linear(w), x, torch.zeros(N, dtype=torch.int64), Budget("l2", 0.1), rng)
    start = rng.normal(1, 2, 3).double().flatten(1).numpy()
    theirs = transcribed(w.numpy(), x.flatten(1).numpy(), start, 0.1, 5, 1e-2, images)
    np.testing.assert_allclose(ours.flatten(1).numpy(), theirs, rtol=0, atol=1e-7)
    lengths = Budget("l2", 0.1).distance(ours, x)
    assert (lengths > 0.0999).all() if images <= 12 else (lengths < 0.0999).any()
    assert images < 10**14 or (lengths < 1e-3).all()


def test_who_is_sure_hardly_changes(built: Callable[..., Any]) -> None:
    """At the published knobs, in single precision: the image between two classes goes the whole way, the one far from all stays."""
    w = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]) * 30
    x = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).view(2, 1, 1, 2)
    attack = built("attack", "vat_as_published", "attack.averaged_over=60000")
    x_adv = attack(Linear(w), x, torch.zeros(2, dtype=torch.int64), Budget("l2", 0.1), ImageRandom.of(torch.arange(2), 0))
    between, sure = Budget("l2", 0.1).distance(x_adv, x).tolist()
    assert between == pytest.approx(0.1, abs=1e-3)
    assert sure < 1e-3
