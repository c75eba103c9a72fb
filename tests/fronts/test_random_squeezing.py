"""Squeezing that is drawn anew, and the attacker who takes its mean."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import attacker_view
from robustbench_lab.fronts.median import median
from robustbench_lab.fronts.random_squeezing import RandomSqueezing
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.transforms.bit_depth import reduce_bit_depth


def test_each_pass_is_one_of_the_squeezings() -> None:
    front, x = RandomSqueezing([1, 8], [1, 3]), (torch.rand(2, 1, 6, 6) * 255).round() / 255
    expected = [median(reduce_bit_depth(x, bits), window) for bits in (1, 8) for window in (1, 3)]
    found = set()
    for seed in range(40):
        torch.manual_seed(seed)
        shown = front(x)
        found |= {number for number, one in enumerate(expected) if torch.equal(shown, one)}
    assert found == {0, 1, 2, 3}


def test_the_guessing_attacker_sees_what_is_learned_behind_a_squeezing_of_her_own(
    run_objects: Callable[..., Any], built: Callable[..., Any]
) -> None:
    model = run_objects("defense=preprocessed", "front@defense.fronts=[bit_depth]", "backbone=small_cnn")[1].eval()
    threat_model = built("threat_model", "gray_expectation")
    view = attacker_view(threat_model, model, None, undefended=False)
    assert [type(front) for front in view.fronts] == [RandomSqueezing]
    assert view.stochastic
    assert not model.stochastic
    assert view.network is model.network
    with pytest.raises(LabError, match=r"^threat_model.guess.bits\[0\]: expected a whole number >= 1 and <= 8"):
        attacker_view(built("threat_model", "gray_expectation", "threat_model.guess.bits=[9]"), model, None, undefended=False)
    with pytest.raises(LabError, match=r"^threat_model.guess: expected null with sees=defended"):
        built("threat_model", "gray_expectation", "threat_model.sees=defended")


def test_how_often_she_draws_is_in_the_evaluation_s_name() -> None:
    def named(threat: str, samples: int) -> str:
        words = ["defense=preprocessed", f"threat_model={threat}", f"eot_samples={samples}"]
        return evaluation_of(*compose("evaluate", words), words).fingerprint

    names = {(threat, samples): named(threat, samples) for threat in ("gray_learned", "gray_expectation") for samples in (1, 5)}
    assert names["gray_learned", 1] == names["gray_learned", 5]
    assert names["gray_expectation", 1] != names["gray_expectation", 5]
