"""Feature squeezing: what the network sees, what an attack differentiates, and what each threat model shows."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.feature_squeezing import FeatureSqueezing
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import attacker_view
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom


class Squares(nn.Module):
    """Logits [sum of squares, 0]: the gradient of the first at x is 2 x."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        first = self.gain * x.flatten(1).square().sum(dim=1, keepdim=True)
        return torch.cat([first, torch.zeros_like(first)], dim=1)


X = torch.tensor([0.2, 0.8]).view(1, 1, 1, 2)  # with 1 bit: 0 and 1; with 3: 1/7 and 6/7


def test_training_and_test_see_the_squeezed_image(built: Callable[..., Any]) -> None:
    """1 bit: logits [1, 0], cross-entropy of class 0 ln(1 + 1/e)."""
    defense = built("defense", "feature_squeezing")
    model = defense.build(Squares)
    ids = torch.zeros(1, dtype=torch.int64)
    batch = Batch(X, ids, ids, ids, 0, ImageRandom.of(ids, 0), ImageRandom.of(ids, 0))
    assert model.train()(X).tolist() == [[1, 0]]
    assert model.eval()(X).tolist() == [[1, 0]]
    assert defense.loss(model, batch).item() == pytest.approx(math.log(1 + math.exp(-1)))
    three = built("defense", "feature_squeezing", "defense.bit_depth=3").build(Squares)
    assert three(X)[0, 0].item() == pytest.approx((1 / 49) + (36 / 49))
    assert not list(three.fronts.parameters())


def gradient(view: nn.Module) -> list[float]:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(view(x)[:, 0].sum(), x)[0].flatten().tolist()


def test_views(built: Callable[..., Any]) -> None:
    """White box: the network's gradient at the squeezed image, 2 * (0, 1). Gray: the network alone, 2 * (.2, .8)."""
    model = built("defense", "feature_squeezing").build(Squares)
    white, gray = (attacker_view(built("threat_model", name), model, None, False) for name in ("white", "gray_learned"))
    assert gradient(white) == pytest.approx([0, 2])
    assert gradient(gray) == pytest.approx([0.4, 1.6])
    assert gray(X)[0, 0].item() == pytest.approx(0.68)
    assert isinstance(gray, Defended)
    assert gray.network is model.network


@pytest.mark.parametrize("depth", [0, 9, -1, 1.5, True, "1"])
def test_a_wrong_bit_depth_is_named(depth: object) -> None:
    with pytest.raises(LabError, match=r"^bit_depth: expected a whole number >= 1 and <= 8, got "):
        FeatureSqueezing(bit_depth=depth)  # type: ignore[arg-type]


def test_a_wrong_bit_depth_is_named_in_full(built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^defense\.bit_depth: .*got 9"):
        built("defense", "feature_squeezing", "defense.bit_depth=9")
