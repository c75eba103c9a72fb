"""The running average of the parameters: by hand, resumed bit for bit, and what the run's weights are."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.training.averaging import Average
from robustbench_lab.training.checkpoints import load_state, save_state
from robustbench_lab.training.loop import fit
from robustbench_lab.training.recipe import Exponential

Objects = Callable[..., Any]


def test_an_average_by_hand() -> None:
    """Begun at 2, it sees 4 and then 8: 0.75 x 2 + 0.25 x 4 = 2.5, and 0.75 x 2.5 + 0.25 x 8 = 3.875."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    average = Average(Defended(layer), 0.75, {})
    for value, expected in ((4.0, 2.5), (8.0, 3.875)):
        nn.init.constant_(layer.weight, value)
        average.update()
        assert average.snapshot()["network.weight"].item() == expected
        with average.shown():
            assert layer.weight.item() == expected
        assert layer.weight.item() == value
        assert average.snapshot()["network.weight"].item() == expected


def test_there_is_none_unless_it_is_asked_for(run_objects: Objects, digits: tuple[ImageSet, ImageSet]) -> None:
    _, model, defense, recipe = run_objects("backbone=small_cnn", "training.epochs=1")
    state = fit(defense, model, digits[0].subset(torch.arange(40)), recipe, 0)
    assert not state.averaged
    assert run_at_words(["+training.averaging=null"]).fingerprint == run_at_words([]).fingerprint
    assert run_at_words(["+training.averaging=0.9"]).fingerprint != run_at_words([]).fingerprint


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_runs_weights_are_the_average_and_a_resumed_one_has_the_same(
    keep: str, tmp_path: Path, run_objects: Objects, digits: tuple[ImageSet, ImageSet]
) -> None:
    words = ["backbone=small_resnet", "+training.averaging=0.9", "training.epochs=3", "training.validation=0.2", f"training.keep={keep}"]
    images, states = digits[0].subset(torch.arange(100)), []
    _, model, defense, recipe = run_objects(*words)
    last = fit(defense, model, images, recipe, 0, save=states.append)
    _, plain, _, _ = run_objects(*words)
    raw = fit(defense, plain, images, replace(recipe, averaging=None), 0)
    assert all(torch.equal(raw.model[name], tensor) for name, tensor in last.model.items()), "the average leaves training as it is"
    names = {name for name, _ in model.named_parameters()}
    assert set(last.averaged) == names
    kept = (last.best if keep == "best" else last.model | last.averaged).items()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in kept)
    assert not torch.equal(model.state_dict()["network.backbone.head.weight"], last.model["network.backbone.head.weight"])

    path = tmp_path / "state.safetensors"
    save_state(path, states[0], "a run")
    _, resumed, _, _ = run_objects(*words)
    again = fit(defense, resumed, images, recipe, 0, state=load_state(path, "a run"))
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert [row["validation_accuracy"] for row in again.history] == [row["validation_accuracy"] for row in last.history]


def test_an_exponential_schedule_by_hand() -> None:
    schedule = Exponential(factor=0.25)
    assert [schedule(epoch, 10) for epoch in (0, 0.5, 1, 3)] == [1, 0.5, 0.25, 1 / 64]
