"""Accuracy in train mode: by the batch's statistics, by hand, and without a trace."""

import pytest
import torch
from torch import nn

from robustbench_lab.errors import LabError
from robustbench_lab.metrics.train_mode_accuracy import TrainModeAccuracy, right_in_train_mode


class Above(nn.Module):
    """Class 1 where an image's only pixel lies above the mean: the running one, 0.9, or in train mode that of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1, affine=False)
        self.norm.running_mean.fill_(0.9)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = self.norm(x.flatten(1))
        return torch.cat([-value, value], dim=1)


def test_by_hand() -> None:
    """Pixels 0.1, 0.3, 0.8 have the mean 0.4: by it the third alone is of class 1; by the running mean none is."""
    model, x = Above().eval(), torch.tensor([0.1, 0.3, 0.8]).view(3, 1, 1, 1)
    y = torch.tensor([0, 1, 1])
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    assert (model(x).argmax(dim=1) == y).tolist() == [True, False, False]
    assert right_in_train_mode(model, x, y).tolist() == [1, 0, 1]
    assert not model.training
    assert not model.norm.training
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.state_dict().items())


def test_a_model_that_fails_is_left_as_it_was() -> None:
    model = Above().eval()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        right_in_train_mode(model, torch.zeros(1, 1, 1, 1), torch.tensor([0]))
    assert not model.training


def test_there_is_no_other_form() -> None:
    with pytest.raises(LabError, match=r"^as_published: expected true"):
        TrainModeAccuracy(as_published=False)
