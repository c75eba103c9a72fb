"""A table's grid as conf/table/<paper>/<table>.yaml declares it: read, checked, and reshaped by a profile."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_lab.claims import Claim, sides_of
from robustbench_lab.config import CONF, merged_overrides, parsed
from robustbench_lab.errors import LabError
from robustbench_lab.profiles import PROFILES, Rules, inner_words
from robustbench_lab.units import ACCURACIES, FORM, OTHERS, default_form, is_percent, unit_of, word_for

TABLES = Path(os.environ.get("ROBUSTBENCH_LAB_TABLES") or CONF / "table").absolute()
KINDS = ("exact", "claim", "none")
FIGURES = ("curves", "pictures", "planes")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One row or column: its label and the words that it adds to `evaluate`."""

    label: str
    overrides: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Column(Axis):
    """A column may show another metric than the table, and write its figures in a form of its own, such as `.3f`."""

    metric: str | None = None
    form: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table's grid, layout and published figures.

    metric: what cells show unless their column says otherwise: an accuracy, in percent, or `metrics.<name>` of conf/metric/, as it is.
    exceptions: cells that take further words. published: kind (exact, claim or none), source, and for exact figures `values`, in their
    column's unit, a row each, null where the paper has none, and `band`: the difference, in points or in the metric's unit, up to which
    ours counts as theirs, one for all columns or one for each, null where nothing is compared. claims: orderings that the paper states.
    deviations: where we knowingly differ. findings: what the measured figures say; figures in both are named, not typed:
    {ours: row / column}, {paper: row / column}. profile: what made, or would make, this table. figure: what is drawn of it, `kind`:
    `curves` (a row is a curve, columns' labels are numbers on the axis, which `x` names), `pictures` (a row's cells are strips of the first
    test images), `planes` (models on points in the plane).
    A file may say `like: <paper>/<table>`: whatever key it does not have, it has from that one.
    """

    name: str
    title: str
    source: str
    profile: str
    corner: str
    metric: str
    overrides: Sequence[str]
    rows: Sequence[Axis]
    columns: Sequence[Column]
    exceptions: Sequence[Mapping[str, Any]] = ()
    published: Mapping[str, Any] = field(default_factory=lambda: {"kind": "none"})
    claims: Sequence[Claim] = ()
    deviations: Sequence[str] = ()
    findings: Sequence[str] = ()
    figure: Mapping[str, str] = field(default_factory=dict)
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
    def bands(self) -> list[float | None]:
        """Of each column, how far ours may be from a published figure, in its unit; None: nothing is compared."""
        band = self.published.get("band") if self.published.get("kind") == "exact" else None
        return band if isinstance(band, list) else [band] * len(self.columns)

    def words(self) -> Iterator[tuple[Axis, Column, list[str]]]:
        """Row, column and the words of `evaluate`, cell by cell."""
        for row in self.rows:
            for column in self.columns:
                special = [e["overrides"] for e in self.exceptions if (e["row"], e["column"]) == (row.label, column.label)]
                overrides: list[str] = []
                for more in (self.overrides, row.overrides, column.overrides, *special):
                    overrides = merged_overrides(overrides, more)
                if self.rules is not None:
                    overrides = merged_overrides(self.rules.applied(overrides), self.rules.everywhere)
                yield row, column, overrides

    @property
    def labels(self) -> set[str]:
        """Every cell's name, `row / column`."""
        return {f"{row.label} / {column.label}" for row in self.rows for column in self.columns}


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
        _require(other is table, table.path, "title", f"a title of its own, not that of {other.path}", table.title)
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
    path = _file(name)
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        if "like" in content:
            content = {**_likeness(content, path), **content}
            del content["like"]
        axes = {
            axis: [_entry(kind, entry, path, f"{axis}[{i}]") for i, entry in enumerate(content[axis])]
            for axis, kind in (("rows", Axis), ("columns", Column))
        }
        claims = [_entry(Claim, entry, path, f"claims[{i}]") for i, entry in enumerate(content.get("claims", []))]
        table = Table(**{**content, **axes, "claims": claims, "name": name})
    except KeyError as error:
        raise LabError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, AttributeError, YAMLError, OmegaConfBaseException, OSError) as error:
        raise LabError(f"{path}: {error}") from error
    _check(table, path)
    return table


def _file(name: str) -> Path:
    return next((path for suffix in (".yaml", ".yml") if (path := TABLES / f"{name}{suffix}").exists()), TABLES / f"{name}.yaml")


def _likeness(content: Mapping[str, Any], path: Path) -> Any:
    """The keys of the table that this one is like. Raises LabError where there is none, or where that is like another."""
    name = content["like"]
    _require(name in table_names(), path, "like", f"one of {', '.join(table_names())}", name)
    _require("title" in content, path, "like", "a title beside it, because no two tables have the same", name)
    other = OmegaConf.to_container(OmegaConf.load(_file(name)))
    _require(isinstance(other, Mapping) and "like" not in other, path, "like", "a table that is not like another itself", name)
    return other


def _entry(kind: type[Any], content: Any, path: Path, key: str) -> Any:
    """One row, column or claim. Raises LabError, naming it, for an unknown key or a missing one."""
    _require(isinstance(content, Mapping), path, key, "a mapping", content)
    try:
        return kind(**content)
    except TypeError as error:
        raise LabError(f"{_place(path, key)}: {key}: {str(error).partition('() ')[2]}") from error


def _check(table: Table, path: Path) -> None:
    for axis in ("rows", "columns"):
        for i, entry in enumerate(getattr(table, axis)):
            _require(isinstance(entry.label, str), path, f"{axis}[{i}].label", "a text, in quotes if it looks like a number", entry.label)
    for key in ("title", "source", "corner"):
        _require(isinstance(getattr(table, key), str), path, key, "a text", getattr(table, key))
    labels = {axis: [entry.label for entry in getattr(table, axis)] for axis in ("rows", "columns")}
    for axis, found in labels.items():
        _require(len(set(found)) == len(found), path, axis, "labels that differ", found)
    metrics = [*ACCURACIES, *(f"{OTHERS}{file.stem}" for file in sorted((CONF / "metric").glob("*.yaml")))]
    _require(table.metric in metrics, path, "metric", f"one of {', '.join(metrics)}", table.metric)
    for i, column in enumerate(table.columns):
        _require(column.metric in (None, *metrics), path, f"columns[{i}].metric", f"one of {', '.join(metrics)}", column.metric)
        valid = column.form is None or (isinstance(column.form, str) and FORM.fullmatch(column.form))
        _require(bool(valid), path, f"columns[{i}].form", "a number format such as .3f, .4g or ,.0f", column.form)
    _require(table.profile in PROFILES, path, "profile", f"one of {', '.join(PROFILES)}", table.profile)
    for i, exception in enumerate(table.exceptions):
        _require(isinstance(exception, Mapping), path, f"exceptions[{i}]", "row, column, overrides", exception)
        known = exception.get("row") in labels["rows"] and exception.get("column") in labels["columns"]
        complete = known and set(exception) == {"row", "column", "overrides"}
        _require(complete, path, f"exceptions[{i}]", "row, column, overrides, of this table", exception)
    _check_words(table, path)
    _check_measured(table, path)
    _check_figure(table, path)
    _require(isinstance(table.published, Mapping), path, "published", "kind, source and values", table.published)
    kind = table.published.get("kind")
    _require(kind in KINDS, path, "published.kind", f"one of {', '.join(KINDS)}", kind)
    unknown = set(table.published) - {"kind", "source", "values", "band"}
    _require(not unknown, path, "published", "kind, source, values, band", sorted(unknown))
    if kind != "none":
        _require(bool(table.published.get("source")), path, "published.source", "where the figures stand", None)
    if kind == "exact":
        values = table.published.get("values") or []
        _require(isinstance(values, list), path, "published.values", f"{len(table.rows)} rows of {len(table.columns)}", values)
        shape = [len(row) if isinstance(row, list) else row for row in values]
        expected = [len(table.columns)] * len(table.rows)
        _require(shape == expected, path, "published.values", f"{len(table.rows)} rows of {len(table.columns)}", shape)
        for figure in (figure for row in values for figure in row):
            _require(_is_number(figure) or figure is None, path, "published.values", "numbers in the column's unit, or null", figure)
        band: Any = table.published.get("band")
        each = isinstance(band, list)
        counted = not each or len(band) == len(table.columns)
        known = all((each and entry is None) or (_is_number(entry) and entry >= 0) for entry in (band if each else [band]))
        meant = "the difference up to which ours counts as theirs: a number, or one for each column, null where none is compared"
        _require(counted and known, path, "published.band", meant, band)
    metrics_of_cells = {f"{row.label} / {column.label}": table.metric_of(column) for row in table.rows for column in table.columns}
    _require(kind != "claim" or bool(table.claims), path, "claims", "what the paper claims, because published.kind is claim", [])
    for i, claim in enumerate(table.claims):
        _require(bool(claim.holds_if), path, f"claims[{i}].holds_if", "comparisons", claim.holds_if)
        for comparison in claim.holds_if:
            sides = sides_of(str(comparison))
            known = sides is not None and all(isinstance(side, float) or side[0] in table.labels for side in (sides[0], sides[2]))
            _require(known, path, f"claims[{i}].holds_if", "such as 'row / column > row / column + 5', of this table", comparison)
            units = {unit_of(metrics_of_cells[side[0]]) for side in (sides[0], sides[2]) if not isinstance(side, float)} if sides else set()
            _require(len(units) < 2, path, f"claims[{i}].holds_if", "figures of one unit", comparison)


def _check_words(table: Table, path: Path) -> None:
    places = [("overrides", table.overrides)]
    places += [(f"{axis}[{i}].overrides", entry.overrides) for axis in ("rows", "columns") for i, entry in enumerate(getattr(table, axis))]
    places += [(f"exceptions[{i}].overrides", entry["overrides"]) for i, entry in enumerate(table.exceptions)]
    for key, words in places:
        _require(isinstance(words, Sequence) and not isinstance(words, str), path, key, "a list of words", words)
        for word in words:
            try:
                found = [parsed(word), *(parsed(inner) for inner in inner_words(word))]
            except (HydraException, LabError, TypeError) as error:
                raise LabError(f"{_place(path, key)}: {key}: {word!r} is no word of the command line: {error}") from error
            for override in found:
                group = override.key_or_group
                if (CONF / group).is_dir():
                    choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
                    value = override.value()
                    known = all(entry in choices for entry in (value if isinstance(value, list) else [value]))
                    _require(known, path, key, f"{group} to be one of {', '.join(choices)}", value)


def _check_measured(table: Table, path: Path) -> None:
    """Every cell's words must ask for what it shows."""
    for row, column, words in table.words():
        metric = table.metric_of(column)
        said = {override.key_or_group: override.value() for override in map(parsed, words)}
        asked = said.get("metric")
        if metric == "attacked_accuracy":
            measured = said.get("attack_misclassified") is True
        else:
            measured = is_percent(metric) or unit_of(metric) in (asked if isinstance(asked, list) else [asked])
        key = f"columns[{table.columns.index(column)}].metric" if column.metric else "metric"
        _require(measured, path, key, f"the words of {row.label} / {column.label} to have {word_for(metric)}, for {metric}", words)


def _check_figure(table: Table, path: Path) -> None:
    figure = table.figure
    _require(isinstance(figure, Mapping), path, "figure", "kind, and for curves x", figure)
    if not figure:
        return
    _require(figure.get("kind") in FIGURES, path, "figure.kind", f"one of {', '.join(FIGURES)}", figure.get("kind"))
    curves = figure["kind"] == "curves"
    _require(set(figure) == ({"kind", "x"} if curves else {"kind"}), path, "figure", "kind, and for curves x", sorted(figure))
    if curves:
        _require(isinstance(figure["x"], str), path, "figure.x", "the axis's name and unit", figure["x"])
        places = [_place_on_axis(column.label) for column in table.columns]
        rising = None not in places and places == sorted(set(places))  # type: ignore[type-var]
        _require(
            rising, path, "columns", "labels that are numbers, rising, for a figure of curves", [column.label for column in table.columns]
        )
        _require(all(table.in_percent), path, "columns", "accuracies, for a figure of curves", [table.metric_of(c) for c in table.columns])


def _place_on_axis(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(condition: bool, path: Path, key: str, expected: str, got: object) -> None:
    if not condition:
        raise LabError(f"{_place(path, key)}: {key}: expected {expected}, got {got!r}")


def _place(path: Path, key: str) -> str:
    """File and line of a key; the file is that of the table that this one is like, if only that one has the key."""
    content = yaml.safe_load(path.read_text())
    if key.partition(".")[0].partition("[")[0] not in content and content.get("like") in table_names():
        path = _file(content["like"])
    return f"{path}:{_line(path, key)}"


def _line(path: Path, key: str) -> int:
    """The line of a file where a key such as rows[2].label stands, or the innermost part of it that is there."""
    node, line = yaml.compose(path.read_text()), 1
    for part in re.findall(r"[^.\[\]]+", key):
        if isinstance(node, yaml.MappingNode):
            found = next(((name, value) for name, value in node.value if name.value == part), None)
        else:
            entries = node.value if isinstance(node, yaml.SequenceNode) and part.isdigit() else []
            found = (entries[int(part)], entries[int(part)]) if entries and int(part) < len(entries) else None
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def reshaped(table: Table, profile: str) -> Table:
    """The table as the profile has it: itself, if it is of that size already or smaller."""
    if PROFILES.index(table.profile) >= PROFILES.index(profile):
        return table
    rules, columns = Rules.read(profile), list(table.columns)
    if table.figure.get("kind") == "curves" and rules.curve_points is not None:
        last = len(columns) - 1
        columns = [columns[i] for i in sorted({round(i * last / (rules.curve_points - 1)) for i in range(rules.curve_points)})]
    kept = {column.label for column in columns}
    exceptions = [exception for exception in table.exceptions if exception["column"] in kept]
    published = table.published
    if len(columns) < len(table.columns) and published["kind"] == "exact":
        published = {"kind": "none"}
    return replace(table, profile=profile, rules=rules, columns=columns, exceptions=exceptions, published=published)
