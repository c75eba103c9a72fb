"""A few cells of many tables in which everything appears once that they choose from: a quick proof that all of it runs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_lab.settings.conf import choices
from robustbench_lab.settings.identity import Evaluation, Run
from robustbench_lab.settings.overrides import parsed
from robustbench_lab.tables.cells import Cell
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.planning import asked_by, key_of

REPEATING = ("steps", "restarts", "searches", "queries", "generations", "draws", "times", "passes", "noisy_copies")  # what multiplies work


@dataclass(frozen=True)
class Part:
    """Cells of one table that are taken together, what appears in them, and the work behind them: seconds of a small model, by job."""

    cells: tuple[Cell, ...]
    features: frozenset[Hashable]
    work: Mapping[Hashable, float]

    def more_work(self, done: Mapping[Hashable, float]) -> float:
        return sum(seconds for job, seconds in self.work.items() if job not in done)


def covering(tables: Sequence[tuple[Table, list[Cell]]]) -> dict[str, list[Cell]]:
    """Of each table, by name, the cells to measure, one or more: together they have every choice of a group, metric, flag and kind of
    figure that any cell has.

    Always the part that adds most for its work (a run that is trained already is none), then without those that others make needless:
    not the least possible, but small and the same each time.
    """
    parts = [part for table, cells in tables for part in _parts(table, cells)]
    left = set[Hashable]().union(*(part.features for part in parts))
    taken: list[Part] = []
    done: dict[Hashable, float] = {}
    while left:
        part = max(parts, key=lambda part: len(part.features & left) / (part.more_work(done) + 0.01))
        taken.append(part)
        left -= part.features
        done.update(part.work)
    for part in sorted(taken, key=lambda part: -sum(part.work.values())):
        others = [other for other in taken if other is not part]
        if part.features <= set[Hashable]().union(*(other.features for other in others)):
            taken = others
    chosen = {id(cell) for part in taken for cell in part.cells}
    return {table.name: [cell for cell in cells if id(cell) in chosen] for table, cells in tables}


def _parts(table: Table, cells: Sequence[Cell]) -> Iterator[Part]:
    """Single cells; and of a table that is drawn whole rows, because a figure needs one."""
    run = [cell for cell in cells if any(True for _ in asked_by(cell))]
    yield from (_part(table, [cell]) for cell in run)
    if table.figure:
        for label in dict.fromkeys(cell.row for cell in run):
            yield _part(table, [cell for cell in run if cell.row == label], ("figure", table.figure["kind"]))


def _part(table: Table, cells: list[Cell], *features: Hashable) -> Part:
    asked = [(words, evaluation) for cell in cells for words, evaluation, _ in asked_by(cell)]
    found = {("table", table.name), *features, *(("metric", cell.metric) for cell in cells)}
    work: dict[Hashable, float] = {}
    for words, evaluation in asked:
        found |= _features(words, evaluation)
        work[key_of(evaluation)] = _seconds_of_attacking(evaluation, words)
        for run in _runs(evaluation):
            work[run.fingerprint] = _seconds_of_training(run)
    return Part(tuple(cells), frozenset(found), work)


def _features(words: Sequence[str], evaluation: Evaluation) -> set[Hashable]:
    """The choices behind an evaluation, those that its words name for other groups, and the flags among its words."""
    found: set[Hashable] = {*evaluation.choices.items()}
    for run in _runs(evaluation):
        found |= {(group.partition(".")[0], choice) for group, choice in run.choices.items()}
    for override in map(parsed, words):
        value, group = override.value(), override.key_or_group
        if choices(group):
            found |= {(group, str(choice)) for choice in (value if isinstance(value, list) else [value]) if group != "profile"}
        elif "." not in group and value not in (False, None) and group != "seed":
            found.add(("flag", group))
    return found


def _runs(evaluation: Evaluation) -> Iterator[Run]:
    """The attacked run, the attacker's, and those that they learn from."""
    for run in (evaluation.run, evaluation.source):
        while run is not None:
            yield run
            run = run.teacher


def _seconds_of_training(run: Run) -> float:
    config, epochs = run.config, float(run.config["training"].get("epochs", 0))
    return 2 + 0.4 * epochs * (1 + _repeated({k: v for k, v in config["defense"].items() if k != "teacher"}))


def _seconds_of_attacking(evaluation: Evaluation, words: Sequence[str]) -> float:
    return 1 + 0.01 * _repeated(evaluation.config["attack"]) + 2 * ("panel=none" not in words)


def _repeated(config: Mapping[str, Any]) -> float:
    """How many passes a search asks for, roughly: what it repeats, times what the searches within it do together."""
    own = [float(config[key]) for key in REPEATING if isinstance(config.get(key), int)]
    within = sum(_repeated(value) for value in config.values() if isinstance(value, Mapping))
    return math.prod(own) * (within or bool(own))
