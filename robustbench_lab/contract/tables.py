"""The clauses of a table (conf/table/<paper>/<table>.yaml): nothing is trained, but all of its cells are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from robustbench_lab.contract.clause import Clause
from robustbench_lab.contract.trying import clause_of, demand
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.reading import chosen_tables, read_table


def clauses(name: str, words: Sequence[str] = ()) -> Iterator[Clause]:
    """name: <paper>/<table>; a table takes no words."""
    clause = clause_of(f"table={name}")
    yield clause(reads, name)
    yield clause(composes, name)


def reads(name: str) -> None:
    """Its file is read without an error; no other table has its title."""
    chosen_tables(name)


def composes(name: str) -> None:
    """There is a cell for each row and column, whose words describe an evaluation, and no two cells show the same figure."""
    table = read_table(name)
    demand_grid(table, cells_of(table, Path("/nowhere")))


def demand_grid(table: Table, cells: Sequence[Cell]) -> None:
    expected = [(row.label, column.label) for row in table.rows for column in table.columns]
    demand([(cell.row, cell.column) for cell in cells] == expected, f"expected the cells {expected}")
    shown: dict[object, Cell] = {}
    for cell in (cell for cell in cells if cell.evaluation is not None):
        key = cell.evaluation.run.fingerprint, cell.evaluation.fingerprint, cell.metric  # type: ignore[union-attr]
        other = shown.setdefault(key, cell)
        demand(other is cell, f"({cell.row}, {cell.column}) and ({other.row}, {other.column}) show the same figure")
