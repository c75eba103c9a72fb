"""Seconds of defending: what is timed and what is not, on a clock that only models and attacks move."""

import numpy as np
import pytest
import torch
from evaluating import judged
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.metrics import seconds_of_defending
from robustbench_lab.metrics.seconds_of_defending import SecondsOfDefending
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


class Clock:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(seconds_of_defending, "time", clock)
    return clock


class SlowFront(Front):
    """Two seconds an image."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def transform(self, x: Tensor) -> Tensor:
        self.clock.now += 2 * len(x)
        return x


class SlowNetwork(nn.Module):
    """One second an image, and a hundred at its first pass over images of a shape; no pass may record gradients or be in train mode."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.warm = clock, set[torch.Size]()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.clock.now += len(x) + (0 if x.shape in self.warm else 100)
        self.warm.add(x.shape)
        return self.gain * x.flatten(1)[:, :2]


class SlowAttack(Attack):
    needs_finite_ball = False

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        model.model.network.clock.now += 1e6  # type: ignore[union-attr, operator]
        return x


def measured(clock: Clock, passes: int = 1) -> Outcome:
    images = torch.rand(5, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    data = ImageSet(images, images.flatten(1).argmax(1), torch.arange(5))
    model = Defended(SlowNetwork(clock), [SlowFront(clock)], passes=passes)
    measures = {"seconds_of_defending": SecondsOfDefending(as_published=False)}
    return judged(model, data, SlowAttack(), Budget("linf", 0.1), batch_size=3, measures=measures)


def test_fronts_and_network_count_but_neither_the_first_pass_nor_the_attack(clock: Clock) -> None:
    """2 + 1 seconds an image, in batches of 3 and of 2."""
    np.testing.assert_allclose(measured(clock).metrics, np.full((1, 5), 3.0))


def test_all_passes_of_a_prediction_count(clock: Clock) -> None:
    """The front transforms once, the network is asked four times."""
    np.testing.assert_allclose(measured(clock, passes=4).metrics, np.full((1, 5), 6.0))


def test_no_other_form_is_published() -> None:
    with pytest.raises(LabError, match=r"as_published: expected false"):
        SecondsOfDefending(as_published=True)
