"""FGSM and PGD against Foolbox and ART: the same model, images and settings, compared image by image."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from steady import steady
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

BALLS = ("linf", "l2")
N, STEPS = 60, 5
EPS = {"linf": 0.1, "l2": 0.8}
STEP = {"linf": 0.03, "l2": 0.25}
ATTACKS = {
    "fgsm": ("fgsm",),
    "pgd": ("pgd", "attack.keep=last", "attack.random_start=none", f"attack.steps={STEPS}", "attack.relative_step_size=null"),
}


class Soft(nn.Module):
    """The trained model with logits divided by 5: no gradient is so small that ART's 1e-7 beside a norm would show.

    pale: for images squeezed into [0.3, 0.7].
    """

    def __init__(self, model: nn.Module, pale: bool = False) -> None:
        super().__init__()
        self.model, self.pale = model, pale

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - 0.3) / 0.4 if self.pale else x) / 5


@pytest.fixture(scope="module")
def soft(digits_model: Defended) -> nn.Module:
    return Soft(digits_model.network).eval()


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(N), N))
    return x, y


def ours(built: Callable[..., Any], name: str, budget: Budget, step: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    size = (f"attack.step_size={step}",) if name == "pgd" else ()
    return built("attack", *ATTACKS[name], *size)(model, x, y, budget, ImageRandom.of(torch.arange(N), 0))


def assert_same(model: nn.Module, search: Callable[[Tensor], Tensor], theirs: Tensor, x: Tensor, y: Tensor) -> None:
    """On all images but the few whose result hangs on the last bits."""
    x_adv, kept = search(x), steady(search, x, 1e-5)
    assert kept.sum() > 0.8 * N
    torch.testing.assert_close(x_adv[kept], theirs[kept], atol=1e-5, rtol=0)
    right = model(x).argmax(1) == y
    robust = model(x_adv).argmax(1) == y
    assert torch.equal(robust[kept], (model(theirs).argmax(1) == y)[kept])
    assert right.sum() > 0.9 * N
    assert 0.1 * N < robust.sum() < 0.9 * N  # an attack that breaks all or none compares nothing


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_foolbox(name: str, norm: str, soft: nn.Module, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    foolbox = pytest.importorskip("foolbox", reason="the parity extra is not installed")
    knobs = {"steps": STEPS, "abs_stepsize": STEP[norm], "random_start": False}
    attack = {
        ("fgsm", "linf"): lambda: foolbox.attacks.LinfFastGradientAttack(random_start=False),
        ("fgsm", "l2"): lambda: foolbox.attacks.L2FastGradientAttack(random_start=False),
        ("pgd", "linf"): lambda: foolbox.attacks.LinfProjectedGradientDescentAttack(**knobs),
        ("pgd", "l2"): lambda: foolbox.attacks.L2ProjectedGradientDescentAttack(**knobs),
    }[name, norm]()
    x, y = images
    model = foolbox.PyTorchModel(soft, bounds=(0, 1), device="cpu")
    _, theirs, broken = attack(model, x, y, epsilons=EPS[norm])
    assert torch.equal(soft(theirs).argmax(1) != y, broken)
    assert_same(soft, lambda x: ours(built, name, Budget(norm, EPS[norm]), STEP[norm], soft, x, y), theirs, x, y)


@pytest.mark.parametrize("norm", BALLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_art(name: str, norm: str, digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """In l2 on pale images that no step takes to the box's edge: there ART cuts by the box first and by the ball second."""
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    pale = norm == "l2"
    model, (x, y) = Soft(digits_model.network, pale).eval(), images
    x, eps, step = (0.3 + 0.4 * x, 0.29, 0.1) if pale else (x, EPS[norm], STEP[norm])
    estimator = classification.PyTorchClassifier(
        model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    knobs = {"norm": 2 if pale else np.inf, "eps": eps, "batch_size": N}
    if name == "fgsm":
        attack = evasion.FastGradientMethod(estimator, **knobs)
    else:
        attack = evasion.ProjectedGradientDescent(estimator, **knobs, eps_step=step, max_iter=STEPS, verbose=False)
    theirs = torch.from_numpy(attack.generate(x.numpy(), y.numpy()))
    model.eval()
    assert_same(model, lambda x: ours(built, name, Budget(norm, eps), step, model, x, y), theirs, x, y)
