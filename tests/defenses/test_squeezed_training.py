"""Training on squeezed images alone: what the loss sees, and that nothing is squeezed in test."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.squeezed_training import SqueezedTraining
from robustbench_lab.errors import LabError
from robustbench_lab.randomness import ImageRandom


class Sees(nn.Module):
    """Remembers the images that it is given; logits [gain * sum, 0]."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.last = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.last = x.detach().clone()
        total = self.gain * x.flatten(1).sum(dim=1, keepdim=True)
        return torch.cat([total, torch.zeros_like(total)], dim=1)


X = torch.tensor([0.2, 0.8, 0.45, 1.0]).view(1, 1, 2, 2)


def batch() -> Batch:
    ids = torch.zeros(1, dtype=torch.int64)
    return Batch(X, ids, ids, ids, 0, ImageRandom.of(ids, 0), ImageRandom.of(ids, 0))


@pytest.mark.parametrize(("depth", "levels"), [(1, [0, 1, 0, 1]), (3, [1 / 7, 6 / 7, 3 / 7, 1])])
def test_the_loss_sees_squeezed_images_and_the_test_sees_all(depth: int, levels: list[float], built: Callable[..., Any]) -> None:
    defense = built("defense", "squeezed_training", f"defense.bit_depth={depth}")
    model = defense.build(Sees)
    loss = defense.loss(model, batch())
    assert model.network.last.flatten().tolist() == pytest.approx(levels)
    assert torch.equal(defense.augmented(batch()), model.network.last)
    assert loss.item() == pytest.approx(torch.tensor(-sum(levels)).exp().log1p().item())
    for mode in (True, False):
        model.train(mode)(X)
        assert torch.equal(model.network.last, X)
    assert not len(model.fronts)


@pytest.mark.parametrize("depth", [0, 9, -1, 1.5, True, "1"])
def test_a_wrong_bit_depth_is_named(depth: object) -> None:
    with pytest.raises(LabError, match=r"^bit_depth: expected a whole number >= 1 and <= 8, got "):
        SqueezedTraining(bit_depth=depth)  # type: ignore[arg-type]
