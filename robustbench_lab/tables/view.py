"""One view of a table: all that a page says of it, in words and formatted figures, for templates that only lay it out.

Nothing here knows of Markdown, LaTeX or HTML: texts are plain and not escaped. A figure that is not there is None, and each page has its
own dash for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.output import command_line, one_line
from robustbench_lab.settings.overrides import merged_overrides, quoted, train_overrides
from robustbench_lab.storage.files import say_once
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.tables.base import number
from robustbench_lab.tables.cells import Cell
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.profiles import PROFILES
from robustbench_lab.tables.smaller import StandIns, stand_ins
from robustbench_lab.tables.verdicts import ABOUT_CHANCE, OVER_SEEDS, WITHIN_CHANCE, CheckedClaim, claims_of

UNKNOWN = "-"  # what a record or a run does not say of where it was made


@dataclass(frozen=True)
class ShownCell:
    """A cell's figures as text, in its column's form."""

    row: str
    column: str
    metric: str  # in words, with its unit if that is percent
    ours: str | None  # with its deviation where it is a mean over training seeds, or over an attack's runs
    interval: tuple[str, str] | None  # the ends of the 95 % interval
    n: int | None
    seeds: tuple[int, ...]  # of training, that it is a mean over; none where it is of one trained model
    of_run: bool  # whether some trained model stands behind it
    published: str | None  # with the deviation that the paper prints
    quoted: bool  # whether the paper took its figure from another one
    difference: str | None  # ours minus theirs, with its sign
    compared: bool  # whether the verdict says how near the two are
    verdict: str
    marks: Sequence[str]  # the letters of its footnotes
    warnings: str  # their codes
    in_percent: bool
    measured: bool
    missing: bool  # whether it could be measured and is not
    problem: str | None  # why a record that there is does not count
    commands: Sequence[str]  # what fills it where it is missing, one after the other

    @property
    def name(self) -> str:
        return f"{self.row} / {self.column}"

    @property
    def whose(self) -> str:
        """Of whom the published figure is."""
        return "quoted" if self.quoted else "paper"


@dataclass(frozen=True)
class ShownRow:
    label: str
    cells: Sequence[ShownCell]


@dataclass(frozen=True)
class Message:
    """What a warning says, and the cells that it says it of."""

    text: str
    cells: Sequence[str]
    everywhere: bool  # all measured cells, of which there are several


@dataclass(frozen=True)
class Footnote:
    letter: str
    code: str
    messages: Sequence[Message]


@dataclass(frozen=True)
class Training:
    """How a run was trained, from its run.json and metrics.jsonl: medians from the second epoch on."""

    name: str
    epochs: str | None
    seconds_per_epoch: str | None
    images_per_second: str | None
    seconds: str | None
    device: str | None
    commit: str | None


@dataclass(frozen=True)
class View:
    """A table as every page shows it."""

    table: Table
    cells: Sequence[ShownCell]  # row by row
    footnotes: Sequence[Footnote]
    origins: Sequence[str]  # why rows are not run, and where quoted figures come from
    every_claim: Sequence[CheckedClaim]
    deviations: Sequence[str]
    findings: Sequence[str]
    smaller: StandIns | None  # what is known at a smaller size of rows that wait
    sizes: Sequence[int]  # the numbers of test images of its evaluations
    facts: Mapping[str, str]  # device, commit, platform and versions behind the records; empty where there are none
    seconds: float  # of attacking
    trainings: Sequence[Training]

    @property
    def title(self) -> str:
        return self.table.title

    @property
    def profile(self) -> str:
        return self.table.profile

    @property
    def about_profile(self) -> str:
        return PROFILES[self.profile]

    @property
    def banner(self) -> str | None:
        """What must stand over a table that reproduces nothing."""
        return None if self.profile == "paper" else f"{self.profile.upper()}: NOT A REPRODUCTION"

    @property
    def head(self) -> list[str]:
        """The corner and the columns' labels."""
        return [self.table.corner, *(column.label for column in self.table.columns)]

    @cached_property
    def rows(self) -> list[ShownRow]:
        width = len(self.table.columns)
        return [ShownRow(row.label, self.cells[i * width : (i + 1) * width]) for i, row in enumerate(self.table.rows)]

    @property
    def missing(self) -> list[ShownCell]:
        return [cell for cell in self.cells if cell.missing]

    @property
    def without_figure(self) -> list[ShownCell]:
        """Measured cells that have none, because no image counts."""
        return [cell for cell in self.cells if cell.measured and cell.ours is None]

    @property
    def skipped(self) -> list[ShownCell]:
        """The cells whose record does not count."""
        return [cell for cell in self.cells if cell.problem]

    @property
    def claims(self) -> list[CheckedClaim]:
        return [claim for claim in self.every_claim if claim.sign is None]

    @property
    def signs(self) -> list[CheckedClaim]:
        """The claims that deny a sign of obfuscated gradients."""
        return [claim for claim in self.every_claim if claim.sign is not None]

    @property
    def about_chance(self) -> str | None:
        """What `within chance` means, where some comparison is."""
        near = any(WITHIN_CHANCE in claim.detail for claim in self.every_claim)
        return ABOUT_CHANCE + (OVER_SEEDS if self.seeds else "") if near else None

    @property
    def published(self) -> str | None:
        """Of which kind the published figures are that stand beside ours: exact or claim; None where there are none."""
        kind = self.table.published["kind"] if self.profile != "smoke" else "none"  # embedded data stand beside no published figure
        return None if kind == "none" else str(kind)

    @property
    def published_source(self) -> str:
        return str(self.table.published["source"])

    @property
    def compares(self) -> bool:
        """Whether some published figure stands beside ours."""
        return any(cell.published is not None for cell in self.cells)

    @property
    def bands(self) -> str:
        """How near ours must come to a published figure, with the columns' labels where that is not the same for all that have one."""
        table, told = self.table, dict[str, list[str]]()
        published = zip(*table.published["values"], strict=True)
        for column, band, metric, figures in zip(table.columns, table.bands, table.metrics, published, strict=True):
            if any(figure is not None for figure in figures):
                text = "not compared" if band is None else f"at most {band:g}{' points' if metric.in_percent else ''} apart"
                told.setdefault(text, []).append(column.label)
        return ", ".join(told) if len(told) < 2 else "; ".join(f"{text} ({', '.join(labels)})" for text, labels in told.items())

    @property
    def averages(self) -> bool:
        """Whether some figures are means over the images that count, which may be fewer than those of the evaluation."""
        return any(metric.averages for metric in self.table.metrics)

    @property
    def about_figures(self) -> str:
        """What n counts and which intervals these are, for the kinds of metrics that the table shows."""
        metrics, of_shares, of_means = self.table.metrics, "Wilson", "normal approximation to the mean"
        repeated = dict.fromkeys(metric.deviation for metric in metrics if metric.deviation)
        runs = "".join(f"; ours ± the sample standard deviation over {over}" for over in repeated)
        n = "n: test images"
        interval = f"interval: {of_shares}, over the images, for this one trained model"
        if all(metric.averages for metric in metrics):
            n, interval = "n: test images that count", f"interval: {of_means}, over these images, for this one trained model"
        elif self.averages:
            n = "n: test images, and for what is not in percent those that count"
            interval = f"interval: over these images, for this one trained model, {of_shares} for percentages, {of_means} for the others"
        if not self.seeds:
            return f"{n}; {interval}{runs}"
        seeds = " and ".join(", ".join(map(str, seeds)) for seeds in self.seeds)
        mean = f"ours is the mean ± the sample standard deviation over the training seeds {seeds}, and the interval Student's of that mean"
        if all(cell.seeds or not cell.of_run for cell in self.cells):
            return f"{n} of each evaluation; {mean}"
        return f"{n}; {interval}{runs}; where a cell stands for several trained models {mean}"

    @cached_property
    def seeds(self) -> list[Sequence[int]]:
        """The training seeds that cells are means over; none where each is of one trained model."""
        return list(dict.fromkeys(cell.seeds for cell in self.cells if cell.seeds))

    @property
    def command(self) -> str:
        """What makes the table, and fills what it misses."""
        return command_of(self.table)


def command_of(table: Table) -> str:
    """The command that makes a table as its profile has it."""
    if not re.fullmatch(r"[\w/.-]+", table.name):  # make takes a space for the end of a name
        return command_line("reproduce", [f"tables=[{quoted(table.name)}]", *([f"profile={table.profile}"] if table.reshaped else [])])
    return f"make reproduce-tables TABLES={table.name}" + (f" PROFILE={table.profile}" if table.reshaped else "")


def view_of(table: Table, cells: Sequence[Cell], output_root: Path) -> View:
    """The table with its cells, row by row. Raises LabError for a finding or a deviation that names what is no cell of the table."""
    letters = _letters(cells)
    records = [record for cell in cells for record in cell.records]
    spoken_of = not table.reshaped  # deviations and findings speak of the real settings and figures
    return View(
        table=table,
        cells=[_shown(cell, letters) for cell in cells],
        footnotes=[_footnote(letter, code, cells) for code, letter in letters.items()],
        origins=_origins(table, cells),
        every_claim=claims_of(table, cells),
        deviations=[_with_figures(entry, cells) for entry in table.deviations] if spoken_of else [],
        findings=[_with_figures(entry, cells) for entry in table.findings] if spoken_of else [],
        smaller=stand_ins(table, cells, output_root),
        sizes=sorted({record["n"] for record in records}),
        facts=_facts(records),
        seconds=sum({record["fingerprint"] + record["run"]["fingerprint"]: record.get("seconds", 0) for record in records}.values()),
        trainings=_trainings(cells, output_root),
    )


def _shown(cell: Cell, letters: Mapping[str, str]) -> ShownCell:
    return ShownCell(
        row=cell.row,
        column=cell.column,
        metric=cell.metric.title,
        ours=number(cell.value, cell.form, cell.std),
        interval=None if cell.interval is None else (format(cell.interval[0], cell.form), format(cell.interval[1], cell.form)),
        n=cell.n,
        seeds=tuple(cell.seeds),
        of_run=bool(cell.measurements),
        published=number(cell.published, cell.form, cell.published_std),
        quoted=cell.quoted_from is not None,
        difference=number(cell.difference, f"+{cell.form}"),
        compared=cell.band is not None,
        verdict=cell.verdict,
        marks=sorted({letters[flag["code"]] for flag in cell.flags}),
        warnings=" ".join(flag["code"] for flag in cell.flags),
        in_percent=cell.in_percent,
        measured=cell.figure is not None,
        missing=cell.missing,
        problem=cell.problem and one_line(cell.problem),
        commands=_commands(cell) if cell.missing else [],
    )


def _letters(cells: Sequence[Cell]) -> dict[str, str]:
    """A letter for each warning that some cell carries: code -> letter."""
    codes = sorted({flag["code"] for cell in cells for flag in cell.flags})
    return {code: chr(ord("a") + i) if i < 26 else f"a{i}" for i, code in enumerate(codes)}


def _footnote(letter: str, code: str, cells: Sequence[Cell]) -> Footnote:
    told: dict[str, list[str]] = {}
    for cell in cells:
        for message in dict.fromkeys(flag["message"] for flag in cell.flags if flag["code"] == code):
            told.setdefault(message, []).append(cell.name)
    measured = sum(cell.figure is not None for cell in cells)
    return Footnote(
        letter, code, [Message(one_line(text) or "no message", names, len(names) == measured > 1) for text, names in told.items()]
    )


def _origins(table: Table, cells: Sequence[Cell]) -> list[str]:
    """What the grid alone does not tell: why rows are not run, and where quoted figures come from."""
    reasons: dict[str, list[str]] = {}
    for row in table.rows:
        if row.not_run is not None:
            reasons.setdefault(" ".join(row.not_run.split()).removesuffix("."), []).append(row.label)
    sources: dict[str, dict[str, list[str]]] = {}
    for cell in cells:
        if cell.quoted_from is not None:
            sources.setdefault(cell.quoted_from, {}).setdefault(cell.row, []).append(cell.column)
    lines = [f"not run ({reason}): {'; '.join(rows)}" for reason, rows in reasons.items()]
    for source, taken in sources.items():
        where = [f"{row} ({', '.join(columns)})" for row, columns in taken.items()]
        lines.append(f"quoted from {source}: {'; '.join(where)}")
    return lines


def _with_figures(text: str, cells: Sequence[Cell]) -> str:
    """Prose with its figures put in: {ours: row / column} and {paper: row / column}, so that none is typed by hand."""
    figures: dict[str, str] = {}
    for cell in cells:
        figures[f"ours: {cell.name}"] = number(cell.value, cell.form, cell.std) or UNKNOWN
        figures[f"paper: {cell.name}"] = number(cell.published, cell.form, cell.published_std) or UNKNOWN

    def figure(match: re.Match[str]) -> str:
        if match[1] not in figures:
            raise LabError(f"a finding or deviation names {match[0]}, which is no cell of the table")
        return figures[match[1]]

    return " ".join(re.sub(r"\{((?:ours|paper): [^{}]+)\}", figure, text).split())


def _commands(cell: Cell) -> list[str]:
    """The commands that fill a cell, one after the other; none for one that is not run, or that others fill."""
    commands = []
    for one in cell.measurements:
        if one.record is None:
            run = train_overrides(one.overrides)
            if one.evaluation.source is not None:
                source = merged_overrides(run, one.evaluation.config["threat_model"]["overrides"])
                commands.append(command_line("train", source))
            commands += [command_line("train", run), command_line("evaluate", one.overrides)]
    return list(dict.fromkeys(commands))


def _facts(records: Sequence[Mapping[str, object]]) -> dict[str, str]:
    if not records:
        return {}
    facts = {key: ", ".join(sorted({str(record.get(key, "not said")) for record in records})) for key in ("device", "commit", "platform")}
    said = [versions for record in records if isinstance(versions := record.get("versions"), Mapping)]
    versions = sorted({f"{package} {name}" for one in said for package, name in one.items() if name})
    return facts | {"versions": ", ".join(versions)}


def _trainings(cells: Sequence[Cell], output_root: Path) -> list[Training]:
    runs = {run.fingerprint: run for cell in cells if cell.records for run in cell.runs}
    return [_training(run.folder(output_root)) for run in sorted(runs.values(), key=lambda run: run.name)]


def _training(folder: Path) -> Training:
    run = RunFolder(folder)
    record, epochs = run.record, list[dict[str, Any]]()
    try:
        epochs = run.epochs()[1:]
    except LabError as error:
        say_once(f"counts as missing: {error}")
    pace, rate = _middle(epochs, "seconds", ".1f"), _middle(epochs, "images_per_second", ".0f")
    told = {key: None if record.get(key) is None else str(record[key]) for key in ("epochs", "device", "commit")}
    commit = told["commit"] and told["commit"][:12]
    return Training(folder.name, told["epochs"], pace, rate, number(record.get("seconds"), ".0f"), told["device"], commit)


def _middle(epochs: Sequence[Mapping[str, Any]], key: str, form: str) -> str | None:
    """The median of those epochs that have it."""
    values = [row[key] for row in epochs if isinstance(row.get(key), int | float) and math.isfinite(row[key])]
    return format(median(values), form) if values else None
