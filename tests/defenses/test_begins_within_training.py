"""A defense that begins late must begin before training ends, or it is another one."""

from collections.abc import Callable
from typing import Any

import pytest

from robustbench_lab.errors import LabError

LATE = {"fm": 20, "fm_quick": 2, "pni": 5, "adversarial_training_pni": 5, "learn2perturb": 20}


@pytest.mark.parametrize(("name", "start"), LATE.items())
def test_training_must_last_until_the_adversarial_part_begins(name: str, start: int, built: Callable[..., Any]) -> None:
    """Epochs count from 0: the one of number `start` is the last of start + 1."""
    built("defense", name).check_epochs(start + 1)
    message = rf"^defense\.start_epoch: expected less than training\.epochs={start}, .*adversarial.*, got {start}$"
    with pytest.raises(LabError, match=message):
        built("defense", name).check_epochs(start)


def test_noise_must_begin_within_training(built: Callable[..., Any]) -> None:
    defense = built("defense", "learn2perturb", "defense.adversarial_weight=0")
    defense.check_epochs(11)
    with pytest.raises(LabError, match=r"^defense\.noise_start_epoch: expected less than training\.epochs=10, .*noise begins.*, got 10$"):
        defense.check_epochs(10)


@pytest.mark.parametrize("name", ["fm", "pni"])
def test_without_an_adversarial_part_there_is_nothing_to_begin(name: str, built: Callable[..., Any]) -> None:
    built("defense", name, "defense.adversarial_weight=0").check_epochs(1)


@pytest.mark.parametrize("name", ["standard", "trades", "adversarial_training", "gda", "rse", "adv_bnn"])
def test_others_begin_at_once(name: str, built: Callable[..., Any]) -> None:
    built("defense", name).check_epochs(1)
