"""Write papers' tables from the records there are: a pure function of records and conf/table/."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_lab.config import CONF, Evaluation, compose, evaluation_of, merged_overrides
from robustbench_lab.errors import LabError
from robustbench_lab.pages import PROFILES, grid, latex, markdown
from robustbench_lab.records import RECORD_FILE, RUN_FILE, read_json, read_record, write_bytes

log = logging.getLogger("robustbench_lab")

TABLES = CONF / "table"
METRICS = ("robust_accuracy", "clean_accuracy")
KINDS = ("exact", "none")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One row or column: its label and the words that it adds to `evaluate`; a column may show another metric than the table."""

    label: str
    overrides: Sequence[str] = ()
    metric: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table's grid, layout and published figures, as conf/table/<paper>/<table>.yaml describes them.

    exceptions: cells that take further words. published: kind (exact or none), source, and for exact figures `values`, in percent,
    a row each, null where the paper has none. deviations: where we knowingly differ. findings: what the measured figures say; figures
    in both are named, not typed: {ours: row / column}, {paper: row / column}.
    """

    name: str
    title: str
    source: str
    profile: str
    corner: str
    metric: str
    overrides: Sequence[str]
    rows: Sequence[Axis]
    columns: Sequence[Axis]
    exceptions: Sequence[Mapping[str, Any]] = ()
    published: Mapping[str, Any] = field(default_factory=lambda: {"kind": "none"})
    deviations: Sequence[str] = ()
    findings: Sequence[str] = ()


@dataclass(frozen=True)
class Cell:
    """One figure: the words that describe it, its evaluation, and its record where there is one."""

    row: str
    column: str
    metric: str
    overrides: list[str]
    evaluation: Evaluation
    cfg: DictConfig
    record: dict[str, Any] | None
    problem: str | None
    published: float | None

    @property
    def value(self) -> float | None:
        """In percent."""
        return None if self.record is None else 100 * self.record[self.metric]

    @property
    def interval(self) -> tuple[float, float] | None:
        if self.record is None:
            return None
        low, high = self.record[self.metric.replace("accuracy", "interval")]
        return 100 * low, 100 * high

    def fields(self) -> dict[str, Any]:
        low, high = self.interval or (None, None)
        known = self.value is not None and self.published is not None
        record = self.record or {}
        return {
            "row": self.row,
            "column": self.column,
            "metric": self.metric,
            "ours": self.value,
            "interval_low": low,
            "interval_high": high,
            "n": record.get("n"),
            "published": self.published,
            "difference": self.value - self.published if known else None,  # type: ignore[operator]
            "warnings": " ".join(w["code"] for w in record.get("warnings", [])),
            "record": f"{self.evaluation.run.name}/evaluate/{self.evaluation.name}" if self.record else None,
        }


def main(cfg: DictConfig) -> None:
    for table in chosen_tables(cfg.tables):
        write(table, cells_of(table, Path(cfg.output_root).absolute()), Path(cfg.output_root).absolute())


def chosen_tables(patterns: str | Sequence[str]) -> list[Table]:
    """The tables that names or globs choose; all without any. Raises LabError, with what exists, when one matches nothing."""
    names = sorted(str(path.relative_to(TABLES).with_suffix("")) for path in TABLES.glob("*/*.yaml"))
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise LabError(f"tables: nothing matches {pattern!r}; there are {', '.join(names)}")
    return [read_table(name) for name in names if not patterns or any(fnmatch(name, pattern) for pattern in patterns)]


def read_table(name: str) -> Table:
    """Raises LabError, naming file and key, for an unknown key, a missing one or a wrong count."""
    path = TABLES / f"{name}.yaml"
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        axes = {axis: [Axis(**entry) for entry in content[axis]] for axis in ("rows", "columns")}
        table = Table(**{**content, **axes, "name": name})
    except KeyError as error:
        raise LabError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, AttributeError, YAMLError, OmegaConfBaseException) as error:
        raise LabError(f"{path}: {error}") from error
    labels = {axis: [entry.label for entry in axes[axis]] for axis in axes}
    for axis, found in labels.items():
        _require(len(set(found)) == len(found), path, axis, "labels that differ", found)
    for metric in (table.metric, *(column.metric for column in table.columns if column.metric)):
        _require(metric in METRICS, path, "metric", f"one of {', '.join(METRICS)}", metric)
    _require(table.profile in PROFILES, path, "profile", f"one of {', '.join(PROFILES)}", table.profile)
    for exception in table.exceptions:
        known = exception.get("row") in labels["rows"] and exception.get("column") in labels["columns"]
        _require(known and set(exception) == {"row", "column", "overrides"}, path, "exceptions", "row, column, overrides", exception)
    _require(isinstance(table.published, Mapping), path, "published", "kind, source and values", table.published)
    kind = table.published.get("kind")
    _require(kind in KINDS, path, "published.kind", f"one of {', '.join(KINDS)}", kind)
    if kind == "exact":
        values = table.published.get("values") or []
        shape = [len(row) if isinstance(row, list) else row for row in values]
        expected = [len(table.columns)] * len(table.rows)
        _require(shape == expected, path, "published.values", f"{len(table.rows)} rows of {len(table.columns)}", shape)
        for figure in (figure for row in values for figure in row):
            _require(figure is None or isinstance(figure, int | float), path, "published.values", "numbers in percent, or null", figure)
        _require(bool(table.published.get("source")), path, "published.source", "where the figures stand", None)
    return table


def _require(condition: bool, path: Path, key: str, expected: str, got: object) -> None:
    if not condition:
        raise LabError(f"{path}: {key}: expected {expected}, got {got!r}")


def cells_of(table: Table, output_root: Path) -> list[Cell]:
    """Every cell of the grid, row by row, with its record where there is one."""
    return list(_cells(table, output_root))


def _cells(table: Table, output_root: Path) -> Iterator[Cell]:
    values = table.published.get("values")
    for i, row in enumerate(table.rows):
        for j, column in enumerate(table.columns):
            special = [e["overrides"] for e in table.exceptions if (e["row"], e["column"]) == (row.label, column.label)]
            overrides: list[str] = []
            for more in (table.overrides, row.overrides, column.overrides, *special):
                overrides = merged_overrides(overrides, more)
            cfg, choices = compose("evaluate", overrides)
            evaluation = evaluation_of(cfg, choices, overrides)
            record, problem = find_record(evaluation, output_root)
            published = values[i][j] if values else None
            yield Cell(row.label, column.label, column.metric or table.metric, overrides, evaluation, cfg, record, problem, published)


def find_record(evaluation: Evaluation, output_root: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The evaluation's record; or None and, unless it was never made, why it does not count."""
    path = evaluation.folder(output_root) / RECORD_FILE
    if not path.exists():
        return None, None
    try:
        record = read_record(path)
        if record.get("fingerprint") != evaluation.fingerprint:
            return None, f"{path} is the record of another evaluation; evaluate again with force=true"
        for part, run in (("run", evaluation.run), ("source", evaluation.source)):
            if run is not None:
                trained = read_json(run.folder(output_root) / RUN_FILE)
                if record[part]["model_digest"] != trained["model_digest"]:
                    return None, f"{path} speaks of other weights than {run.name} has now; evaluate again"
    except (LabError, KeyError, TypeError) as error:
        return None, str(error) if isinstance(error, LabError) else f"{path} is damaged ({error!r}); evaluate again with force=true"
    return record, None


def write(table: Table, cells: list[Cell], output_root: Path) -> Path:
    """Write the table in Markdown, CSV and LaTeX, print its grid, and return the Markdown file."""
    base = output_root / "tables" / table.name
    frame = pd.DataFrame([cell.fields() for cell in cells])
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, float_format="%.4f", lineterminator="\n")
    path = base.with_name(base.name + ".md")
    write_bytes(base.with_name(base.name + ".csv"), buffer.getvalue().encode())
    write_bytes(base.with_name(base.name + ".tex"), latex(table, cells).encode())
    write_bytes(path, markdown(table, cells, output_root).encode())
    print(f"{table.title}\n({PROFILES[table.profile]})\n\n{grid(table, cells)}\n")
    log.info("written: %s, .csv, .tex", path)
    return path
