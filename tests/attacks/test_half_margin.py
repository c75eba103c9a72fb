"""The margin that keeps half of the true logit: by hand, and where the whole one is led astray."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import half_margin
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


def test_by_hand() -> None:
    """Minus the distances 1, 3, 4. Of class 0: -3 + 1 / 2; of class 2: -1 + 4 / 2."""
    logits = torch.tensor([[-1.0, -3.0, -4.0], [-1.0, -3.0, -4.0]])
    assert half_margin(logits, torch.tensor([0, 2])).tolist() == [-2.5, 1.0]


class Nearest(nn.Module):
    """Classes at (1, 1) and (0.6, 0.4) of the plane; an image is its own features."""

    def forward(self, x: Tensor) -> Tensor:
        points = torch.tensor([[1.0, 1.0], [0.6, 0.4]])
        return -(x.flatten(1)[:, None] - points).norm(dim=2)


def test_away_from_the_label_is_not_towards_another_class(built: Callable[..., Any]) -> None:
    """At (0.97, 0.9), which lies below its own point and a little to its left, one unit vector leads away from that, further down, and
    another to the other point, to the left and down: the half margin has half of the first."""
    x, y = torch.tensor([0.97, 0.9]).view(1, 2, 1, 1), torch.tensor([0])
    gradients = {}
    for name in ("margin", "half_margin"):
        attack = built("attack", "pgd", f"attack.loss={name}")
        gradients[name] = attack.gradient(Nearest(), x, y, attack.loss_of(Nearest()))[0].flatten()
    away = torch.tensor([-0.03, -0.1]) / (0.03**2 + 0.1**2) ** 0.5
    towards = torch.tensor([0.6 - 0.97, 0.4 - 0.9]) / (0.37**2 + 0.5**2) ** 0.5
    torch.testing.assert_close(gradients["margin"], towards + away)
    torch.testing.assert_close(gradients["half_margin"], towards + away / 2)
    found = built("attack", "pgd", "attack.loss=half_margin", "attack.random_start=none")(
        Nearest(), x, y, Budget("linf", 0.3), ImageRandom.of(torch.arange(1), 0)
    )
    assert Nearest()(found).argmax(dim=1).item() == 1
