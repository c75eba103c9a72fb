"""without_noise=true: the network that is left, and the attack that sees it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from evaluating import judged

from robustbench_lab.attacks.base import is_random
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import silenced
from robustbench_lab.models.defended import frozen
from robustbench_lab.models.noise import noise_layers, without_noise
from robustbench_lab.threats import Budget

NOISY = ["pni", "pni_activation_a", "pni_input", "learn2perturb", "adv_bnn", "rse"]


@pytest.mark.parametrize("name", NOISY)
def test_one_pass_of_the_network_that_was_learned(
    name: str, run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet], built: Callable[..., Any]
) -> None:
    """As the layers without their noise answer, clean and through the copy that attacks differentiate; and drawn once."""
    noisy = run_objects(f"defense={name}", "backbone=small_resnet")[1].eval()
    for layer in noise_layers(noisy):
        layer.active = True  # some begin without
    data = digits[1].subset(torch.arange(12))
    x, y, _ = next(data.batches(torch.arange(12), 12))
    with torch.no_grad():
        assert not torch.equal(noisy(x), noisy(x))
        with without_noise(noisy):
            expected = noisy.network(noisy.fronts(x))
    model = silenced(noisy)
    assert (is_random(model), model.passes, len(list(model.parameters()))) == (False, 1, len(list(noisy.parameters())))
    model.attach_fast_copy()
    with torch.no_grad(), frozen(model) as fast:
        torch.testing.assert_close(model(x), expected)
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)
    outcome = judged(model, data, built("attack", "fgsm"), Budget("linf", 0.1), batch_size=12, draws=7, eot_samples=5)
    assert outcome.clean.tolist() == (expected.argmax(1) == y).tolist()
    assert set(outcome.right.tolist()) <= {0.0, 1.0}
    assert not any(module.training for module in model.modules())  # as it was given
    assert outcome.forward.tolist() == outcome.backward.tolist() == [int(outcome.clean.sum())]


def test_a_defense_without_noise_is_refused(run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^without_noise: expected false for a defense without noise, got true; model: expected layers"):
        silenced(run_objects("defense=fm", "backbone=small_cnn")[1])
