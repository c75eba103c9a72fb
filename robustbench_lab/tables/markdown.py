"""How a table looks as a Markdown page, from its grid and its cells; nothing here is looked up but how its runs were trained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from robustbench_lab.errors import LabError
from robustbench_lab.settings.overrides import merged_overrides, train_overrides
from robustbench_lab.storage.files import read_json
from robustbench_lab.storage.records import RUN_FILE
from robustbench_lab.tables.units import OTHERS, title_of
from robustbench_lab.tables.verdicts import ABOUT_CHANCE, WITHIN_CHANCE

if TYPE_CHECKING:
    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table
    from robustbench_lab.tables.verdicts import CheckedClaim

PROFILES = {
    "paper": "full size, the paper's settings where it states them",
    "quick": "real data, SHORT SCHEDULE: not the paper's settings",
    "smoke": "SMOKE: embedded data and tiny models, to show that everything runs; it reproduces nothing",
}


def grid(table: Table, cells: Sequence[Cell]) -> str:
    """Ours, and behind it the paper's, as a Markdown table; letters point at footnotes."""
    letters = footnote_letters(cells)
    body = [[row.label, *(short(cell) + _marks(cell, letters) for cell in cells if cell.row == row.label)] for row in table.rows]
    return _markdown_table([table.corner, *(column.label for column in table.columns)], body)


def footnote_letters(cells: Sequence[Cell]) -> dict[str, str]:
    """A letter for each warning that some cell carries: code -> letter."""
    codes = sorted({flag["code"] for cell in cells for flag in cell.flags})
    return {code: chr(ord("a") + i) if i < 26 else f"a{i}" for i, code in enumerate(codes)}


def _marks(cell: Cell, letters: Mapping[str, str]) -> str:
    marks = ",".join(sorted({letters[flag["code"]] for flag in cell.flags}))
    return f" [{marks}]" if marks else ""


def footnotes(cells: Sequence[Cell]) -> list[str]:
    """What each letter stands for, with the figures behind it, cell by cell."""
    lines = []
    for code, letter in footnote_letters(cells).items():
        told = {flag["message"]: [] for cell in cells for flag in cell.flags if flag["code"] == code}  # type: dict[str, list[str]]
        for cell in cells:
            for message in {flag["message"] for flag in cell.flags if flag["code"] == code}:
                told[message].append(cell.name)
        measured = sum(cell.record is not None for cell in cells)
        for message, names in told.items():
            where = "all cells" if len(names) == measured > 1 else ", ".join(names)
            lines.append(f"- [{letter}] {code}: {message or 'no message'} ({where})")
    lines += [f"- no figure for {cell.name}: {cell.verdict}" for cell in cells if cell.record and cell.value is None]
    return lines + [f"- skipped for {cell.name}: {cell.problem}" for cell in cells if cell.problem]


def origins(table: Table, cells: Sequence[Cell]) -> list[str]:
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
    for source, quoted in sources.items():
        where = [f"{row} ({', '.join(columns)})" for row, columns in quoted.items()]
        lines.append(f"quoted from {source}: {'; '.join(where)}")
    return lines


def number(value: float | None, form: str, std: float | None = None) -> str:
    """A figure, with its standard deviation where it is a mean over runs; a dash for none."""
    return "-" if value is None else format(value, form) + ("" if std is None else f" ± {std:{form}}")


def short(cell: Cell) -> str:
    """Ours, and in brackets the published figure."""
    ours = number(cell.value, cell.form, cell.std)
    whose = "paper" if cell.quoted_from is None else "quoted"
    return ours if cell.published is None else f"{ours} ({whose} {number(cell.published, cell.form, cell.published_std)})"


def bands(table: Table) -> str:
    """How near ours must come to a published figure, with the columns' labels where that is not the same for all that have one."""
    told: dict[str, list[str]] = {}
    published = zip(*table.published["values"], strict=True)
    for column, band, in_percent, figures in zip(table.columns, table.bands, table.in_percent, published, strict=True):
        if any(figure is not None for figure in figures):
            text = "not compared" if band is None else f"at most {band:g}{' points' if in_percent else ''} apart"
            told.setdefault(text, []).append(column.label)
    return ", ".join(told) if len(told) < 2 else "; ".join(f"{text} ({', '.join(labels)})" for text, labels in told.items())


def _about_figures(table: Table) -> str:
    """What n counts and which intervals these are, for the kinds of metrics that the table shows."""
    of_accuracies, of_others = "Wilson", "normal approximation to the mean"
    metrics = [table.metric_of(column) for column in table.columns]
    runs = "; ours ± the sample standard deviation over the runs of one attack on this model" if "accuracy_of_runs" in metrics else ""
    if not table.averages:
        return f"n: test images; interval: {of_accuracies}, over the images, for this one trained model{runs}"
    if all(metric.startswith(OTHERS) for metric in metrics):
        return f"n: test images that count; interval: {of_others}, over these images, for this one trained model"
    return (
        f"n: test images, and for what is not in percent those that count; interval: over these images, for this one trained model, "
        f"{of_accuracies} for percentages, {of_others} for the others{runs}"
    )


def markdown(table: Table, cells: Sequence[Cell], claims: Sequence[CheckedClaim], output_root: Path, pictures: bool = False) -> str:
    """The page: the grid, every figure with interval, n, difference and verdict, claims, findings, and where it all came from."""
    lines = [f"# {table.title}", ""]
    if table.profile != "paper":
        lines += [f"## PROFILE {table.profile.upper()}: NOT A REPRODUCTION", ""]
    lines += [f"Profile: {PROFILES[table.profile]}. Source: {table.source}.", ""]
    if pictures:
        lines += [f"![{table.title}]({table.name.rpartition('/')[2]}.png)", ""]
    lines += [grid(table, cells), ""]
    if notes := [*(f"- {line}" for line in origins(table, cells)), *footnotes(cells)]:
        lines += [*notes, ""]
    rows = []
    for cell in cells:
        entry = cell.fields()
        rows.append(
            [
                cell.row, cell.column, title_of(cell.metric), number(cell.value, cell.form, cell.std),
                " to ".join(number(end, cell.form) for end in cell.interval or ()) or "-", number(cell.n, "d"),
                number(cell.published, cell.form, cell.published_std) + ("" if cell.quoted_from is None else " (quoted)"),
                number(cell.difference, f"+{cell.form}"), cell.verdict if cell.published is not None else "-", entry["warnings"] or "-",
            ]
        )  # fmt: skip
    head = ["row", "column", "metric", "ours", "95 % interval", "n", "published", "difference", "verdict", "warnings"]
    lines += [f"Every figure ({_about_figures(table)}):", "", _markdown_table(head, rows), ""]
    kind = table.published["kind"] if table.profile != "smoke" else "none"
    if kind == "exact":
        judged = f"within the band: {bands(table)}" if table.profile == "paper" else "nothing is compared"
        lines += [f"Published figures: exact, {table.published['source']}; {judged}.", ""]
    elif kind == "claim":
        lines += [f"No published figures stand beside ours; what the paper says in words: {table.published['source']}.", ""]
    if told := [f'- **{c.verdict}**{_chance(c)}: "{c.text}" ({c.source}). {_evidence(c)}{c.detail}' for c in claims if c.sign is None]:
        lines += ["## The paper's claims, on our figures", "", *told, ""]
    denied = [(c.sign, c) for c in claims if c.sign is not None]
    if signs := [[sign, f'"{c.text}" ({c.source})', c.evidence or "-", c.detail, f"{c.sign_is}{_chance(c)}"] for sign, c in denied]:
        head = ["sign", "the paper says", "the paper's evidence", "ours", "the sign is"]
        lines += ["## The signs of obfuscated gradients, on our figures", "", _markdown_table(head, signs), ""]
    if any(WITHIN_CHANCE in claim.detail for claim in claims):
        lines += [ABOUT_CHANCE, ""]
    for name, entries in (("Where we differ from the paper", table.deviations), ("Findings", table.findings)):
        if entries and not table.reshaped:  # they speak of the real settings and figures
            lines += [f"## {name}", "", *(f"- {' '.join(with_figures(entry, cells).split())}" for entry in entries), ""]
    missing = [cell for cell in cells if cell.missing]
    if missing:
        lines += ["## Missing cells", "", *(_how_to_fill(cell) for cell in missing), ""]
    profile = f" PROFILE={table.profile}" if table.reshaped else ""
    lines += [
        "## Provenance",
        "",
        *_provenance(cells, output_root),
        "",
        f"Made by `make reproduce-tables TABLES={table.name}{profile}`.",
        "",
    ]
    return "\n".join(lines)


def _chance(claim: CheckedClaim) -> str:
    return WITHIN_CHANCE if claim.within_chance else ""


def _evidence(claim: CheckedClaim) -> str:
    return "" if claim.evidence is None else f"The paper's evidence: {claim.evidence.removesuffix('.')}. Ours: "


def with_figures(text: str, cells: Sequence[Cell]) -> str:
    """Prose with its figures put in: {ours: row / column} and {paper: row / column}, so that none is typed by hand."""
    figures = {}
    for cell in cells:
        figures[f"ours: {cell.row} / {cell.column}"] = number(cell.value, cell.form, cell.std)
        figures[f"paper: {cell.row} / {cell.column}"] = number(cell.published, cell.form, cell.published_std)

    def figure(match: re.Match[str]) -> str:
        if match[1] not in figures:
            raise LabError(f"a finding or deviation names {match[0]}, which is no cell of the table")
        return figures[match[1]]

    return re.sub(r"\{((?:ours|paper): [^{}]+)\}", figure, text)


def _how_to_fill(cell: Cell) -> str:
    reason = f" ({cell.problem})" if cell.problem else ""
    return f"- {cell.row}, {cell.column}{reason}: {', then '.join(f'`{command}`' for command in commands_of(cell))}"


def commands_of(cell: Cell) -> list[str]:
    """The commands that fill a cell, one after the other; none for one that is not run."""
    if cell.evaluation is None:
        return []
    run = train_overrides(cell.overrides)
    jobs = [("train", run), ("evaluate", cell.overrides)]
    if cell.evaluation.source is not None:
        jobs.insert(0, ("train", merged_overrides(run, cell.evaluation.config["threat_model"]["overrides"])))
    return [f"python -m robustbench_lab {verb} {shlex.join(words)}" for verb, words in jobs]


def _provenance(cells: Sequence[Cell], output_root: Path) -> list[str]:
    records = [cell.record for cell in cells if cell.record]
    if not records:
        return ["No records yet."]
    lines = []
    for name, key in (("device", "device"), ("commit", "commit"), ("platform", "platform")):
        lines.append(f"- {name}: {', '.join(sorted({str(record.get(key, 'not said')) for record in records}))}")
    versions = sorted({f"{package} {number}" for record in records for package, number in record.get("versions", {}).items() if number})
    lines.append(f"- versions: {', '.join(versions)}")
    lines.append(
        f"- seconds of attacking: {sum({r['fingerprint'] + r['run']['fingerprint']: r.get('seconds', 0) for r in records}.values()):.0f}"
    )
    runs = {run.fingerprint: run for cell in cells if cell.record for run in cell.runs}
    rows = [_training(run.folder(output_root)) for run in sorted(runs.values(), key=lambda run: run.name)]
    head = ["trained run", "epochs", "s per epoch", "images per s", "s in all", "device", "commit"]
    lines += ["", "Training (medians from the second epoch on, without validation and writing):", "", _markdown_table(head, rows)]
    return lines


def _training(folder: Path) -> list[str]:
    """How a run was trained, from its run.json and metrics.jsonl; a dash for what they do not say."""
    record = read_json(folder / RUN_FILE)
    try:
        epochs = pd.read_json(folder / "metrics.jsonl", lines=True).iloc[1:]
        speed = [f"{epochs['seconds'].median():.1f}", f"{epochs['images_per_second'].median():.0f}"] if len(epochs) else ["-", "-"]
    except (OSError, ValueError, KeyError):
        speed = ["-", "-"]
    seconds = number(record.get("seconds"), ".0f")
    where = [str(record.get("device", "-")), str(record.get("commit", "-"))[:12]]
    return [folder.name, str(record.get("epochs", "-")), *speed, seconds, *where]


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    head, *body = ([entry.replace("|", r"\|") for entry in row] for row in [head, *body])
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(line(row) for row in body)])
