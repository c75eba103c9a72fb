"""Cells that are worked out from other cells: what their metric is given, in which order, and what is missing with them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fake_records
import numpy as np
import pytest

from robustbench_lab.errors import LabError
from robustbench_lab.jobs.tables import write
from robustbench_lab.storage.records import OUTCOME_FILE
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.metrics import METRICS, Evidence, Figure, Metric
from robustbench_lab.tables.planning import plan_of
from robustbench_lab.tables.reading import read_table
from robustbench_lab.tables.view import view_of


@dataclass(frozen=True)
class Within(Metric):
    """The share of images that were moved further than `share` of the radius that another cell gives, from this evaluation's outcomes."""

    radius: str = ""
    share: float = 1.0
    accuracy: bool = True

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.radius,)

    def read(self, seen: Evidence) -> Figure:
        other = seen.cells[self.radius].value
        assert other is not None
        distance = seen.arrays(OUTCOME_FILE)["distance"]
        return Figure(100 * float((distance > self.share * other).mean()), None, len(distance))


@dataclass(frozen=True)
class Radius(Metric):
    """The distance that half the images exceed."""

    form: str = ".3f"

    def read(self, seen: Evidence) -> Figure:
        distance = seen.arrays(OUTCOME_FILE)["distance"]
        return Figure(float(np.median(distance)), None, len(distance))


@dataclass(frozen=True)
class Drop(Metric):
    """One cell minus another: no evaluation of its own."""

    before: str = ""
    after: str = ""
    evaluated: bool = False

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.before, self.after)

    def read(self, seen: Evidence) -> Figure:
        before, after = (seen.cells[name] for name in self.cells)
        assert before.value is not None
        assert after.value is not None
        return Figure(before.value - after.value, None, min(before.n, after.n))


@pytest.fixture(autouse=True)
def _known(monkeypatch) -> None:
    for name, made in (("within", Within), ("radius", Radius), ("drop", Drop)):
        monkeypatch.setitem(METRICS, name, made)


# A column stands before that which it needs, and both rows are read at the second row's radius.
TABLE: dict[str, Any] = {
    "columns": [
        {"label": "at half", "metric": {"name": "within", "radius": "LS_0.9 / r", "share": 0.5}},
        {"label": "r", "metric": "radius"},
        {"label": "lost", "metric": {"name": "drop", "before": "clean", "after": "at half"}},
        {"label": "clean", "metric": "clean_accuracy"},
    ],
    "published": {"kind": "none"}, "claims": [],
}  # fmt: skip


def fill(cell: Cell, outputs: Path, distances: list[list[float]]) -> None:
    for measurement, distance in zip(cell.measurements, distances, strict=True):
        fake_records.train(measurement.evaluation.run, outputs)
        folder = fake_records.evaluate(measurement.evaluation, outputs, 9, 0, 10)
        fake_records.outcome(folder, distance)


def test_a_figure_is_worked_out_from_another_row_and_column(written, tmp_path):
    """Radius of the second row: .4; at half of it, .2: 3 of 4 lie beyond in the first row, 2 of 3 in the second; clean 90."""
    name = written(**TABLE)
    cells = cells_of(read_table(name), tmp_path)
    fill(cells[0], tmp_path, [[0.1, 0.3, 0.5, 0.7]])
    fill(cells[4], tmp_path, [[0.1, 0.4, 0.9]])
    table = read_table(name)
    cells = cells_of(table, tmp_path)
    values = {cell.name: cell.value for cell in cells}
    assert (values["plain / r"], values["LS_0.9 / r"]) == pytest.approx((0.4, 0.4))
    assert (values["plain / at half"], values["LS_0.9 / at half"]) == pytest.approx((75, 200 / 3))
    assert (values["plain / lost"], values["LS_0.9 / lost"]) == pytest.approx((15, 90 - 200 / 3))
    page = write(table, cells, tmp_path).read_text()
    assert "| plain   | 75.00   | 0.400 | 15.00 | 90.00 |" in page
    assert "No figure" not in page
    assert "Missing cells" not in page


def test_what_it_is_worked_out_from_is_missed(written, tmp_path):
    """The first row's own record is there: nothing of it is run again, and its figure waits for the second row's."""
    name = written(**TABLE)
    fill(cells_of(read_table(name), tmp_path)[0], tmp_path, [[0.1, 0.3]])
    table = read_table(name)
    cells = cells_of(table, tmp_path)
    assert (cells[0].missing, cells[0].problem) == (True, "worked out from LS_0.9 / r, which has no figure")
    assert (cells[2].missing, cells[2].problem) == (True, "worked out from plain / at half, which has no figure")
    assert cells[1].value == pytest.approx(0.2)
    shown = view_of(table, cells, tmp_path)
    assert (shown.cells[0].commands, shown.cells[2].commands) == ([], [])
    plan = plan_of(cells, tmp_path)
    assert [job.finished for job in plan.jobs if job.verb == "evaluate"] == [True, False]


def test_a_cell_of_others_alone_runs_nothing(written, tmp_path):
    cells = cells_of(read_table(written(**TABLE)), tmp_path)
    assert (cells[2].measurements, cells[2].evaluation, cells[2].not_run) == ([], None, False)


def test_each_seed_has_the_radius_of_its_own(written, tmp_path):
    """Radii 1 and 10: each seed's distances lie all beyond half of its own radius; by the mean of 5.5 the first would not."""
    name = written(**TABLE | {"seeds": [0, 1]})
    cells = cells_of(read_table(name), tmp_path)
    for cell in (cells[0], cells[4]):
        fill(cell, tmp_path, [[1.0, 1.0], [10.0, 10.0]])
    found = {cell.name: cell for cell in cells_of(read_table(name), tmp_path)}
    assert found["plain / r"].value == 5.5
    assert (found["plain / at half"].value, found["plain / at half"].std) == (100, 0)


def test_a_file_that_is_damaged_is_the_cells_problem(written, tmp_path):
    name = written(**TABLE)
    cell = cells_of(read_table(name), tmp_path)[0]
    fill(cell, tmp_path, [[0.1]])
    (cell.measurements[0].evaluation.folder(tmp_path) / OUTCOME_FILE).write_bytes(b"no")
    found = cells_of(read_table(name), tmp_path)[1]
    assert found.missing
    assert "cannot be read" in str(found.problem)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            [{"label": "a", "metric": {"name": "within", "radius": "b"}}],
            r"grid.yaml:\d+: columns\[0\].metric: expected cells of this table behind plain / a, got 'plain / b'",
        ),
        (
            [{"label": "a", "metric": {"name": "within", "radius": "b"}}, {"label": "b", "metric": {"name": "within", "radius": "a"}}],
            "columns: expected cells that are not worked out from each other in a circle, got .*plain / a",
        ),
        ([{"label": "a", "metric": {"name": "within", "radius": "a"}}], "columns: expected cells that are not worked out from each other"),
        ([{"label": "a", "metric": {"name": "within", "radios": "a"}}], r"columns\[0\].metric: expected the knobs of within, got radios"),
        ([{"label": "a", "metric": ["within"]}], r"columns\[0\].metric: expected a metric's name, or a mapping"),
    ],
)
def test_what_cannot_be_worked_out(written, columns, message):
    with pytest.raises(LabError, match=message):
        read_table(written(columns=columns, published={"kind": "none"}, claims=[]))


def test_seconds_of_training_are_those_of_the_run(written, tmp_path):
    name = written(columns=[{"label": "s", "metric": "seconds_of_training"}], published={"kind": "none"}, claims=[], seeds=[0, 1])
    for measurement, seconds in zip(cells_of(read_table(name), tmp_path)[0].measurements, (60.0, 64.0), strict=True):
        fake_records.train(measurement.evaluation.run, tmp_path, seconds=seconds)
        fake_records.evaluate(measurement.evaluation, tmp_path, 9, 8)
    cell = cells_of(read_table(name), tmp_path)[0]
    assert (cell.value, cell.std, cell.metric.unit) == (62, pytest.approx(8**0.5), "s")
