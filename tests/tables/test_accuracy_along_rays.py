"""Metrics along a ray: eps at an accuracy and accuracy at an eps, by hand; units, seeds, and what cannot be read."""

from pathlib import Path
from typing import Any

import fake_records
import numpy as np
import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.tables.base import Evidence, Figure
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.metrics import metric_of
from robustbench_lab.tables.rays import Curve, first_crossing
from robustbench_lab.tables.reading import read_table

EPS_REF = {"name": "eps_at_accuracy", "at": 50}


def at(share: float, of: str = "LS_0.9 / eps_ref") -> dict[str, Any]:
    return {"name": "accuracy_at", "of": of, "share": share}


TABLE: dict[str, Any] = {
    "overrides": ["dataset=digits", "backbone=small_resnet", "training=digits", "attack=fgsm", "budget=linf", "budget.eps=0.4",
                  "attack_misclassified=true", "keep=[ray]"],
    "columns": [{"label": "@.5", "metric": at(0.5)}, {"label": "@1.0", "metric": at(1.0)}, {"label": "eps_ref", "metric": EPS_REF}],
    "exceptions": [], "published": {"kind": "none"}, "claims": [],
}  # fmt: skip


def evidence(lost: list[float], span: float | None, points: int = 4, eps: float = 0.4, **more: Any) -> Evidence:
    """A ray of the images that are lost at these places."""
    t = np.linspace(0, 1, points + 1)
    right = np.packbits(t < np.array(lost)[:, None], axis=1)
    arrays = {"t": t, "right": right, "free": np.ones(len(lost), bool)} | more.pop("arrays", {})
    return Evidence({"config": {"budget": {"eps": eps}}}, {"config": config(span)}, lambda file: arrays, **more)


def config(span: float | None) -> dict[str, Any]:
    return {"dataset": {"normalise": {"mean": [0.5]} if span is None else {"span": span}}}


# At t = 0, .25, .5, .75, 1: five of six right, then four, three, two, one of them.
LOST = [-1.0, 0.2, 0.3, 0.6, 0.8, 2.0]


def test_the_smallest_eps_of_an_accuracy() -> None:
    """83.3, 66.7, 50, 33.3, 16.7 %: 50 at t = .5, .2 of the pixel range or 204 of 1020; 60 is two fifths from .25 to .5: t = .35."""
    half, sixty, ninety = (metric_of({"name": "eps_at_accuracy", "at": percent}) for percent in (50, 60, 90))
    assert half.figure_of(evidence(LOST, None)) == Figure(pytest.approx(0.2), None, 6)
    assert half.figure_of(evidence(LOST, 1020)) == Figure(pytest.approx(204), None, 6)
    assert sixty.figure_of(evidence(LOST, None)).value == pytest.approx(0.35 * 0.4)
    assert ninety.figure_of(evidence(LOST, None)).value == 0
    assert (half.title, half.unit) == ("eps at 50 % accuracy", "eps")


def test_the_first_crossing_counts() -> None:
    """From 80 to 20 between 1 and 2, up again to 60: half is left at 1.5, and again at 2.75."""
    curve = Curve(np.array([0.0, 1, 2, 3]), np.array([90.0, 80, 20, 60]), 10, 1.0)
    assert [first_crossing(curve, percent) for percent in (50, 80, 20, 19)] == [pytest.approx(1.5), 1, 2, None]


def test_accuracy_at_a_share_of_another_eps() -> None:
    """An eps of 204 of 1020 is t = .5; at .7 of it, t = .35: 60 %, of which Wilson's interval is that of 3.6 of 6."""
    seen = evidence(LOST, 1020, cells={"o": Figure(204.0, None, 6)}, configs={"o": config(1020)})
    figure = metric_of(at(0.7, "o")).figure_of(seen)
    assert figure.value == pytest.approx(60)
    assert figure.interval == pytest.approx(tuple(100 * end for end in wilson_interval(3.6, 6)))
    assert figure.n == 6
    assert metric_of(at(1.0, "o")).figure_of(seen).value == pytest.approx(50)
    assert metric_of(at(2.0, "o")).figure_of(seen).value == pytest.approx(100 / 6), "the end of the ray"


@pytest.mark.parametrize(
    ("metric", "seen", "message"),
    [
        (
            {"name": "eps_at_accuracy", "at": 10},
            {},
            r"^the lowest accuracy up to eps 408 is 16.67 %, not 10 % or less; .* larger budget\.eps",
        ),
        (at(2.5, "o"), {}, r"^accuracy is asked for at eps 510, and the ray ends at 408; take budget\.eps=0\.5 or more"),
        (at(1.0, "o"), {"configs": {"o": config(None)}}, "^the eps of o is in another unit: its pixel range is 1 of .* here 1020"),
        (EPS_REF, {"arrays": {"free": np.array([True] * 4 + [False] * 2)}}, r"^the pixel box has cut the attack on 2 of 6 images"),
        (EPS_REF, {"arrays": {"right": np.zeros((6, 0), np.uint8)}}, r"need attack=fgsm in linf, attack_mis.*; where .* with force=true"),
    ],
)
def test_what_a_ray_does_not_tell(metric: dict[str, Any], seen: dict[str, Any], message: str) -> None:
    around = {"cells": {"o": Figure(204.0, None, 6)}, "configs": {"o": config(1020)}} | seen
    with pytest.raises(LabError, match=message):
        metric_of(metric).figure_of(evidence(LOST, 1020, **around))


def fill(cell: Cell, outputs: Path, lost: list[list[float]]) -> None:
    for measurement, places in zip(cell.measurements, lost, strict=True):
        fake_records.train(measurement.evaluation.run, outputs)
        fake_records.ray(fake_records.evaluate(measurement.evaluation, outputs, 1, 0, len(places)), places, 4)


def test_each_row_is_read_on_its_own_ray_at_the_eps_of_another(written, tmp_path):
    """The second row's half is left at t = .5, eps .2; there the first has 1 of 4, and at half of it 2 of 4."""
    name = written(**TABLE)
    first, *_, second = cells_of(read_table(name), tmp_path)
    fill(first, tmp_path, [[0.1, 0.2, 0.3, 0.9]])
    assert cells_of(read_table(name), tmp_path)[0].problem == "worked out from LS_0.9 / eps_ref, which has no figure"
    fill(second, tmp_path, [LOST])
    found = {cell.name: cell.value for cell in cells_of(read_table(name), tmp_path)}
    assert [found[f"LS_0.9 / {label}"] for label in ("@.5", "@1.0", "eps_ref")] == pytest.approx([200 / 3, 50, 0.2])
    assert [found[f"plain / {label}"] for label in ("@.5", "@1.0", "eps_ref")] == pytest.approx([50, 25, 0.1])


def test_each_seed_has_the_eps_of_its_own(written, tmp_path):
    """Half is left at t = .25 and at t = .75: at these the first row's two trainings have 0 and 100 %; at the mean, 100 % both."""
    name = written(**TABLE | {"seeds": [0, 1]})
    first, *_, second = cells_of(read_table(name), tmp_path)
    fill(second, tmp_path, [[0.2, 0.9], [0.7, 0.9]])
    fill(first, tmp_path, [[0.1, 0.1], [0.8, 0.8]])
    found = {cell.name: cell for cell in cells_of(read_table(name), tmp_path)}
    assert (found["LS_0.9 / eps_ref"].value, found["LS_0.9 / @1.0"].value) == (pytest.approx(0.2), 50)
    assert [one.figure.value for one in found["plain / @1.0"].measurements] == [0, 100]


def test_a_ray_that_ends_too_early_is_the_cells_problem(written, tmp_path):
    name = written(**TABLE)
    fill(cells_of(read_table(name), tmp_path)[0], tmp_path, [[2.0, 2.0]])
    cell = cells_of(read_table(name), tmp_path)[2]
    assert (cell.missing, "take a larger budget.eps" in str(cell.problem)) == (True, True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"columns": [{"label": "a", "metric": {"name": "eps_at_accuracy", "at": 100}}]},
         r"grid.yaml:\d+: columns\[0\].metric: at: expected a finite number > 0 and < 100, percent of the images, got 100"),
        ({"columns": [{"label": "a", "metric": "eps_at_accuracy"}]}, r"columns\[0\].metric: expected the knobs of .*, got none .*'at'"),
        ({"columns": [{"label": "a", "metric": at(0, "b")}]}, r"columns\[0\].metric: share: expected a finite number > 0, got 0"),
        ({"columns": [{"label": "a", "metric": at(1, "b")}]}, r"columns\[0\].metric: expected cells of this table .*, got 'plain / b'"),
        ({"columns": [{"label": "a", "metric": at(1, "b")}, {"label": "b", "metric": "clean_accuracy"}]},
         r"grid.yaml:\d+: columns\[0\].metric: of: expected a cell that shows eps_at_accuracy, got 'b'"),
        ({"overrides": [*TABLE["overrides"][:-1]]}, r"columns\[0\].metric: .* to have attack=fgsm .*keep=\[ray\], for accuracy_at"),
        ({"overrides": [*TABLE["overrides"][:-2], "keep=[ray]"]}, r"to have .* attack_misclassified=true and"),
    ],
)  # fmt: skip
def test_what_a_table_may_not_ask(written, changed, message):
    with pytest.raises(LabError, match=message):
        read_table(written(**TABLE | changed))


@pytest.mark.parametrize("word", ["attack=pgd", "budget=l2"])
def test_another_attack_has_no_such_ray(written, tmp_path, word):
    words = [entry for entry in TABLE["overrides"] if not word.startswith(entry.partition("=")[0] + "=")]
    with pytest.raises(LabError, match=r"eps_at_accuracy needs attack=fgsm in linf, .*, got attack="):
        cells_of(read_table(written(**TABLE | {"overrides": [*words, word]})), tmp_path)
