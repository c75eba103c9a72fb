"""A table's grid as conf/table/<paper>/<table>.yaml declares it: read, checked, and reshaped by a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_lab.settings.conf import tables_folder
from robustbench_lab.settings.overrides import merged_overrides
from robustbench_lab.tables.claims import Claim
from robustbench_lab.tables.profiles import Rules
from robustbench_lab.tables.published import PublishedFigure, fits, published_figure, source_of
from robustbench_lab.tables.units import OTHERS, default_form, is_percent


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
    test images), `planes` (models on points in the plane), `features` (of cells whose words have keep=[features]: where a model puts test
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
        return tables_folder() / f"{self.name}.yaml"

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
