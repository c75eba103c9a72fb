"""`lab.attack`: what conf/attack/ has, on any module."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lab as lab
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.conf import choices
from robustbench_lab.settings.standalone import choice

N = 60
BALL = lab.Budget("linf", 0.08)


@pytest.fixture(scope="module")
def net(tiny_net: Callable[..., Defended]) -> nn.Module:
    return nn.Sequential(tiny_net().network)


@pytest.fixture(scope="module")
def images(net: nn.Module, edge_images: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """All right but every tenth."""
    x = edge_images(N)
    with torch.no_grad():
        y = net.eval()(x).argmax(1)
    y[::10] = (y[::10] + 1) % 3
    return x, y


def test_examples_are_those_of_an_evaluation(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    """For one attack and for a list; an image that was wrong before is attacked here, and is left alone there."""
    x, y = images
    for attack in (lab.attack("pgd", steps=5), lab.attack("worst_of", attacks={"pgd": {"steps": 5, "loss": "margin"}})):
        result = lab.evaluate(net, x, y, attack=attack, eps=0.08, panel=False, keep_x_adv=True, seed=4, batch_size=N)
        x_adv = attack(net, x, y, BALL, seed=4)
        assert torch.equal(x_adv[result.clean], result.x_adv[result.clean])
        assert 5 < result.robust.sum() < result.clean.sum() - 5
        with torch.no_grad():
            assert torch.equal((net.eval()(x_adv).argmax(1) == y) & torch.from_numpy(result.clean), torch.from_numpy(result.robust))
        assert not torch.equal(attack(net, x, y, BALL, seed=5), x_adv)
        as_array = attack(net, x.numpy(), y.numpy(), BALL, seed=4)
        assert np.array_equal(as_array, x_adv.numpy())


def test_of_a_list_each_image_keeps_what_broke_it(net: nn.Module, images: tuple[Tensor, Tensor]) -> None:
    x, y = images
    names = ("fgsm", "pgd")
    both = lab.attack("worst_of", attacks={"pgd": {"steps": 10}})(net, x, y, BALL)
    alone = [lab.attack(name, **({"steps": 10} if name == "pgd" else {}))(net, x, y, BALL) for name in names]
    with torch.no_grad():
        right = [net(found).argmax(1) == y for found in (*alone, both)]
    assert torch.equal(both[~right[0]], alone[0][~right[0]])
    assert (right[2] & ~right[0]).sum() == 0
    assert right[2].sum() < right[0].sum()


@pytest.mark.parametrize("name", ["pgd", "autoattack", "strongest_fm"])
def test_a_choice_is_what_hydra_composes(name: str) -> None:
    assert choice("attack", name) == alone("attack", name)


def test_every_choice_is_there() -> None:
    for name in choices("attack"):
        assert lab.attack(name).config == choice("attack", name)


def test_knobs() -> None:
    assert lab.attack("pgd", step_size="2/255", relative_step_size=None, steps=np.int64(7)).search.step_size == 2 / 255  # type: ignore[attr-defined]
    square = lab.attack("autoattack", attacks={"square": {"queries": 7}}).search.attacks["square"]  # type: ignore[attr-defined]
    assert square.queries == 7
    for name, knobs, message in (
        ("pdg", {}, "attack: there is no 'pdg'; the nearest is pgd; there are apgd_ce,"),
        ("pgd", {"step": 3}, "attack.step: attack=pgd has no such knob; the nearest is steps; it has loss, labels"),
        ("pgd", {"_target_": "os.system"}, "attack._target_: attack=pgd has no such knob"),
        ("pgd", {"steps": 0}, "attack.steps: expected a whole number >= 1, got 0"),
        ("pgd", {"loss": "hinge"}, "attack.loss: expected one of"),
        ("autoattack", {"attacks": {"sqare": {}}}, "attack.attacks.sqare: attack=autoattack has no such knob; the nearest is square"),
        ("autoattack", {"attacks": {"square": {"query": 1}}}, "attack.attacks.square.query: .* the nearest is queries"),
    ):  # fmt: skip
        with pytest.raises(lab.LabError, match=message):
            lab.attack(name, **knobs)
    with pytest.raises(lab.LabError, match="budget: expected a Budget, such as"):
        lab.attack("fgsm")(nn.Flatten(), torch.zeros(1, 1, 1, 2), torch.zeros(1, dtype=torch.long), 0.1)


def test_the_door_is_light() -> None:
    """Importing it loads neither torch nor Hydra; what it gives is listed, and everything else is an AttributeError."""
    code = (
        "import sys, robustbench_lab as lab\n"
        "print({'torch', 'hydra', 'numpy'} & set(sys.modules), set(lab.__all__) <= set(dir(lab)), hasattr(lab, 'train'))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "set() True False\n"
    assert all(getattr(lab, name).__name__ == name for name in lab.__all__)
