"""Points in the plane: which way the axes lie, and which points a defense added."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.defenses.base import Defense
from robustbench_lab.evaluation.keepers.plane import GRID, plane_of
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.build import dataset_of


class Right(nn.Module):
    """Class 1 to the right of x = .5: logits (0, 10 (x - .5))."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), self.gain * (x[:, 0, 0, 0] - 0.5)], dim=1)


def points() -> ImageSet:
    x = torch.tensor([[0.1, 0.9], [0.4, 0.5], [0.8, 0.2]]).view(3, 2, 1, 1)
    return ImageSet(x, torch.tensor([0, 0, 1]), torch.arange(3))


def test_columns_are_x_and_rows_are_y() -> None:
    found = plane_of(Defended(Right()), Defense(), points(), None, 0)
    assert found["probability"].shape == (GRID, GRID)
    assert (np.ptp(found["probability"], axis=0) == 0).all()
    np.testing.assert_allclose(
        found["probability"][0, [0, (GRID - 1) // 2, -1]], [1 / (1 + np.exp(5)), 0.5, 1 / (1 + np.exp(-5))], rtol=1e-5
    )
    np.testing.assert_allclose(found["points"], [[0.1, 0.9], [0.4, 0.5], [0.8, 0.2]])
    assert found["labels"].tolist() == [0, 0, 1]
    assert found["extra"].shape == (0, 2)


def test_noisy_copies_are_added_points(built: Callable[..., Any]) -> None:
    defense = built("defense", "gda", "defense.noisy_copies=2", "defense.sigma=0.01")
    found = plane_of(Defended(Right()), defense, points(), None, 0)
    assert found["extra"].shape == (6, 2), "the originals among the copies are no added points"
    assert found["extra_labels"].tolist() == [0, 0, 1, 0, 0, 1]
    assert np.abs(found["extra"] - np.tile(found["points"], (2, 1))).max() < 0.05
    again = plane_of(Defended(Right()), defense, points(), None, 0)["extra"]
    np.testing.assert_array_equal(again, found["extra"])


def test_adversarial_examples_of_another_run_are_added_points(built: Callable[..., Any]) -> None:
    """Against x alone, a step of .1 in l2 goes straight left or right, as the label says."""
    words = ("defense.budget.norm=l2", "defense.budget.eps=0.1", "defense.attack.labels=ground_truth")
    defense = built("defense", "static_adversarial_training", *words)
    found = plane_of(Defended(Right()), defense, points(), Defended(Right()), 0)
    np.testing.assert_allclose(found["extra"], [[0.2, 0.9], [0.5, 0.5], [0.7, 0.2]], atol=1e-6)


def test_the_toy_datasets_are_points_in_the_plane(tmp_path: Any) -> None:
    from robustbench_lab.evaluation.keepers.plane import SHAPE
    from robustbench_lab.settings.conf import compose, plain

    for name in ("circles", "moons"):
        dataset = dataset_of(plain(compose("train", [f"dataset={name}"])[0], "dataset"), Dataset)
        assert dataset.load("test", root=tmp_path, download=False, workers=0).shape == SHAPE
