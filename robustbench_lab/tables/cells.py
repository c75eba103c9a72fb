"""The cells of tables, filled from the records that there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.settings.identity import Evaluation, Run
from robustbench_lab.storage.folders import OutputFolder
from robustbench_lab.tables.expansion import Expansion
from robustbench_lab.tables.grid import Column, Row, Table
from robustbench_lab.tables.published import PublishedFigure
from robustbench_lab.tables.units import Figure, figure_of, is_percent, unit_of, word_for


@dataclass(frozen=True)
class Cell:
    """One figure: the words that describe it, its evaluation, and its record where there is one. Figures are in the metric's unit.

    A cell of a row that is not run has no words and no evaluation.
    """

    row: str
    column: str
    metric: str
    form: str  # in which its figures are written
    overrides: list[str]
    evaluation: Evaluation | None
    record: dict[str, Any] | None
    figure: Figure | None  # what the record says
    problem: str | None  # why a record that there is does not count
    paper: PublishedFigure | None
    band: float | None  # the difference up to which ours counts as the published figure

    @property
    def name(self) -> str:
        return f"{self.row} / {self.column}"

    @property
    def in_percent(self) -> bool:
        return is_percent(self.metric)

    @property
    def missing(self) -> bool:
        """Whether it could be measured and is not."""
        return self.evaluation is not None and self.record is None

    @property
    def runs(self) -> list[Run]:
        """The attacked run, and the attacker's where that is another one."""
        return [] if self.evaluation is None else [run for run in (self.evaluation.run, self.evaluation.source) if run is not None]

    @property
    def value(self) -> float | None:
        return self.figure.value if self.figure else None

    @property
    def std(self) -> float | None:
        """Over the attack's runs, where the value is their mean."""
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
        if self.evaluation is None:
            return "not run"
        if self.record is None:
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
        """What the record warns of: code and message."""
        return (
            [] if self.record is None else [{"code": w["code"], "message": w.get("message", "")} for w in self.record.get("warnings", [])]
        )

    def fields(self) -> dict[str, Any]:
        """A line of the CSV; unit: `%`, or the metric's name for what is in a unit of its own."""
        low, high = self.interval or (None, None)
        return {
            "row": self.row,
            "column": self.column,
            "metric": self.metric,
            "unit": unit_of(self.metric),
            "ours": self.value,
            "ours_std": self.std,
            "interval_low": low,
            "interval_high": high,
            "n": self.n,
            "published": self.published,
            "published_std": self.published_std,
            "quoted_from": self.quoted_from,
            "difference": self.difference,
            "verdict": self.verdict,
            "warnings": " ".join(flag["code"] for flag in self.flags),
            "problem": self.problem,
            "record": f"{self.evaluation.run.name}/evaluate/{self.evaluation.name}" if self.evaluation and self.record else None,
        }


def filled(tables: Sequence[Table], output_root: Path) -> list[tuple[Table, list[Cell]]]:
    """Each table with its cells, row by row; what they share is composed and read once."""
    return filled_from(tables, [output_root])[0]


def filled_from(tables: Sequence[Table], output_roots: Sequence[Path]) -> list[list[tuple[Table, list[Cell]]]]:
    """The same from each of several output folders."""
    words = [list(table.words()) for table in tables]
    expansion, every = Expansion(), [Records(output_root) for output_root in output_roots]
    return [[(table, _cells(table, cells, expansion, known)) for table, cells in zip(tables, words, strict=True)] for known in every]


def cells_of(table: Table, output_root: Path) -> list[Cell]:
    """Every cell of the grid, row by row, with its record where there is one."""
    return filled([table], output_root)[0][1]


def _cells(table: Table, words: Sequence[tuple[Row, Column, list[str]]], expansion: Expansion, known: Records) -> list[Cell]:
    described = {(row.label, column.label): overrides for row, column, overrides in words}
    bands = table.bands if table.profile == "paper" else [None] * len(table.columns)  # a short schedule reproduces nothing
    cells = []
    for row in table.rows:
        for column, band in zip(table.columns, bands, strict=True):
            overrides, metric = described.get((row.label, column.label), []), table.metric_of(column)
            evaluation, record, figure, problem = None, None, None, None
            if row.not_run is None:
                try:
                    evaluation = _evaluation(metric, overrides, expansion)
                except Exception as error:
                    raise LabError(f"{table.path}: {row.label} / {column.label}: {error}") from error
                record, problem = known.find(evaluation)
                try:
                    figure = figure_of(metric, record) if record else None
                except LabError as error:
                    record, problem = None, f"{evaluation.run.name}/evaluate/{evaluation.name}: {error}"
            paper = None if table.profile == "smoke" else table.published_in(row, column)  # embedded data stand beside no published figure
            form = table.form_of(column)
            cells.append(Cell(row.label, column.label, metric, form, overrides, evaluation, record, figure, problem, paper, band))
    return cells


def _evaluation(metric: str, words: Sequence[str], expansion: Expansion) -> Evaluation:
    """The evaluation that the words describe. Raises LabError where its attack cannot measure the metric."""
    evaluation = expansion.evaluation(words)
    if metric == "accuracy_of_runs" and not str(evaluation.config["attack"]["_target_"]).endswith(".Repeated"):
        raise LabError(f"{metric} needs {word_for(metric)}, got attack={evaluation.choices['attack']}")
    return evaluation


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
            record = folder.record(self._folder.digests({part: of.fingerprint for part, of in evaluation.runs.items()}))
        except LabError as error:
            return None, str(error)
        record["run"]["parameters"] = run.record.get("parameters")  # a record need not repeat what its run says
        return record, None
