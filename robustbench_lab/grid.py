"""A table's grid as conf/table/<paper>/<table>.yaml declares it: read, checked, and reshaped by a profile."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_lab.claims import Claim, cells_in
from robustbench_lab.config import CONF
from robustbench_lab.errors import LabError
from robustbench_lab.overrides import merged_overrides
from robustbench_lab.profiles import PROFILES, Rules
from robustbench_lab.published_figures import PublishedFigure, fits, published_figure, source_of
from robustbench_lab.table_checks import check, file_of, place, require
from robustbench_lab.units import OTHERS, default_form, is_percent

TABLES = Path(os.environ.get("ROBUSTBENCH_LAB_TABLES") or CONF / "table").absolute()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One row or column: its label and the words that it adds to `evaluate`."""

    label: str
    overrides: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Row(Axis):
    """not_run: why we do not run a row, such as a method that we do not have: all that it shows are published figures."""

    not_run: str | None = None


@dataclass(frozen=True, kw_only=True)
class Column(Axis):
    """A column may show another metric than the table, and write its figures in a form of its own, such as `.3f`."""

    metric: str | None = None
    form: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table's grid, layout and published figures.

    metric: what cells show unless their column says otherwise: an accuracy, in percent, or `metrics.<name>` of conf/metric/, as it is.
    exceptions: cells that take further words, by globs of their rows' and columns' labels.
    published: kind (exact, claim or none), source, and for exact figures `values`, in their column's unit, a row each, null where the paper
    has none, `"80.03 ± 0.15"` where it has mean and standard deviation; `band`: the difference, in points or in the metric's unit, up to
    which ours counts as theirs, one for all columns or one for each, null where nothing is compared; and `quoted`: the `cells` (a glob on
    `row / column`) that the paper took from another `source`; the first glob that fits counts. claims: orderings that the paper states.
    deviations: where we knowingly differ. findings: what the measured figures say; figures in both are named, not typed:
    {ours: row / column}, {paper: row / column}. profile: what made, or would make, this table. figure: what is drawn of it, `kind`:
    `curves` (a row is a curve, columns' labels are numbers on the axis, which `x` names), `pictures` (a row's cells are strips of the first
    test images), `planes` (models on points in the plane), `features` (of cells whose words have keep_features: where a model puts test
    images, clean and, of the class `attacked`, attacked; `classes`: their names). Curves may have a logarithmic axis, `scale: log`.
    A file may say `like: <paper>/<table>`: whatever key it does not have, it has from that one.
    """

    name: str
    title: str
    source: str
    profile: str
    corner: str
    metric: str
    overrides: Sequence[str]
    rows: Sequence[Row]
    columns: Sequence[Column]
    exceptions: Sequence[Mapping[str, Any]] = ()
    published: Mapping[str, Any] = field(default_factory=lambda: {"kind": "none"})
    claims: Sequence[Claim] = ()
    deviations: Sequence[str] = ()
    findings: Sequence[str] = ()
    figure: Mapping[str, Any] = field(default_factory=dict)
    rules: Rules | None = None  # of the profile that reshapes it: its words are then not those of the file

    @property
    def reshaped(self) -> bool:
        return self.rules is not None

    @property
    def path(self) -> Path:
        return TABLES / f"{self.name}.yaml"

    def metric_of(self, column: Column) -> str:
        return column.metric or self.metric

    def form_of(self, column: Column) -> str:
        return column.form or default_form(self.metric_of(column))

    @property
    def in_percent(self) -> list[bool]:
        """Of each column, whether its figures are."""
        return [is_percent(self.metric_of(column)) for column in self.columns]

    @property
    def averages(self) -> bool:
        """Whether some figures are means over the images that count, which may be fewer than those of the evaluation."""
        return any(self.metric_of(column).startswith(OTHERS) for column in self.columns)

    @property
    def bands(self) -> list[float | None]:
        """Of each column, how far ours may be from a published figure, in its unit; None: nothing is compared."""
        band = self.published.get("band") if self.published.get("kind") == "exact" else None
        return band if isinstance(band, list) else [band] * len(self.columns)

    def published_in(self, row: Row, column: Column) -> PublishedFigure | None:
        values = self.published.get("values")
        entry = values[self.rows.index(row)][self.columns.index(column)] if values else None
        source = source_of(f"{row.label} / {column.label}", self.published.get("quoted", ()))
        return None if entry is None else published_figure(entry, source)

    def words(self) -> Iterator[tuple[Row, Column, list[str]]]:
        """Row, column and the words of `evaluate`, cell by cell, but for rows that are not run."""
        for row in self.rows:
            if row.not_run is not None:
                continue
            for column in self.columns:
                special = [e["overrides"] for e in self.exceptions if fits(row.label, e["row"]) and fits(column.label, e["column"])]
                overrides: list[str] = []
                for more in (self.overrides, row.overrides, column.overrides, *special):
                    overrides = merged_overrides(overrides, more)
                if self.rules is not None:
                    overrides = self.rules.applied(overrides)
                yield row, column, overrides


def chosen_tables(patterns: str | Sequence[str], profile: str = "paper") -> list[Table]:
    """The tables that names or globs choose, all without any, as the profile has them.

    Raises LabError, with what exists, when a pattern matches nothing, and when two tables cannot be told apart.
    """
    if profile not in PROFILES:
        raise LabError(f"profile: expected one of {', '.join(PROFILES)}, got {profile!r}")
    names = table_names()
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise LabError(f"tables: nothing matches {pattern!r}; there are {', '.join(names)}")
    tables = [read_table(name) for name in names]
    titles: dict[str, Table] = {}
    for table in tables:
        other = titles.setdefault(table.title, table)
        require(other is table, table.path, "title", f"a title of its own, not that of {other.path}", table.title)
    tables = [table for table in tables if not patterns or any(fnmatch(table.name, pattern) for pattern in patterns)]
    return [reshaped(table, profile) for table in tables]


def table_names() -> list[str]:
    """<paper>/<table> of every file. Raises LabError when two files have one name."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in TABLES.glob("*/*") if path.suffix in (".yaml", ".yml")):
        name = str(path.relative_to(TABLES).with_suffix(""))
        other = found.setdefault(name.lower(), path)
        if other is not path:
            raise LabError(f"{other} and {path} are two tables with one name; rename one of them")
    return sorted(str(path.relative_to(TABLES).with_suffix("")) for path in found.values())


def read_table(name: str) -> Table:
    """Raises LabError, naming file and key, for an unknown key, a missing one, a wrong count, or a choice that does not exist."""
    path = file_of(TABLES, name)
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        if "like" in content:
            content = {**_likeness(content, path), **content}
            del content["like"]
        axes = {
            axis: [_entry(kind, entry, path, f"{axis}[{i}]") for i, entry in enumerate(content[axis])]
            for axis, kind in (("rows", Row), ("columns", Column))
        }
        claims = [_entry(Claim, entry, path, f"claims[{i}]") for i, entry in enumerate(content.get("claims", []))]
        table = Table(**{**content, **axes, "claims": claims, "name": name})
    except KeyError as error:
        raise LabError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, AttributeError, YAMLError, OmegaConfBaseException, OSError) as error:
        raise LabError(f"{path}: {error}") from error
    check(table, path)
    return table


def _likeness(content: Mapping[str, Any], path: Path) -> Any:
    """The keys of the table that this one is like. Raises LabError where there is none, or where that is like another."""
    name = content["like"]
    require(name in table_names(), path, "like", f"one of {', '.join(table_names())}", name)
    require("title" in content, path, "like", "a title beside it, because no two tables have the same", name)
    other = OmegaConf.to_container(OmegaConf.load(file_of(TABLES, name)))
    require(isinstance(other, Mapping) and "like" not in other, path, "like", "a table that is not like another itself", name)
    return other


def _entry(kind: type[Any], content: Any, path: Path, key: str) -> Any:
    """One row, column or claim. Raises LabError, naming it, for an unknown key or a missing one."""
    require(isinstance(content, Mapping), path, key, "a mapping", content)
    try:
        return kind(**content)
    except TypeError as error:
        raise LabError(f"{place(path, key)}: {key}: {str(error).partition('() ')[2]}") from error


def reshaped(table: Table, profile: str) -> Table:
    """The table as the profile has it: itself, if it is of that size already or smaller."""
    if PROFILES.index(table.profile) >= PROFILES.index(profile):
        return table
    rules, columns = Rules.read(profile), list(table.columns)
    if table.figure.get("kind") == "curves" and rules.curve_points is not None:
        last = len(columns) - 1
        columns = [columns[i] for i in sorted({round(i * last / (rules.curve_points - 1)) for i in range(rules.curve_points)})]
    exceptions = [exception for exception in table.exceptions if any(fits(column.label, exception["column"]) for column in columns)]
    cells = {f"{row.label} / {column.label}" for row in table.rows for column in columns}
    claims = [claim for claim in table.claims if all(cells.issuperset(cells_in(comparison) or ()) for comparison in claim.holds_if)]
    published = table.published
    if len(columns) < len(table.columns) and published["kind"] == "exact":
        published = {"kind": "none"}
    return replace(table, profile=profile, rules=rules, columns=columns, exceptions=exceptions, claims=claims, published=published)
