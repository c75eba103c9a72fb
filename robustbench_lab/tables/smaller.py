"""What other tables have measured by a short schedule, beside the published figures of rows that wait for theirs at full size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from robustbench_lab.tables.base import number
from robustbench_lab.tables.cells import Cell, filled
from robustbench_lab.tables.grid import Smaller, Table
from robustbench_lab.tables.reading import read_table


@dataclass(frozen=True)
class Line:
    """Figures as text, and what stands in brackets behind each, by column, None where there is none: those of a model that a table has, or
    the published ones of a row here."""

    label: str
    table: str | None  # None: published
    figures: Sequence[tuple[str, str] | None]


@dataclass(frozen=True)
class Source:
    """Where figures are from. rows: there. renamed: columns that have another name there, (here, there). waiting: how many of the figures
    that are asked of it are not measured yet."""

    table: Table
    rows: Sequence[str]
    renamed: Sequence[tuple[str, str]]
    note: str | None
    waiting: int
    asked: int


@dataclass(frozen=True)
class StandIns:
    """Each published row, and below it the models that stand in for it. about: what the figures are."""

    columns: Sequence[str]
    lines: Sequence[Line]
    sources: Sequence[Source]
    about: str


@dataclass(frozen=True)
class _Model:
    """A row there that stands in for a row here: its cells, by the columns here."""

    row: str
    label: str
    entry: Smaller
    cells: Mapping[str, Cell]

    @property
    def measured(self) -> dict[str, Cell]:
        return {column: cell for column, cell in self.cells.items() if cell.value is not None}


def stand_ins(table: Table, cells: Sequence[Cell], output_root: Path) -> StandIns | None:
    """Of the rows here in which a cell waits, as `table.smaller` says; None where nothing stands in."""
    if not table.smaller:
        return None
    others = [read_table(name) for name in dict.fromkeys(entry.table for entry in table.smaller)]
    there = {other.name: (other, {cell.name: cell for cell in found}) for other, found in filled(others, output_root)}
    own = {cell.name: cell for cell in cells}
    models = list(_models(table, own, {name: found for name, (_, found) in there.items()}))
    shown = [model for model in models if model.measured]
    if not shown:
        return None
    columns = [column.label for column in table.columns if any(column.label in model.measured for model in shown)]
    lines = []
    for row, standing_in in groupby(shown, lambda model: model.row):
        lines.append(Line(row, None, [_published(own[f"{row} / {column}"]) for column in columns]))
        lines += [Line(model.label, model.entry.table, [_ours(model.measured.get(column)) for column in columns]) for model in standing_in]
    sources = [_source(entry, there[entry.table][0], [model for model in models if model.entry is entry]) for entry in table.smaller]
    return StandIns(columns, lines, [source for source in sources if source.asked], _about(shown))


def _models(table: Table, own: Mapping[str, Cell], there: Mapping[str, Mapping[str, Cell]]) -> Iterator[_Model]:
    for row in table.rows:
        for entry in table.smaller:
            if any(own[f"{row.label} / {column}"].figure is None for column in entry.columns):
                for label in entry.rows.get(row.label, ()):
                    cells = {column: there[entry.table][f"{label} / {other}"] for column, other in entry.columns.items()}
                    yield _Model(row.label, label, entry, cells)


def _published(cell: Cell) -> tuple[str, str] | None:
    told = number(cell.published, cell.form, cell.published_std)
    return None if told is None else (told, "" if cell.quoted_from is None else "quoted")


def _ours(cell: Cell | None) -> tuple[str, str] | None:
    if cell is None or (told := number(cell.value, cell.form, cell.std)) is None:
        return None
    more = [] if cell.interval is None else [f"{cell.interval[0]:{cell.form}} to {cell.interval[1]:{cell.form}}"]
    return told, ", ".join([*more, f"n = {cell.n}", *dict.fromkeys(flag["code"] for flag in cell.flags)])


def _source(entry: Smaller, other: Table, models: Sequence[_Model]) -> Source:
    cells = {cell.name: cell for model in models for cell in model.cells.values()}  # one may stand in for two rows
    renamed = [(column, label) for column, label in entry.columns.items() if label not in column]
    rows = list(dict.fromkeys(model.label for model in models))
    return Source(other, rows, renamed, entry.note, sum(cell.figure is None for cell in cells.values()), len(cells))


def _about(shown: Sequence[_Model]) -> str:
    cells = [cell for model in shown for cell in model.measured.values() if cell.std is not None]
    over = dict.fromkeys("training seeds" if cell.seeds else cell.metric.deviation for cell in cells)
    deviations = "".join(f"; ± the sample standard deviation over {what}" for what in over)
    return f"Behind a figure its 95 % interval, where there is one, and n, the number of test images{deviations}."
