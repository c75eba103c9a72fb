"""The table that a sweep ends with: hand-worked figures, order, failures, and what is refused."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.report.sweeps import chart_of, number
from robustbench_lab.tables.sweep import Sweep, Trial, check_objective, shortest
from robustbench_lab.tables.sweep_pages import csv_of, grid, headline, markdown


def trial(number: int, *words: str, robust: float | None = None, clean: float = 0.9, error: str | None = None, **more: float) -> Trial:
    figures = {} if robust is None else {"robust_accuracy": robust, "clean_accuracy": clean, "seconds": 1.5, **more}
    intervals = {} if robust is None else {"robust_accuracy": (robust - 0.05, robust + 0.05), "clean_accuracy": (0.8, 0.95)}
    return Trial(number, words, figures, intervals, 100, (), error)


def sweep(*trials: Trial, objective: str | None = "robust_accuracy", words: tuple[str, ...] = (), searched: bool = False) -> Sweep:
    return Sweep("evaluate", words, objective, trials, searched)


OVER_SEEDS = sweep(
    trial(0, "defense=a", "seed=0", "defense.beta=1", robust=0.5),
    trial(1, "defense=a", "seed=1", "defense.beta=1", robust=0.6),
    trial(2, "defense=a", "seed=2", "defense.beta=1", robust=0.7),
    trial(3, "defense=b", "seed=0", "defense.beta=1", robust=0.75),
    trial(4, "defense=b", "seed=1", "defense.beta=1", robust=0.65),
    trial(5, "defense=b", "seed=2", "defense.beta=1", error="the loss is not finite"),
    words=("defense=a,b", "seed=0,1,2", "defense.beta=1"),
)


def test_mean_and_deviation_over_seeds_best_first() -> None:
    """a: .5, .6, .7: mean .6, deviation .1. b: .75, .65: mean .7, deviation .0707."""
    assert (OVER_SEEDS.varied, OVER_SEEDS.keys, OVER_SEEDS.seeds) == (["defense", "seed"], ["defense"], ["seed"])
    head, body = grid(OVER_SEEDS)
    assert head == ["defense", "robust %", "clean %", "seconds", "seeds"]
    assert body == [["b", "70.00 ± 7.07", "90.00 ± 0.00", "1.5", "2"], ["a", "60.00 ± 10.00", "90.00 ± 0.00", "1.5", "3"]]
    assert headline(OVER_SEEDS) == "best defense=b: robust accuracy 70.00 ± 7.07 % over 2 seeds; 1 of 6 jobs failed"


def test_seeds_alone_have_no_best() -> None:
    """.5 and .7: mean .6, deviation .1414."""
    one = sweep(trial(0, "seed=0", robust=0.5), trial(1, "seed=1", robust=0.7))
    assert headline(one) == "evaluate: robust accuracy 60.00 ± 14.14 % over 2 seeds"


def test_failed_jobs_are_rows_that_say_why() -> None:
    page, rows = markdown(OVER_SEEDS), list(csv.DictReader(csv_of(OVER_SEEDS).splitlines()))
    assert "- defense=b seed=2: the loss is not finite" in page
    assert "Everywhere: `defense.beta=1`" in page
    assert [row["defense"] for row in rows] == ["b", "a", "b"]
    assert float(rows[1]["robust_accuracy"]) == pytest.approx(0.6)
    assert float(rows[1]["robust_accuracy_deviation"]) == pytest.approx(0.1)
    assert (rows[2]["error"], rows[2]["robust_accuracy"]) == ("the loss is not finite", "")


def test_without_seeds_the_interval_of_the_images_is_told() -> None:
    one = sweep(
        trial(0, "budget.eps=8/255", robust=0.3), trial(1, "budget.eps=4/255", robust=0.5), trial(2, "budget.eps=2/255", robust=0.5)
    )
    head, body = grid(one)
    assert head == ["eps", "robust %", "clean %", "seconds", "n"]
    assert [row[0] for row in body] == ["4/255", "2/255", "8/255"], "equal ones in the order of the jobs"
    assert body[0][1] == "50.00 (45.0–55.0)"
    rows = list(csv.DictReader(csv_of(one).splitlines()))
    assert (float(rows[2]["robust_accuracy_low"]), float(rows[2]["robust_accuracy_high"])) == pytest.approx((0.25, 0.35))


def test_less_is_better_with_a_minus_and_what_has_no_figure_comes_last() -> None:
    worth = ({"rho2": 0.2}, {}, {"rho2": 0.1}, {"rho2": 0.3})
    trials = [trial(number, f"a={number + 1}", robust=0.3, **more) for number, more in enumerate(worth)]
    assert [line.values[0] for line in sweep(*trials, objective="rho2").lines] == ["4", "1", "3", "2"]
    assert [line.values[0] for line in sweep(*trials, objective="-rho2").lines] == ["3", "1", "4", "2"]


def test_figures_of_validation_images_are_marked_and_a_search_on_test_images_too() -> None:
    trials = [trial(0, "a=1", robust=0.3), trial(1, "a=2", robust=0.4)]
    for one in (sweep(*trials, objective="validation_robust_accuracy", searched=True), sweep(*trials, words=("split=validation",))):
        assert "validation images" in one.notes[0]
        assert one.notes[0] in markdown(one)
        assert [line.values[0] for line in one.lines] == ["2", "1"]
    assert "too good to be reported" in sweep(*trials, searched=True).notes[0]
    assert sweep(*trials).notes == []


def test_names_are_as_short_as_they_can_be() -> None:
    keys = ["budget.eps", "defense.attack.eps", "defense.beta", "beta"]
    assert [shortest(key, keys) for key in keys] == ["budget.eps", "attack.eps", "defense.beta", "beta"]


@pytest.mark.parametrize(
    ("verb", "config", "right", "wrong"),
    [
        ("evaluate", {"metric": {"rho2": {}}, "training": {}},
         ["robust_accuracy", "-seconds", "rho2", "-validation_rho2", "validation_robust_accuracy"],
         ["rho", "attacked_accuracy", "loss", ""]),
        ("evaluate", {"attack_misclassified": True, "training": {}}, ["attacked_accuracy", None], ["rho2"]),
        ("train", {"training": {"validation": 0.1}}, ["validation_accuracy", "-loss", "seconds", None], ["robust_accuracy"]),
        ("train", {"training": {"validation": 0}}, ["-loss"], ["validation_accuracy"]),
        ("train", {"training": {}}, ["seconds"], ["validation_accuracy"]),
    ],
)  # fmt: skip
def test_an_objective_that_the_verb_does_not_have(verb: str, config: dict[str, Any], right: list[str], wrong: list[str]) -> None:
    for objective in right:
        check_objective(objective, verb, config)
    for objective in wrong:
        with pytest.raises(LabError, match=rf"^objective: expected one of .*seconds.* for {verb}, .* got '{objective}'"):
            check_objective(objective, verb, config)


def test_a_chart_that_fits() -> None:
    line = sweep(*(trial(i, f"budget.eps={eps}", robust=0.5) for i, eps in enumerate(("2/255", "4/255", "8/255"))))
    assert str(chart_of(line, "k", "t")).count("L") >= 2
    grid_of = sweep(*(trial(2 * i + j, f"a={i}", f"b={j}", robust=0.1 * i + 0.2 * j) for i in range(3) for j in range(2)))
    assert str(chart_of(grid_of, "k", "t")).count("<rect") == 6
    bars = sweep(trial(0, "defense=a", robust=0.2), trial(1, "defense=b", robust=0.4))
    assert "<rect" not in str(chart_of(bars, "k", "t"))
    assert ">a<" in str(chart_of(bars, "k", "t"))
    lines = sweep(*(trial(10 * i + j, f"defense={d}", f"beta={j}", robust=0.4) for i, d in enumerate("ab") for j in (1, 100)))
    assert ">b<" in str(chart_of(lines, "k", "t"))
    assert ">10<" in str(chart_of(lines, "k", "t")), "by the logarithm from 1 to 100"
    assert chart_of(sweep(trial(0, "a=1", robust=0.1)), "k", "t") is None


@pytest.mark.parametrize(("value", "found"), [("8/255", 8 / 255), ("1e-3", 0.001), ("3", 3), ("a", None), ("inf", None), ("1/0", None)])
def test_numbers_among_words(value: str, found: float | None) -> None:
    assert number(value) == found


def test_pages_hold_what_words_may_hold(tmp_path: Path) -> None:
    odd = sweep(trial(0, "a=<b>|x", robust=0.2), trial(1, "a=*c*", robust=0.1))
    assert "<b>" not in markdown(odd).split("Everywhere")[0].split("```")[0]
    assert json.loads(json.dumps(csv_of(odd)))
