"""Repeated attacks, and noisy defenses without their noise, from the command line to the record."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def records(outputs: Path) -> list[tuple[Path, dict[str, Any]]]:
    found = sorted((outputs / "runs").glob("*/evaluate/*/record.json"))
    return [(path.parent, json.loads(path.read_text())) for path in found]


def test_the_runs_of_a_repeated_attack_stand_in_the_record(lab, trained, outputs, tiny):
    ended = lab("evaluate", *tiny, "attack=pgd_fm_five", "attack.times=3", "budget.eps=0.06", "panel=none")
    assert ended.status == 0, ended.err
    ((folder, record),) = records(outputs)
    runs = record["runs"]["accuracies"]
    assert len(runs) == 3
    assert record["clean_accuracy"] > min(runs) >= record["robust_accuracy"] > 0
    assert [stage["attack"] for stage in record["stages"]] == ["run_1", "run_2", "run_3"]
    assert {stage["forward_per_attacked_image"] for stage in record["stages"]} == {7.0}, "each run attacks every image"
    with np.load(folder / "outcome.npz", allow_pickle=False) as outcome:
        assert outcome["runs"].mean(axis=1).tolist() == pytest.approx(runs)
        assert np.array_equal(outcome["runs"].min(axis=0) == 1, outcome["robust"])


def test_a_noisy_defense_without_its_noise_is_another_evaluation(lab, outputs, tiny):
    words = [*tiny, "defense=pni", "defense.adversarial_weight=0"]
    attacked = ["evaluate", *words, "attack=fgsm", "eot_samples=2", "verdict_draws=2"]
    assert lab("train", *words).status == 0
    for more in ([], ["without_noise=true"], ["without_noise=false"]):
        ended = lab(*attacked, *more)
        assert ended.status == 0, ended.err
    (first, second) = sorted((record for _, record in records(outputs)), key=lambda record: "without_noise" in record["config"])
    assert (first["draws"]["count"], first["eot_samples"]) == (2, 2)
    assert (second["draws"], second["eot_samples"], second["config"]["without_noise"]) == (None, 1, True)
    assert first["panel"]["key"] != second["panel"]["key"]
    assert (first["panel"]["random_output"], second["panel"]["random_output"]) == (True, False)
    assert first["run"] == second["run"]
    assert second["forward_per_attacked_image"] == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("true", "without_noise: expected false for a defense without noise, got true"),
        ("1", "without_noise: expected true or false, got 1"),
    ],
)
def test_noise_that_is_not_there_cannot_be_switched_off(value, message, lab, trained, outputs, tiny):
    ended = lab("evaluate", *tiny, "attack=fgsm", f"without_noise={value}")
    assert ended.status != 0
    assert message in ended.err
    assert not records(outputs)
