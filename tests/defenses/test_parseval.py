"""Parseval training: its step by hand, its fixed points, and what a sample leaves alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_lab.defenses.parseval import parseval_step
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended


def test_the_step_by_hand() -> None:
    """(1, 2) at beta .1: 1.1 (1, 2) - .1 * 5 (1, 2) = (.6, 1.2)."""
    torch.testing.assert_close(parseval_step(torch.tensor([[1.0, 2.0]]), 0.1), torch.tensor([[0.6, 1.2]]))


def test_singular_values_go_their_way_alone() -> None:
    """s becomes (1 + beta) s - beta s^3, and directions stay."""
    weights = torch.randn(4, 7, dtype=torch.float64)
    u, s, v = torch.linalg.svd(weights, full_matrices=False)
    torch.testing.assert_close(parseval_step(weights, 0.01), u @ torch.diag(1.01 * s - 0.01 * s**3) @ v)


def test_many_steps_end_at_orthonormal_rows(built: Callable[..., Any]) -> None:
    defense = built("defense", "parseval", "defense.beta=0.05", "defense.share=1")
    model = Defended(nn.Sequential(nn.Conv2d(2, 5, 3), nn.Flatten(), nn.Linear(20, 3))).double()
    for _ in range(1000):
        defense.after_step(model)
    for layer in (model.network[0], model.network[2]):
        rows = layer.weight.detach().flatten(1)
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("of", "dimension"), [("units", 0), ("inputs", 1)])
def test_a_sample_of_them_moves_and_the_others_stay(built: Callable[..., Any], of: str, dimension: int) -> None:
    defense = built("defense", "parseval", "defense.beta=0.01", f"defense.of={of}")
    model = Defended(nn.Linear(20, 10))
    weights, bias = (tensor.detach().clone() for tensor in (model.network.weight, model.network.bias))
    defense.after_step(model)
    changed = (model.network.weight != weights).any(dim=1 - dimension)
    assert int(changed.sum()) == round(0.3 * weights.shape[dimension])
    moved = weights.index_select(dimension, torch.nonzero(changed)[:, 0])
    expected = parseval_step(moved, 0.01) if of == "units" else parseval_step(moved.T, 0.01).T
    torch.testing.assert_close(model.network.weight.index_select(dimension, torch.nonzero(changed)[:, 0]), expected)
    assert torch.equal(model.network.bias, bias)
    first = changed
    defense.after_step(model)
    assert not torch.equal((model.network.weight != weights).any(dim=1 - dimension), first), "another sample at the next step"


@pytest.mark.parametrize(("key", "value"), [("beta", "0"), ("share", "0"), ("share", "1.5"), ("of", "columns")])
def test_a_wrong_knob_is_named(built: Callable[..., Any], key: str, value: str) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: expected"):
        built("defense", "parseval", f"defense.{key}={value}")
