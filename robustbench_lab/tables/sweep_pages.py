"""The table of a sweep, as texts: a grid, Markdown and CSV."""

from __future__ import annotations

import csv
import io

from robustbench_lab.tables.letters import md
from robustbench_lab.tables.pages import aligned
from robustbench_lab.tables.sweep import SHARES, Line, Sweep, Trial

INTERVALS = ("clean_accuracy", "robust_accuracy")  # figures that have one over the images


def grid(sweep: Sweep) -> tuple[list[str], list[list[str]]]:
    """Head and body of the table, as texts: figures in percent with their interval over the images, or ± their deviation over seeds."""
    head = [*sweep.names, *map(title, sweep.figures), *(["seeds"] if sweep.seeds else ["n"] * (sweep.verb == "evaluate")), "warnings"]
    body = []
    for line in sweep.lines:
        row = [*map(shown, line.values), *(told(line, name) for name in sweep.figures)]
        if sweep.seeds:
            row.append(str(len(line.trials)))
        elif sweep.verb == "evaluate":
            row.append(str(line.trials[0].n))
        body.append([*row, ", ".join(line.warnings)])
    if not any(row[-1] for row in body):
        head, body = head[:-1], [row[:-1] for row in body]
    return head, body


def shown(value: str) -> str:
    """A value in six digits: a sweeper's have sixteen."""
    try:
        return f"{float(value):.6g}" if len(value) > 8 else value
    except ValueError:
        return value


def title(figure: str) -> str:
    return f"{figure.removesuffix('_accuracy')} %" if figure in SHARES else figure


def told(line: Line, figure: str) -> str:
    value, deviation, interval = line.mean(figure), line.deviation(figure), line.interval(figure)
    if value is None:
        return "–"
    if figure not in SHARES:
        return f"{value:.4g}" + (f" ± {deviation:.2g}" if deviation is not None and figure != "seconds" else "")
    text = f"{100 * value:.2f}"
    if deviation is not None:
        return f"{text} ± {100 * deviation:.2f}"
    return text if interval is None else f"{text} ({100 * interval[0]:.1f}–{100 * interval[1]:.1f})"


def headline(sweep: Sweep) -> str:
    """What was best, in a line."""
    if not sweep.lines:
        return f"none of {len(sweep.trials)} jobs has finished"
    best = sweep.lines[0]
    which = ", ".join(f"{name}={shown(value)}" for name, value in zip(sweep.names, best.values, strict=True))
    objective = (sweep.ranked_by or "").lstrip("-")
    figure = f": {objective.replace('_', ' ')} {told(best, objective)}{' %' * (objective in SHARES)}" if objective in sweep.figures else ""
    more = f" over {len(best.trials)} seeds" if sweep.seeds else ""
    lost = f"; {len(sweep.failed)} of {len(sweep.trials)} jobs failed" if sweep.failed else ""
    return f"{f'best {which}' if which else sweep.verb}{figure}{more}{lost}"


def markdown(sweep: Sweep) -> str:
    head, body = grid(sweep)
    lines = [f"| {' | '.join(md(cell) for cell in row)} |" for row in (head, *body)]
    fixed = [word for word in sweep.words if word.partition("=")[0].lstrip("+") not in sweep.varied]
    page = [f"# A sweep of `{sweep.verb}`", "", md(headline(sweep)) + ".", ""]
    page += [aligned("\n".join(lines))] if body else []
    page += [f"Of each line: {_of_each(sweep)}.", "", *(line for note in sweep.notes for line in (f"**{note}**", ""))] if body else []
    failed = [f"- {md(_words(trial, sweep))}: {md(trial.error or '')}" for trial in sweep.failed]
    page += ["Jobs that failed:", "", *failed, ""] if failed else []
    page += [f"Everywhere: `{' '.join(fixed)}`", ""] if fixed else []
    return "\n".join([*page, "```", sweep.command, "```", ""])


def _words(trial: Trial, sweep: Sweep) -> str:
    return " ".join(f"{key}={trial.said[key]}" for key in sweep.varied if key in trial.said) or f"job {trial.number}"


def _of_each(sweep: Sweep) -> str:
    if sweep.seeds:
        return f"mean ± sample deviation over {' and '.join(sweep.seeds)}; seconds are means"
    return "accuracies with their 95 % interval over the images" if sweep.verb == "evaluate" else "figures of the kept epoch"


def csv_of(sweep: Sweep) -> str:
    """A line for each line of the table, and for each job that failed: figures as they are, not in percent."""
    columns = [column for name in sweep.figures for column in _columns(sweep, name)]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*sweep.keys, "jobs", *columns, "n", "warnings", "error"])
    for line in sweep.lines:
        cells = [cell for name in sweep.figures for cell in _cells(line, sweep, name)]
        writer.writerow([*line.values, len(line.trials), *cells, line.trials[0].n, " ".join(line.warnings), ""])
    for trial in sweep.failed:
        values = [trial.said.get(key, "") for key in sweep.keys]
        writer.writerow([*values, 1, *([""] * len(columns)), "", "", trial.error])
    return out.getvalue()


def _columns(sweep: Sweep, name: str) -> list[str]:
    return [name, f"{name}_deviation"] if sweep.seeds else [name, *([f"{name}_low", f"{name}_high"] if name in INTERVALS else [])]


def _cells(line: Line, sweep: Sweep, name: str) -> list[float | None]:
    if sweep.seeds:
        return [line.mean(name), line.deviation(name)]
    return [line.mean(name), *(line.interval(name) or (None, None) if name in INTERVALS and sweep.verb == "evaluate" else ())]
