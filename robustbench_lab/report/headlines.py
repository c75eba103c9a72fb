"""What a table says at first sight: the published figures, ours, and ours under the strongest attack, in a few lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from robustbench_lab.report.entries import Ball, Entry
from robustbench_lab.report.sections import Comparison, Section
from robustbench_lab.tables.cells import Cell
from robustbench_lab.tables.metrics import metric_of

MOST = 8  # lines


@dataclass(frozen=True)
class Line:
    """One model, or one row: a cell of the table and, where the attacker sees the model, the strongest attack of all records."""

    label: str
    cell: Cell
    strongest: Entry | None
    strongest_label: str = ""

    @property
    def only(self) -> bool:
        """Whether no other attack was tried than the one that the table shows."""
        record = self.cell.record
        return record is not None and self.strongest is not None and record["fingerprint"] == self.strongest.fingerprint


@dataclass(frozen=True)
class Headline:
    """`of`: what the figures are; `more`: the lines that are left out."""

    of: str
    lines: Sequence[Line]
    more: int

    @property
    def compares(self) -> bool:
        return any(line.cell.published is not None for line in self.lines)

    @property
    def attacked(self) -> bool:
        return any(line.strongest is not None for line in self.lines)

    @property
    def in_percent(self) -> bool:
        return all(line.cell.in_percent for line in self.lines)


def headline_of(section: Section) -> Headline:
    """Of the models in one ball where the attacker sees them; else of one column that shows what the table is about."""
    if chosen := in_one_ball(section):
        lines = [Line(row.model, row.cell, row.strongest, row.strongest_label) for row in chosen]
        return Headline(f"Accuracy under attack, {chosen[0].ball}", lines[:MOST], len(lines[MOST:]))
    column = _column(section)
    cells = [cell for cell in section.measured if cell.column == column]
    lines = [Line(cell.row, cell, None) for cell in cells]
    axis = section.table.corner.partition(" / ")[2]
    return Headline(f"{cells[0].metric.title}, {axis} {column}".replace(",  ", ", "), lines[:MOST], len(lines[MOST:]))


def _column(section: Section) -> str:
    """Of the columns with the table's metric, the one with most published figures; of these, the one nearest to the dataset's own ball."""
    columns: dict[str, list[Cell]] = {}
    for cell in section.measured:
        columns.setdefault(cell.column, []).append(cell)
    about = {column: cells for column, cells in columns.items() if cells[0].metric == metric_of(section.table.metric)} or columns

    def rank(column: str) -> tuple[object, ...]:
        evaluation = about[column][0].evaluation
        assert evaluation is not None, "a measured cell has one"
        return -sum(cell.published is not None for cell in about[column]), *_away(Ball.of(evaluation.config["budget"]), section)

    return min(about, key=rank)


def in_one_ball(section: Section) -> list[Comparison]:
    """The comparisons in the ball in which the paper has most figures, and of these in the one that is nearest to the dataset's own; none
    where the attacker of no cell sees the model."""
    balls: dict[Ball, list[Comparison]] = {}
    for comparison in section.comparisons:
        balls.setdefault(comparison.ball, []).append(comparison)

    def rank(ball: Ball) -> tuple[object, ...]:
        return -sum(comparison.cell.published is not None for comparison in balls[ball]), *_away(ball, section), ball.eps, ball.norm

    return balls[min(balls, key=rank)] if balls else []


def _away(ball: Ball, section: Section) -> tuple[bool, float]:
    """How far a ball is from the one that the dataset's config names."""
    own = Ball.of(section.evaluated[0][1].run.config["dataset"]["budget"])
    return ball.norm != own.norm, abs(ball.eps - own.eps)
