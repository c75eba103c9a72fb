"""The cells of tables, filled from the records that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.settings.identity import Evaluation, Run
from robustbench_lab.storage.files import say_once
from robustbench_lab.storage.folders import OutputFolder
from robustbench_lab.tables.base import Evidence, Figure, Metric
from robustbench_lab.tables.expansion import Expansion
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.metrics import over_seeds
from robustbench_lab.tables.published import PublishedFigure


@dataclass(frozen=True)
class Measurement:
    """One evaluation behind a cell: the words that describe it, its record where there is one, and the figure in it."""

    overrides: list[str]
    evaluation: Evaluation
    record: dict[str, Any] | None
    figure: Figure | None
    problem: str | None  # why a record that there is does not count

    @property
    def seed(self) -> int:
        """Of training."""
        return int(self.evaluation.run.config["seed"])

    @property
    def runs(self) -> list[Run]:
        """The attacked run, and the attacker's where that is another one."""
        return [run for run in (self.evaluation.run, self.evaluation.source) if run is not None]


@dataclass(frozen=True)
class Cell:
    """One figure of a table, in its metric's unit.

    measurements: the evaluations behind it: none for a row that is not run or a figure worked out from other cells alone, several where it
    is a mean over training seeds. figure: None unless all of them, and the cells that it is worked out from, have theirs.
    """

    row: str
    column: str
    metric: Metric
    form: str  # in which its figures are written
    measurements: Sequence[Measurement]
    figure: Figure | None
    problem: str | None  # why records that there are do not count, or are not enough
    not_run: bool
    paper: PublishedFigure | None
    band: float | None  # the difference up to which ours counts as the published figure

    @property
    def name(self) -> str:
        return f"{self.row} / {self.column}"

    @property
    def in_percent(self) -> bool:
        return self.metric.in_percent

    @property
    def missing(self) -> bool:
        """Whether it could be measured and is not."""
        return self.figure is None and not self.not_run

    @property
    def seeds(self) -> list[int]:
        """The training seeds that it is a mean over; none where it is of one run."""
        return [measurement.seed for measurement in self.measurements] if len(self.measurements) > 1 else []

    @property
    def evaluation(self) -> Evaluation | None:
        """The first of those behind it."""
        return self.measurements[0].evaluation if self.measurements else None

    @property
    def records(self) -> list[dict[str, Any]]:
        """Those that its figure comes from."""
        return [one.record for one in self.measurements if one.record is not None] if self.figure is not None else []

    @property
    def record(self) -> dict[str, Any] | None:
        """The first of those that its figure comes from."""
        return next(iter(self.records), None)

    @property
    def runs(self) -> list[Run]:
        return [run for measurement in self.measurements for run in measurement.runs]

    @property
    def value(self) -> float | None:
        return self.figure.value if self.figure else None

    @property
    def std(self) -> float | None:
        """Over training seeds, or over the attack's runs, where the value is their mean."""
        return self.figure.std if self.figure else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 %."""
        return self.figure.interval if self.figure else None

    @property
    def n(self) -> int | None:
        """The images that count."""
        return self.figure.n if self.figure else None

    @property
    def published(self) -> float | None:
        return self.paper.value if self.paper else None

    @property
    def published_std(self) -> float | None:
        return self.paper.std if self.paper else None

    @property
    def quoted_from(self) -> str | None:
        """Where the paper took its figure from, if it is not its own."""
        return self.paper.quoted_from if self.paper else None

    @property
    def difference(self) -> float | None:
        """Ours minus theirs."""
        return None if self.value is None or self.published is None else self.value - self.published

    @property
    def verdict(self) -> str:
        if self.not_run:
            return "not run"
        if self.figure is None:
            return "not measured"
        if self.value is None:
            return "no image counts"
        if self.difference is None:
            return "no published figure"
        if self.band is None:
            return "not compared"
        return "within the band" if abs(self.difference) <= self.band + 1e-9 else "differs"

    @property
    def flags(self) -> list[dict[str, str]]:
        """What the records warn of: code and message, each once."""
        told = [(w["code"], w.get("message", "")) for record in self.records for w in record.get("warnings", [])]
        return [{"code": code, "message": message} for code, message in (dict.fromkeys(told) if self.seeds else told)]

    def fields(self) -> dict[str, Any]:
        """A line of the CSV; unit: `%`, or the metric's name for what is in a unit of its own."""
        low, high = self.interval or (None, None)
        return {
            "row": self.row,
            "column": self.column,
            "metric": self.metric.name,
            "unit": self.metric.unit,
            "ours": self.value,
            "ours_std": self.std,
            "interval_low": low,
            "interval_high": high,
            "n": self.n,
            "seeds": " ".join(map(str, self.seeds)) or None,
            "published": self.published,
            "published_std": self.published_std,
            "quoted_from": self.quoted_from,
            "difference": self.difference,
            "verdict": self.verdict,
            "warnings": " ".join(flag["code"] for flag in self.flags),
            "problem": self.problem,
            "record": " ".join(name_of(one.evaluation) for one in self.measurements) if self.records else None,
        }


def name_of(evaluation: Evaluation) -> str:
    """Where its record is among the runs."""
    return f"{evaluation.run.name}/evaluate/{evaluation.name}"


def filled(tables: Sequence[Table], output_root: Path, here: Sequence[str] = ()) -> list[tuple[Table, list[Cell]]]:
    """Each table with its cells, row by row; what they share is composed and read once. here: words that hold for every cell, such as where
    images are."""
    return filled_from(tables, [output_root], here)[0]


def filled_from(tables: Sequence[Table], output_roots: Sequence[Path], here: Sequence[str] = ()) -> list[list[tuple[Table, list[Cell]]]]:
    """The same from each of several output folders."""
    expansion, every = Expansion(here), [Records(output_root) for output_root in output_roots]
    return [[(table, _Filling(table, expansion, known).cells()) for table in tables] for known in every]


def cells_of(table: Table, output_root: Path) -> list[Cell]:
    """Every cell of the grid, row by row, with its records where there are some."""
    return filled([table], output_root)[0][1]


class _Filling:
    """A table's cells on their way from words to figures; those that are worked out from others come after these."""

    def __init__(self, table: Table, expansion: Expansion, known: Records) -> None:
        self.table, self.expansion, self.known = table, expansion, known
        self.found: dict[str, Cell] = {}

    def cells(self) -> list[Cell]:
        table = self.table
        places = {f"{row.label} / {column.label}": (i, j) for i, row in enumerate(table.rows) for j, column in enumerate(table.columns)}
        behind = {name: table.cells_behind(table.rows[i], table.columns[j]).values() for name, (i, j) in places.items()}
        for name in TopologicalSorter(behind).static_order():  # without circles: read_table has seen to it
            self.found[name] = self._cell(*places[name])
        return [self.found[name] for name in places]

    def _cell(self, i: int, j: int) -> Cell:
        table, row, column = self.table, self.table.rows[i], self.table.columns[j]
        metric, behind = table.metric_of(column), table.cells_behind(row, column)
        others = {called: self.found[name] for called, name in behind.items()}
        lacking = sorted({cell.name for cell in others.values() if cell.value is None})
        try:
            measurements = [self._measured(metric, words, {} if lacking else others) for words in table.words_of(row, column)]
        except Exception as error:
            raise LabError(f"{table.path}: {row.label} / {column.label}: {error}") from error
        figure, problem = _figure(measurements)
        if row.not_run is None and lacking:
            figure, problem = None, f"worked out from {', '.join(lacking)}, which has no figure"
        elif row.not_run is None and not metric.evaluated:
            figure = metric.figure_of(Evidence({}, cells={called: _of_seed(cell, None) for called, cell in others.items()}))
        return Cell(
            row=row.label,
            column=column.label,
            metric=metric,
            form=table.form_of(column),
            measurements=measurements,
            figure=figure,
            problem=problem,
            not_run=row.not_run is not None,
            paper=None if table.profile == "smoke" else table.published_in(row, column),  # embedded data stand beside no published figure
            band=table.bands[j] if table.profile == "paper" else None,  # a short schedule reproduces nothing
        )

    def _measured(self, metric: Metric, words: list[str], others: Mapping[str, Cell]) -> Measurement:
        """Raises LabError where the evaluation that the words describe cannot measure the metric."""
        evaluation = self.expansion.evaluation(words)
        if not metric.measured_by(evaluation.config):
            raise LabError(f"{metric.name} needs {metric.word}, got attack={evaluation.choices['attack']}")
        record, problem = self.known.find(evaluation)
        figure, seed = None, int(evaluation.run.config["seed"])
        if record is not None and len(others) == len(metric.cells):
            seen = Evidence(
                record,
                self.known.run(evaluation.run),
                partial(self.known.arrays, evaluation),
                {called: _of_seed(cell, seed) for called, cell in others.items()},
                {called: cell.evaluation.run.config for called, cell in others.items() if cell.evaluation is not None},
            )
            try:
                figure = metric.figure_of(seen)
            except LabError as error:
                record, problem = None, f"{name_of(evaluation)}: {error}"
        return Measurement(words, evaluation, record, figure, problem)


def _figure(measurements: Sequence[Measurement]) -> tuple[Figure | None, str | None]:
    """The figure of all, and why there is none although there are records."""
    figures = [one.figure for one in measurements if one.figure is not None]
    if figures and len(figures) == len(measurements):
        return over_seeds(figures), None
    if len(measurements) < 2:
        return None, measurements[0].problem if measurements else None
    problems = [f"seed {one.seed}: {one.problem}" for one in measurements if one.problem]
    waiting = [str(one.seed) for one in measurements if one.record is None and not one.problem]
    if waiting and (figures or problems):
        problems.append(f"not measured yet: {'seed' if len(waiting) == 1 else 'seeds'} {', '.join(waiting)}")
    return None, "; ".join(problems) or None


def _of_seed(cell: Cell, seed: int | None) -> Figure:
    """The cell's figure of the training with this seed, if it has one of several; else that of the cell."""
    own = next((one.figure for one in cell.measurements if cell.seeds and one.seed == seed), None)
    figure = own or cell.figure
    assert figure is not None, "cells without a figure are not looked at"
    return figure


class Records:
    """The records of an output folder, each file read once."""

    def __init__(self, output_root: Path) -> None:
        self._folder = OutputFolder(output_root)
        self._found: dict[tuple[str, str], tuple[dict[str, Any] | None, str | None]] = {}

    def find(self, evaluation: Evaluation) -> tuple[dict[str, Any] | None, str | None]:
        """The evaluation's record; or None and, unless it was never made, why it does not count."""
        key = (evaluation.run.fingerprint, evaluation.fingerprint)
        if key not in self._found:
            self._found[key] = self._read(evaluation)
        return self._found[key]

    def _read(self, evaluation: Evaluation) -> tuple[dict[str, Any] | None, str | None]:
        run = self._folder.runs.get(evaluation.run.fingerprint)
        folder = None if run is None else evaluation.within(run)
        if run is None or folder is None or not folder.made:
            return None, None
        try:
            return folder.record(self._folder.digests({part: of.fingerprint for part, of in evaluation.runs.items()})), None
        except LabError as error:
            say_once(f"counts as missing: {error}")
            return None, str(error)

    def arrays(self, evaluation: Evaluation, file: str) -> dict[str, np.ndarray]:
        """Those of a file that the evaluation left, such as outcome.npz. Raises LabError where there is none."""
        folder = evaluation.within(self._folder.runs[evaluation.run.fingerprint])
        if (arrays := folder.arrays(file)) is None:
            raise LabError(f"{folder.path / file} is gone; evaluate again with force=true")
        return arrays

    def run(self, run: Run) -> dict[str, Any]:
        """What the run says of itself. Raises LabError where it is not trained or damaged."""
        return self._folder.runs[run.fingerprint].record
