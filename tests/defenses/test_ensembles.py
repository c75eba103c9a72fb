"""Defenses whose predictions average draws, and noise that can be switched off."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustbench_lab.evaluation.judging import drawn
from robustbench_lab.models.noise import noise_layers, without_noise


@pytest.mark.parametrize("name", ["adv_bnn", "rse"])
def test_a_prediction_is_the_log_of_the_mean_of_the_probabilities(name: str, run_objects: Callable[..., Any]) -> None:
    model = run_objects(f"defense={name}", "backbone=small_cnn", "defense.passes=5")[1].eval()
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad(), drawn(True, 0):
        mean_probability = torch.stack([model.network(x).softmax(dim=1) for _ in range(5)]).mean(dim=0)
    with torch.no_grad(), drawn(True, 0):
        torch.testing.assert_close(model(x), (5 * mean_probability).log())
    with torch.no_grad(), drawn(True, 1):
        assert not torch.allclose(model(x), (5 * mean_probability).log())
    with torch.no_grad(), drawn(True, 0):
        one = model.network(x)
    with torch.no_grad(), drawn(True, 0):
        assert torch.equal(model.one_draw()(x), one)


@pytest.mark.parametrize("name", ["adv_bnn", "learn2perturb", "pni", "pni_activation_a", "pni_activation_b", "pni_input", "rse"])
def test_without_noise_it_is_the_plain_network(name: str, run_objects: Callable[..., Any]) -> None:
    """Bit for bit, with the weights that it was built with; afterwards the noise is there again."""
    words = ("backbone=small_resnet", "dataset=digits")
    plain, model = run_objects(*words)[1].eval(), run_objects(*words, f"defense={name}")[1].eval()
    for layer in noise_layers(model):
        layer.active = True
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        with without_noise(model):
            assert torch.equal(model.network(x), plain.network(x))
        assert not torch.equal(model.network(x), plain.network(x))
