"""What the report shows of one table, worked out from its cells and from every record of the models in it; no drawing, no HTML."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from robustbench_lab.report.charts import Pair, Point, Reach
from robustbench_lab.report.entries import Ball, Entry, Panel, Trained

if TYPE_CHECKING:
    from robustbench_lab.settings.identity import Evaluation
    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table
    from robustbench_lab.tables.view import ShownCell, View

WIDEST = 8  # columns that a page has room for
GROUPS = ("dataset", "backbone", "defense", "training")
OF_THE_ATTACK = {"collapsed", "transfer_only"}  # warnings of a record that say nothing about hidden gradients
PANEL = {
    "clean": "clean", "one_step": "one step", "iterated": "iterated", "longer": "more steps", "margin": "margin loss",
    "larger": "larger ball", "unbounded": "no bound", "queries": "queries", "random": "random draws", "strongest": "strongest",
}  # fmt: skip


class Model(NamedTuple):
    """What is attacked: a run, by its fingerprint, as it was trained or with its noise switched off."""

    run: str
    without_noise: bool


@dataclass(frozen=True)
class Comparison:
    """One model in one ball, seen by the attacker: the paper's attack, as `cell` shows it, and the strongest attack of all records."""

    model: str
    ball: Ball
    attack: str
    cell: Cell
    strongest: Entry

    @property
    def strongest_label(self) -> str:
        other = self.cell.n is not None and self.strongest.n != self.cell.n
        return f"{self.strongest.attack}, n = {self.strongest.n:,}" if other else self.strongest.attack

    def reach(self) -> Reach:
        return Reach(self.model, self.strongest_label, self.cell.published, _point(self.cell), self.strongest.robust)


class Grid(NamedTuple):
    """head: the corner and the columns' labels; rows: a label, and each cell with its number, by which links know it."""

    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[int, ShownCell]]]]


@dataclass(frozen=True)
class Section:
    """One table as one profile made it. `entries`: every record of each run; `trained`: the runs that could be read."""

    table: Table
    cells: Sequence[Cell]
    view: View
    entries: Mapping[str, Sequence[Entry]]
    trained: Mapping[str, Trained]
    of_the_project: bool = False

    @property
    def anchor(self) -> str:
        name = f"{self.table.name.replace('/', '-')}-{self.table.profile}"
        return f"project-{name}" if self.of_the_project else name

    @property
    def measured(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.figure is not None]

    @cached_property
    def evaluated(self) -> list[tuple[Cell, Evaluation]]:
        """The cells that are run, measured or not, with their evaluations."""
        return [(cell, measurement.evaluation) for cell in self.cells for measurement in cell.measurements]

    def count(self, verdict: str) -> int:
        return sum(cell.verdict == verdict for cell in self.measured)

    @cached_property
    def attacked(self) -> list[Model]:
        """The models that the measured cells attack."""
        return list(dict.fromkeys(_model(evaluation) for cell, evaluation in self.evaluated if cell.record is not None))

    @cached_property
    def models(self) -> dict[Model, str]:
        """What the table calls each model: its row, its column, or else the words in which it differs from the others."""
        runs = {_model(evaluation): evaluation.run for _, evaluation in self.evaluated}
        for axis in ("row", "column"):
            labels: dict[Model, set[str]] = {}
            for cell, evaluation in self.evaluated:
                labels.setdefault(_model(evaluation), set()).add(getattr(cell, axis))
            named = {model: min(found) for model, found in labels.items()}
            if all(len(found) == 1 for found in labels.values()) and len(set(named.values())) == len(named):
                return named
        words = {model: {**run.choices, "seed": f"seed {run.config['seed']}"} for model, run in runs.items()}
        for model in filter(lambda model: model.without_noise, words):
            words[model]["defense"] += " without noise"
        differing = [group for group in (*GROUPS, "seed") if len({entry[group] for entry in words.values()}) > 1]
        named = {model: " ".join(entry[group] for group in differing) or runs[model].name for model, entry in words.items()}
        unique = len(set(named.values())) == len(named)
        return named if unique else {model: f"{name} {model.run}" for model, name in named.items()}

    @property
    def in_small_part(self) -> bool:
        """Whether less than half of it is measured, such as by records that it shares with another table."""
        return 2 * len(self.measured) < len(self.evaluated)

    @property
    def holding(self) -> int:
        """How many of the paper's claims hold."""
        return sum(claim.verdict == "holds" for claim in self.view.every_claim)

    @property
    def grid(self) -> Grid:
        """As the table stands, or, where that is wider than a page, with its columns beneath each other."""
        head, rows, width = self.view.head, self.view.rows, len(self.table.columns)
        cells = [[(i * width + j, cell) for j, cell in enumerate(row.cells)] for i, row in enumerate(rows)]
        if width <= max(WIDEST, len(rows)):
            return Grid(head, [(row.label, line) for row, line in zip(rows, cells, strict=True)])
        corner = " / ".join(reversed(head[0].split(" / ")))
        return Grid([corner, *(row.label for row in rows)], list(zip(head[1:], zip(*cells, strict=True), strict=True)))

    def entry(self, evaluation: Evaluation) -> Entry | None:
        of_run = self.entries.get(evaluation.run.fingerprint, ())
        return next((entry for entry in of_run if entry.fingerprint == evaluation.fingerprint), None)

    @cached_property
    def distinct(self) -> list[tuple[Entry, list[Cell]]]:
        """Each record that fills a cell, with the cells that it fills."""
        found: dict[tuple[str, str], tuple[Entry, list[Cell]]] = {}
        for cell, evaluation in self.evaluated:
            entry = self.entry(evaluation) if cell.record is not None else None
            if entry is not None:
                found.setdefault((entry.run, entry.fingerprint), (entry, []))[1].append(cell)
        return list(found.values())

    @cached_property
    def judged(self) -> list[Cell]:
        """The cells of which it is said whether they are within the band."""
        return [cell for cell in self.measured if cell.difference is not None and cell.band is not None]

    @cached_property
    def pairs(self) -> list[tuple[float, Pair]]:
        """Band and figures of the cells that are judged; what is not in percent has no place on the same axes."""
        found = []
        for cell in self.judged:
            if cell.in_percent and cell.band is not None and cell.published is not None and (ours := _point(cell)) is not None:
                found.append((cell.band, Pair(cell.published, ours, cell.verdict == "within the band")))
        return found

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """For each model and bounded ball in which the table attacks a model that it shows: the paper's figure, and our strongest."""
        groups: dict[tuple[Model, Ball], list[tuple[Cell, Evaluation]]] = {}
        for cell, evaluation in self.evaluated:
            ball = Ball.of(evaluation.config["budget"])
            white = evaluation.config["threat_model"]["sees"] == "defended"
            if white and cell.metric.under_attack and math.isfinite(ball.eps):
                groups.setdefault((_model(evaluation), ball), []).append((cell, evaluation))
        return [found for (model, ball), cells in groups.items() if (found := self._comparison(model, ball, cells)) is not None]

    def _comparison(self, model: Model, ball: Ball, cells: Sequence[tuple[Cell, Evaluation]]) -> Comparison | None:
        tried = [entry for entry in self.entries.get(model.run, ()) if entry.white and entry.ball == ball and _model_in(entry) == model]
        if not tried:
            return None
        published = [(cell.published, i) for i, (cell, _) in enumerate(cells) if cell.published is not None]
        measured = [(cell.value, i) for i, (cell, _) in enumerate(cells) if cell.value is not None]
        if not published and not measured:
            return None
        told, evaluation = cells[min(published or measured)[1]]
        strongest = min(tried, key=lambda entry: (entry.robust.value, entry.attack, entry.fingerprint))
        return Comparison(self.models[model], ball, evaluation.choices["attack"], told, strongest)

    @property
    def means(self) -> str:
        """What is said where the figures of the table's own attack count otherwise than those of the strongest."""
        if all(comparison.cell.metric.name == "robust_accuracy" for comparison in self.comparisons):
            return ""
        return (
            " Where the table shows a mean over draws or runs, so do the figures of its own attack; under the strongest attack only images "
            "count that are right in every one of them."
        )

    @cached_property
    def panels(self) -> list[tuple[str, Panel, list[Mapping[str, str]]]]:
        """Model, panel and the signs of hidden gradients that its records tell, for each model and ball that a panel tried."""
        rows = {}
        for entry, _ in self.distinct:
            if entry.panel is not None:
                same = [other for other in self.entries[entry.run] if other.panel is not None and other.panel.key == entry.panel.key]
                told = {warning["code"]: warning for other in same for warning in other.warnings if warning["code"] not in OF_THE_ATTACK}
                rows[entry.run, entry.panel.key] = (self.models[_model_in(entry)], entry.panel, [told[code] for code in sorted(told)])
        return list(rows.values())

    @property
    def signs(self) -> list[tuple[str, Panel, Mapping[str, str]]]:
        return [(model, panel, sign) for model, panel, signs in self.panels for sign in signs]

    @property
    def tried(self) -> dict[str, str]:
        """The panel's attacks that some row has, in order, with their headings."""
        return {name: words for name, words in PANEL.items() if any(name in panel.accuracy for _, panel, _ in self.panels)}

    @cached_property
    def training(self) -> list[tuple[str, Trained]]:
        """Model and run; those that the attacker sees instead come last."""
        found: dict[str, str] = {}
        for model in sorted(self.attacked, key=lambda model: model.without_noise):  # with its noise first
            found.setdefault(model.run, self.models[model])
        for cell, evaluation in self.evaluated:
            if cell.record is not None and evaluation.source is not None:
                found.setdefault(evaluation.source.fingerprint, evaluation.source.name)
        return [(model, self.trained[key]) for key, model in found.items() if key in self.trained]

    def curves(self) -> tuple[str, list[tuple[str, list[float], list[float]]]]:
        """What is drawn, and label, epochs and values of each run that has it: validation accuracy where a run has it, else the loss."""
        for key, measure, factor in (("validation_accuracy", "validation accuracy, %", 100.0), ("loss_model", "training loss", 1.0)):
            lines = []
            for model, run in self.training:
                points = [(float(row["epoch"]), factor * row[key]) for row in run.epochs if _is_finite(row.get(key)) and "epoch" in row]
                if points:
                    lines.append((model, [epoch for epoch, _ in points], [value for _, value in points]))
            if lines:
                return measure, lines
        return "", []

    def strongest_rows(self, most: int) -> Iterator[tuple[str, Entry]]:
        """For each model, the record of this table that broke most of its images: model and record, at most so many."""
        best: dict[Model, Entry] = {}
        for entry, _ in self.distinct:
            model = _model_in(entry)
            if model not in best or entry.robust.value < best[model].robust.value:
                best[model] = entry
        yield from [(self.models[model], entry) for model, entry in best.items()][:most]


def _model(evaluation: Evaluation) -> Model:
    return Model(evaluation.run.fingerprint, bool(evaluation.config.get("without_noise")))


def _model_in(entry: Entry) -> Model:
    return Model(entry.run, bool(entry.record["config"].get("without_noise")))


def _point(cell: Cell) -> Point | None:
    """Ours; a mean over draws or runs has no interval."""
    return None if cell.value is None else Point(cell.value, *(cell.interval or (cell.value, cell.value)))


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def flat(content: object, prefix: str = "") -> list[str]:
    """A resolved config as `key.of.it = value` lines."""
    if isinstance(content, Mapping) and content:
        return [line for key, entry in content.items() for line in flat(entry, f"{prefix}.{key}" if prefix else str(key))]
    return [f"{prefix} = {'null' if content is None else str(content).lower() if isinstance(content, bool) else content}"]
