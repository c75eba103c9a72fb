"""FGSM with the smallest eps of a grid: by hand, against the published loop written out, and against ART."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BOX = Budget("linf", math.inf)
N = 60


class Above(nn.Module):
    """One pixel, class 1 above .5; with three classes, a third that never wins."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-score, score, *[score - 9] * (self.classes - 2)], dim=1)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 0)


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    return x, y


@pytest.mark.parametrize("classes", [2, 3])
def test_each_image_gets_the_first_eps_of_the_grid_that_changes_it(classes: int, built: Callable[..., Any]) -> None:
    """.48, .29, .47 and .15 need more than .02, .21, .03 and .35: steps of .1 give .1, .3, .1 and .4. A finite ball cuts them."""
    x, y = torch.tensor([0.48, 0.29, 0.47, 0.15]).view(-1, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    attack, model = built("attack", "minimal_fgsm", "attack.step=0.1"), Counted(Above(classes))
    x_adv = attack(model, x, y, BOX, streams(4))
    assert x_adv.flatten().tolist() == pytest.approx([0.58, 0.59, 0.57, 0.55], abs=1e-6)
    assert model.forward_images == 4 + 4 + (4 + 2 + 2 + 1)  # labels, gradient, and each eps for those that still stand
    inside = attack(Above(classes), x, y, Budget("linf", 0.25), streams(4))
    assert inside.flatten().tolist() == pytest.approx([0.58, 0.54, 0.57, 0.4], abs=1e-6)


def test_the_grid_ends_at_largest(built: Callable[..., Any]) -> None:
    x, y = torch.full((1, 1, 1, 1), 0.05), torch.zeros(1, dtype=torch.int64)
    for largest, reached in {0.3: 0.35, 0.25: 0.3, 0.1: 0.15}.items():
        x_adv = built("attack", "minimal_fgsm", "attack.step=0.1", f"attack.largest={largest}")(Above(), x, y, BOX, streams(1))
        assert x_adv.item() == pytest.approx(reached, abs=1e-6)


def test_an_image_that_is_wrong_already_stays(built: Callable[..., Any]) -> None:
    """With the true labels there is nothing to look for; with the predicted ones there is."""
    x, y = torch.full((1, 1, 1, 1), 0.48), torch.ones(1, dtype=torch.int64)
    for labels, pixel in {"ground_truth": 0.48, "predicted": 0.53}.items():
        assert built("attack", "minimal_fgsm", f"attack.labels={labels}")(Above(), x, y, BOX, streams(1)).item() == pytest.approx(pixel)


def test_the_published_loop_goes_on_with_the_wrong_images(built: Callable[..., Any]) -> None:
    """By hand, steps of .1: the first leaves images 1 and 3, the second both of them, at positions 0 and 1 among the two. The third hence
    moves images 0 and 1: image 0, which had changed, goes to .78, image 3 is forgotten at .35."""
    x, y = torch.tensor([0.48, 0.29, 0.47, 0.15]).view(-1, 1, 1, 1), torch.zeros(4, dtype=torch.int64)
    attack = built("attack", "minimal_fgsm_as_published", "attack.step=0.1")
    assert attack.batchwise
    assert not attack.minimal
    x_adv = attack(Above(), x, y, BOX, streams(4))
    assert x_adv.flatten().tolist() == pytest.approx([0.78, 0.59, 0.57, 0.35], abs=1e-6)


def published(model: nn.Module, x: Tensor, step: float, largest: float) -> Tensor:
    """What the published loop does, by positions: the sum of steps included."""
    predicted = model(x).argmax(1)
    moving = x.clone().requires_grad_()
    sign = torch.autograd.grad(nn.functional.cross_entropy(model(moving), predicted, reduction="sum"), moving)[0].sign()
    x_adv, positions, eps = x.clone(), np.arange(len(x)), step
    while len(positions) and eps <= largest:
        x_adv[positions] = (x[positions] + eps * sign[positions]).clamp(0, 1)
        positions = np.where((predicted[positions] == model(x_adv[positions]).argmax(1)).numpy())[0]
        eps += step
    return x_adv


def test_the_published_error_on_the_digits(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    x, y = images
    x_adv = built("attack", "minimal_fgsm_as_published")(digits_model, x, y, BOX, streams(N))
    torch.testing.assert_close(x_adv, published(digits_model, x, 0.05, 1.0), atol=1e-5, rtol=0)
    fixed = built("attack", "minimal_fgsm")(digits_model, x, y, BOX, streams(N))
    left, left_by_fixed = ((digits_model(images).argmax(1) == y).float().mean() for images in (x_adv, fixed))
    assert left > left_by_fixed + 0.1


def test_art(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y = images
    estimator = classification.PyTorchClassifier(
        digits_model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    attack = evasion.FastGradientMethod(estimator, eps=1.0, eps_step=0.05, minimal=True, batch_size=N)
    theirs = torch.from_numpy(attack.generate(x.numpy()))
    digits_model.eval()
    x_adv = built("attack", "minimal_fgsm", "attack.largest=0.95")(digits_model, x, y, BOX, streams(N))
    torch.testing.assert_close(x_adv, theirs, atol=1e-5, rtol=0)
    assert len(BOX.distance(x_adv, x).mul(20).round().unique()) > 3


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("attack.step=0", "step"),
        ("attack.step=true", "step"),
        ("attack.largest=0.01", "largest"),
        ("attack.largest=1.5", "largest"),
        ("attack.version=published", "version"),
        ("attack.labels=none", "labels"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "minimal_fgsm", override)
