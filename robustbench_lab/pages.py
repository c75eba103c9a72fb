"""How a table looks: Markdown pages and LaTeX, from its grid and its cells; nothing here is looked up but how its runs were trained."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from robustbench_lab.config import merged_overrides, train_overrides
from robustbench_lab.errors import LabError
from robustbench_lab.records import RUN_FILE, read_json

if TYPE_CHECKING:
    from robustbench_lab.jobs.tables import Cell, Table

PROFILES = {
    "paper": "full size, the paper's settings where it states them",
    "quick": "real data, SHORT SCHEDULE: not the paper's settings",
    "smoke": "SMOKE: embedded data and tiny models, to show that everything runs; it reproduces nothing",
}


def grid(table: Table, cells: list[Cell]) -> str:
    """Ours, and behind it the paper's, as a Markdown table."""
    body = [[row.label, *(_short(cell) for cell in cells if cell.row == row.label)] for row in table.rows]
    return _markdown_table([table.corner, *(column.label for column in table.columns)], body)


def _short(cell: Cell) -> str:
    ours = "-" if cell.value is None else f"{cell.value:.2f}"
    return ours if cell.published is None else f"{ours} (paper {cell.published:.2f})"


def markdown(table: Table, cells: list[Cell], output_root: Path) -> str:
    """The page: the grid, every figure with interval, n and difference, deviations, findings, and where it all came from."""
    lines = [f"# {table.title}", "", f"Profile: {PROFILES[table.profile]}. Source: {table.source}.", "", grid(table, cells), ""]
    rows = []
    for cell in cells:
        entry = cell.fields()
        rows.append(
            [
                cell.row, cell.column, cell.metric.replace("_", " "), _number(entry["ours"]),
                "-" if cell.interval is None else "{:.2f} to {:.2f}".format(*cell.interval),
                "-" if entry["n"] is None else str(entry["n"]), _number(entry["published"]), _number(entry["difference"], "+.2f"),
                entry["warnings"] or "-",
            ]
        )  # fmt: skip
    head = ["row", "column", "metric", "ours, %", "95 % interval", "n", "published, %", "difference", "warnings"]
    about = "Every figure (n: test images; interval: Wilson, over the images, for this one trained model):"
    lines += [about, "", _markdown_table(head, rows), ""]
    kind = table.published["kind"]
    if kind != "none":
        lines += [f"Published figures: {kind}, {table.published['source']}.", ""]
    for name, entries in (("Where we differ from the paper", table.deviations), ("Findings", table.findings)):
        if entries:
            lines += [f"## {name}", "", *(f"- {' '.join(with_figures(entry, cells).split())}" for entry in entries), ""]
    missing = [cell for cell in cells if cell.record is None]
    if missing:
        lines += ["## Missing cells", "", *(_how_to_fill(cell) for cell in missing), ""]
    lines += ["## Provenance", "", *_provenance(cells, output_root), "", f"Made by `make reproduce-tables TABLES={table.name}`.", ""]
    return "\n".join(lines)


def with_figures(text: str, cells: Sequence[Cell]) -> str:
    """Prose with its figures put in: {ours: row / column} and {paper: row / column}, so that none is typed by hand."""
    figures = {}
    for cell in cells:
        figures[f"ours: {cell.row} / {cell.column}"] = _number(cell.value)
        figures[f"paper: {cell.row} / {cell.column}"] = _number(cell.published)

    def figure(match: re.Match[str]) -> str:
        if match[1] not in figures:
            raise LabError(f"a finding or deviation names {match[0]}, which is no cell of the table")
        return figures[match[1]]

    return re.sub(r"\{((?:ours|paper): [^{}]+)\}", figure, text)


def _how_to_fill(cell: Cell) -> str:
    reason = f" ({cell.problem})" if cell.problem else ""
    run = train_overrides(cell.overrides)
    jobs = [("train", run), ("evaluate", cell.overrides)]
    if cell.evaluation.source is not None:
        jobs.insert(0, ("train", merged_overrides(run, cell.evaluation.config["threat_model"]["overrides"])))
    commands = [f"`python -m robustbench_lab {verb} {' '.join(map(shlex.quote, words))}`" for verb, words in jobs]
    return f"- {cell.row}, {cell.column}{reason}: {', then '.join(commands)}"


def _provenance(cells: list[Cell], output_root: Path) -> list[str]:
    records = [cell.record for cell in cells if cell.record]
    if not records:
        return ["No records yet."]
    lines = []
    for name, key in (("device", "device"), ("commit", "commit"), ("platform", "platform")):
        lines.append(f"- {name}: {', '.join(sorted({str(record[key]) for record in records}))}")
    versions = sorted({f"{package} {number}" for record in records for package, number in record["versions"].items() if number})
    lines.append(f"- versions: {', '.join(versions)}")
    lines.append(f"- seconds of attacking: {sum({r['fingerprint'] + r['run']['fingerprint']: r['seconds'] for r in records}.values()):.0f}")
    runs = {run.fingerprint: run for cell in cells if cell.record for run in (cell.evaluation.run, cell.evaluation.source) if run}
    rows = [_training(run.folder(output_root)) for run in sorted(runs.values(), key=lambda run: run.name)]
    head = ["trained run", "epochs", "s per epoch", "images per s", "device", "commit"]
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
    return [folder.name, str(record.get("epochs", "-")), *speed, str(record.get("device", "-")), str(record.get("commit", "-"))[:12]]


def latex(table: Table, cells: list[Cell]) -> str:
    """A booktabs tabular: ours, with the published figure in brackets."""
    head = " & ".join(_tex(label) for label in [table.corner, *(column.label for column in table.columns)])
    body = [" & ".join([_tex(row.label), *(_tex(_short(c)) for c in cells if c.row == row.label)]) + r" \\" for row in table.rows]
    return "\n".join(
        [
            f"% {table.title} ({PROFILES[table.profile]}); needs booktabs",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule", head + r" \\", r"\midrule", *body, r"\bottomrule", r"\end{tabular}", "",
        ]
    )  # fmt: skip


def _tex(text: str) -> str:
    for plain_text, escaped in (("\\", r"\textbackslash{}"), ("&", r"\&"), ("%", r"\%"), ("_", r"\_"), ("#", r"\#"), ("$", r"\$")):
        text = text.replace(plain_text, escaped)
    return text


def _number(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else format(value, form)


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "| " + " | ".join(entry.ljust(width) for entry, width in zip(row, widths, strict=True)) + " |"

    return "\n".join([line(head), "|" + "|".join("-" * (width + 2) for width in widths) + "|", *(line(row) for row in body)])
