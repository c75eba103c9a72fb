"""Metrics of tables: where a record has them, their unit and their form."""

from typing import Any

import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.tables.units import (
    ACCURACIES,
    FORM,
    PARAMETERS,
    Figure,
    default_form,
    figure_of,
    is_percent,
    title_of,
    unit_of,
    word_for,
)

RECORD: dict[str, Any] = {
    "n": 200, "clean_accuracy": 0.9, "clean_interval": [0.85, 0.94], "robust_accuracy": 0.8, "robust_interval": [0.74, 0.85],
    "attacked_accuracy": 0.82, "attacked_interval": [0.76, 0.87], "draws": {"robust_accuracy_mean": 0.84},
    "run": {"parameters": 11_173_962}, "runs": {"accuracies": [0.79, 0.8, 0.805, 0.81, 0.82]},
    "metrics": {"loss_sensitivity": {"mean": 0.25, "interval": [0.2, 0.3], "n": 40}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "value", "interval"),
    [
        ("robust_accuracy", 80, (74, 85)),
        ("clean_accuracy", 90, (85, 94)),
        ("attacked_accuracy", 82, (76, 87)),
        ("robust_accuracy_mean", 84, None),
        ("attack_success_rate", 20, (15, 26)),
        ("parameters", 11_173_962, None),
    ],
)
def test_figures(metric: str, value: float, interval: tuple[float, float] | None) -> None:
    figure = figure_of(metric, RECORD)
    assert (figure.value, figure.n, figure.std) == (pytest.approx(value), 200, None)
    assert figure.interval == (None if interval is None else pytest.approx(interval))


def test_the_mean_over_the_draws_of_a_deterministic_model_is_its_accuracy() -> None:
    assert figure_of("robust_accuracy_mean", RECORD | {"draws": None}) == figure_of("robust_accuracy", RECORD)


def test_runs_are_told_as_mean_and_sample_deviation() -> None:
    """Deviations -1.5, -.5, 0, .5, 1.5 from 80.5: squares 2.25, .25, 0, .25, 2.25, in all 5; 5 / 4 = 1.25."""
    figure = figure_of("accuracy_of_runs", RECORD | {"runs": {"accuracies": [0.79, 0.8, 0.805, 0.81, 0.82]}})
    assert figure == Figure(pytest.approx(80.5), None, 200, pytest.approx(1.25**0.5))


def test_other_metrics_are_told_as_they_are() -> None:
    assert figure_of("metrics.loss_sensitivity", RECORD) == Figure(0.25, (0.2, 0.3), 40)


def test_units_titles_and_forms() -> None:
    assert all(is_percent(metric) and unit_of(metric) == "%" and default_form(metric) == ".2f" for metric in ACCURACIES)
    assert title_of("attack_success_rate") == "attack success rate, %"
    assert not is_percent(PARAMETERS)
    assert (unit_of(PARAMETERS), title_of(PARAMETERS)) == ("parameters", "parameters")
    assert format(11_173_962.0, default_form(PARAMETERS)) == "11,173,962"
    assert FORM.fullmatch(default_form(PARAMETERS))
    assert not is_percent("metrics.loss_sensitivity")
    assert (unit_of("metrics.loss_sensitivity"), default_form("metrics.loss_sensitivity")) == ("loss_sensitivity", ".4g")


def test_words_without_which_a_metric_is_not_measured() -> None:
    always = ("robust_accuracy", "clean_accuracy", "robust_accuracy_mean", "attack_success_rate", PARAMETERS)
    assert [word_for(metric) for metric in always] == [None] * 5
    assert word_for("attacked_accuracy") == "attack_misclassified=true"
    assert word_for("metrics.loss_sensitivity") == "metric=[loss_sensitivity]"


@pytest.mark.parametrize(
    ("metric", "missing", "remedy"),
    [
        ("accuracy_of_runs", "runs", "need an attack that is repeated, such as attack=pgd_fm_five; where they have it, evaluate again"),
        ("attacked_accuracy", "attacked_accuracy", "need attack_misclassified=true; where they have it, evaluate again"),
        ("attack_success_rate", "robust_interval", "evaluate again with force=true"),
    ],
)
def test_a_record_that_says_nothing_of_a_metric(metric: str, missing: str, remedy: str) -> None:
    record = {key: value for key, value in RECORD.items() if key != missing}
    with pytest.raises(LabError, match=f"^the record says nothing of {metric}: .*{remedy}"):
        figure_of(metric, record)


def test_a_run_from_before_parameters_were_counted() -> None:
    with pytest.raises(LabError, match=r"^the record says nothing of parameters: evaluate again with force=true"):
        figure_of(PARAMETERS, RECORD | {"run": {"name": "old"}})
