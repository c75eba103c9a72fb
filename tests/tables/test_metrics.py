"""Metrics of tables: where a record has them, unit and form, one figure of several trainings, figures worked out from others."""

from dataclasses import dataclass
from typing import Any

import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.tables.metrics import FORM, METRICS, Evidence, Figure, Metric, metric_names, metric_of, over_seeds

RECORD: dict[str, Any] = {
    "n": 200, "clean_accuracy": 0.9, "clean_interval": [0.85, 0.94], "robust_accuracy": 0.8, "robust_interval": [0.74, 0.85],
    "attacked_accuracy": 0.82, "attacked_interval": [0.76, 0.87], "draws": {"robust_accuracy_mean": 0.84, "clean_accuracy_mean": 0.89},
    "runs": {"accuracies": [0.79, 0.8, 0.805, 0.81, 0.82]},
    "metrics": {
        "loss_sensitivity": {"mean": 0.25, "interval": [0.2, 0.3], "n": 40},
        "seconds_of_defending": {"mean": 0.0012, "interval": [0.0011, 0.0013], "n": 200},
    },
}  # fmt: skip
RUN = {"parameters": 11_173_962, "seconds": 61.5}


def figure_of(metric: Any, record: dict[str, Any] = RECORD, run: dict[str, Any] = RUN) -> Figure:
    return metric_of(metric).figure_of(Evidence(record, run))


@pytest.mark.parametrize(
    ("metric", "value", "interval"),
    [
        ("robust_accuracy", 80, (74, 85)),
        ("clean_accuracy", 90, (85, 94)),
        ("attacked_accuracy", 82, (76, 87)),
        ("robust_accuracy_mean", 84, None),
        ("clean_accuracy_mean", 89, None),
        ("attack_success_rate", 20, (15, 26)),
        ("parameters", 11_173_962, None),
        ("seconds_of_training", 61.5, None),
        ("minutes_of_training", 1.025, None),
        ({"name": "minutes_of_defending", "images": 10_000}, 0.2, None),
    ],
)
def test_figures(metric: Any, value: float, interval: tuple[float, float] | None) -> None:
    figure = figure_of(metric)
    assert (figure.value, figure.n, figure.std) == (pytest.approx(value), 200, None)
    assert figure.interval == (None if interval is None else pytest.approx(interval))


def test_the_mean_over_the_draws_of_a_deterministic_model_is_its_accuracy() -> None:
    assert figure_of("robust_accuracy_mean", RECORD | {"draws": None}) == figure_of("robust_accuracy")


def test_runs_are_told_as_mean_and_sample_deviation() -> None:
    """Deviations -1.5, -.5, 0, .5, 1.5 from 80.5: squares 2.25, .25, 0, .25, 2.25, in all 5; 5 / 4 = 1.25."""
    assert figure_of("accuracy_of_runs") == Figure(pytest.approx(80.5), None, 200, pytest.approx(1.25**0.5))


def test_other_metrics_are_told_as_they_are() -> None:
    assert figure_of("metrics.loss_sensitivity") == Figure(0.25, (0.2, 0.3), 40)


KNOBS: dict[str, dict[str, Any]] = {
    "eps_at_accuracy": {"at": 50}, "accuracy_at": {"of": "a / b", "share": 0.2}, "minutes_of_defending": {"images": 10_000},
}  # fmt: skip


def test_units_titles_and_forms() -> None:
    every = [metric_of({"name": name, **KNOBS.get(name, {})}) for name in metric_names()]
    shares = [metric for metric in every if metric.in_percent]
    assert {metric.name for metric in every if metric.accuracy} == {metric.name for metric in shares} - {"attack_success_rate"}
    assert {metric.name for metric in every if metric.under_attack} == {"robust_accuracy", "robust_accuracy_mean", "accuracy_of_runs"}
    assert {metric.form for metric in shares} == {".2f"}
    assert metric_of("attack_success_rate").title == "attack success rate, %"
    assert (metric_of("parameters").unit, metric_of("parameters").title) == ("parameters", "parameters")
    assert (metric_of("seconds_of_training").unit, metric_of("seconds_of_training").title) == ("s", "seconds of training")
    assert format(11_173_962.0, metric_of("parameters").form) == "11,173,962"
    assert all(FORM.fullmatch(metric.form) for metric in every)
    sensitivity = metric_of("metrics.loss_sensitivity")
    assert (sensitivity.unit, sensitivity.form, sensitivity.title, sensitivity.averages) == (
        "loss_sensitivity", ".4g", "loss sensitivity", True,
    )  # fmt: skip


def test_words_without_which_a_metric_is_not_measured() -> None:
    always = ("robust_accuracy", "clean_accuracy", "robust_accuracy_mean", "attack_success_rate", "parameters", "seconds_of_training")
    assert [metric_of(name).word for name in always] == [None] * 6
    assert all(metric_of(name).asked({}) for name in always)
    assert metric_of("attacked_accuracy").word == "attack_misclassified=true"
    assert [metric_of("attacked_accuracy").asked({"attack_misclassified": said}) for said in (True, False, "true")] == [True, False, False]
    sensitivity = metric_of("metrics.loss_sensitivity")
    assert sensitivity.word == "metric=[loss_sensitivity]"
    assert [sensitivity.asked({"metric": said}) for said in (["loss_sensitivity"], "loss_sensitivity", ["l"], None)] == [
        True,
        True,
        False,
        False,
    ]
    minutes = metric_of({"name": "minutes_of_defending", **KNOBS["minutes_of_defending"]})
    assert (minutes.word, minutes.unit, minutes.title) == ("metric=[seconds_of_defending]", "min", "minutes of defending")
    assert [minutes.asked({"metric": said}) for said in (["rho2", "seconds_of_defending"], ["rho2"], None)] == [True, False, False]
    runs = metric_of("accuracy_of_runs")
    assert [runs.measured_by({"attack": attack}) for attack in ({"times": 5}, {"steps": 5})] == [True, False]


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


def test_minutes_of_defending_need_their_metric_and_their_images() -> None:
    with pytest.raises(LabError, match=r"of minutes_of_defending: the cell's words need metric=\[seconds_of_defending\]"):
        figure_of({"name": "minutes_of_defending", "images": 1}, RECORD | {"metrics": {}})
    with pytest.raises(LabError, match=r"images: expected a whole number >= 1, got 0"):
        metric_of({"name": "minutes_of_defending", "images": 0})
    with pytest.raises(LabError, match="expected the knobs of minutes_of_defending, got none"):
        metric_of("minutes_of_defending")


def test_a_run_from_before_parameters_were_counted() -> None:
    with pytest.raises(LabError, match=r"^the record says nothing of parameters: evaluate again with force=true"):
        figure_of("parameters", run={})


@dataclass(frozen=True)
class Above(Metric):
    """How far robust accuracy lies above another cell's figure, in its knob's share."""

    than: str = ""
    share: float = 1.0

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.than,)

    def read(self, seen: Evidence) -> Figure:
        other = seen.cells[self.than].value
        assert other is not None
        return Figure(100 * seen.record["robust_accuracy"] - self.share * other, None, seen.record["n"])


def test_a_metric_is_one_entry_and_may_have_knobs(monkeypatch) -> None:
    monkeypatch.setitem(METRICS, "above", Above)
    metric = metric_of({"name": "above", "than": "clean", "share": 0.5})
    assert metric.cells == ("clean",)
    assert metric.figure_of(Evidence(RECORD, cells={"clean": Figure(90.0, None, 200)})) == Figure(pytest.approx(35.0), None, 200)
    assert metric_of({"name": "robust_accuracy"}) == metric_of("robust_accuracy")
    with pytest.raises(LabError, match=r"expected the knobs of above, got unit \(unit\)"):
        metric_of({"name": "above", "unit": "s"})
    with pytest.raises(LabError, match="expected the knobs of above, got of"):
        metric_of({"name": "above", "of": "clean"})
    with pytest.raises(LabError, match=r"expected one of robust_accuracy, .*, got 'below'"):
        metric_of({"name": "below"})


def test_several_trainings_are_mean_deviation_and_students_interval_of_the_mean() -> None:
    """70, 74 and 78: mean 74, deviation 4; t(2, .975) = 4.302653, over the root of 3: 4 x 4.302653 / 1.732051 = 9.936552."""
    figure = over_seeds([Figure(value, (0, 100), n) for value, n in ((70.0, 10), (74.0, 9), (78.0, 10))])
    assert (figure.value, figure.std, figure.n) == (74, 4, 9)
    assert figure.interval == pytest.approx((74 - 9.936552, 74 + 9.936552), abs=1e-5)


def test_one_training_keeps_its_figure_and_one_without_a_value_leaves_none() -> None:
    one = Figure(70.0, (60, 80), 10, 1.0)
    assert over_seeds([one]) == one
    assert over_seeds([one, Figure(None, None, 4)]) == Figure(None, None, 4)
