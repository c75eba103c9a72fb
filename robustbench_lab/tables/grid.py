"""A table's grid as conf/table/<paper>/<table>.yaml declares it: read, checked, and reshaped by a profile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustbench_lab.settings.conf import table_folders
from robustbench_lab.settings.overrides import merged_overrides
from robustbench_lab.tables.base import Metric
from robustbench_lab.tables.claims import Claim
from robustbench_lab.tables.metrics import metric_of
from robustbench_lab.tables.profiles import Rules
from robustbench_lab.tables.published import PublishedFigure, fits, published_figure, source_of


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One row or column: its label, the words that it adds to `evaluate`, and the training seeds of its cells, if it says them."""

    label: str
    overrides: Sequence[str] = ()
    seeds: Sequence[int] | None = None


@dataclass(frozen=True, kw_only=True)
class Row(Axis):
    """not_run: why we do not run a row, such as a method that we do not have: all that it shows are published figures."""

    not_run: str | None = None


@dataclass(frozen=True, kw_only=True)
class Column(Axis):
    """A column may show another metric than the table, and write its figures in a form of its own, such as `.3f`."""

    metric: str | Mapping[str, Any] | None = None
    form: str | None = None


@dataclass(frozen=True, kw_only=True)
class Smaller:
    """What another table has measured by a short schedule of what this one would measure at full size.

    rows: a row here -> the rows there that stand in for it. columns: a column here -> the one there. note: what the page says of them.
    """

    table: str
    rows: Mapping[str, Sequence[str]]
    columns: Mapping[str, str]
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table's grid, layout and published figures.

    metric: what cells show unless their column says otherwise: a name of tables/metrics.py, or a mapping, `name` and that metric's knobs.
    exceptions: cells that take further words, by globs of their rows' and columns' labels.
    seeds: of training: a cell is then one figure over as many evaluations, each of a run of its own (and where the attacker sees another
    run, that one has the same seed, unless threat_model.overrides names one). What an exception says of its cells' seeds counts before
    what their column says, that before their row and that before the table.
    published: kind (exact, claim or none), source, and for exact figures `values`, in their column's unit, a row each, null where the paper
    has none, `"80.03 ± 0.15"` where it has mean and standard deviation; `band`: the difference, in points or in the metric's unit, up to
    which ours counts as theirs, one for all columns or one for each, null where nothing is compared; and `quoted`: the `cells` (a glob on
    `row / column`) that the paper took from another `source`; the first glob that fits counts. claims: orderings that the paper states.
    deviations: where we knowingly differ. findings: what the measured figures say; figures in both are named, not typed:
    {ours: row / column}, {paper: row / column}. profile: what made, or would make, this table. figure: what is drawn of it, `kind`:
    `curves` (a row is a curve, columns' labels are numbers on the axis, which `x` names), `pictures` (a row's cells are strips of what
    became of the first test images: `shows`), `planes` (models on points in the plane), `features` (of cells whose words have
    keep=[features]: where a model puts test images, clean and, of the class `attacked`, attacked; `classes`: their names), `scatter` (a row
    is a point, of its two columns' figures; rows whose labels are alike up to the last comma are a curve). Curves may have a logarithmic
    axis, `scale: log`.
    smaller: of a table at full size, where figures by a short schedule stand in for those that it does not have yet (tables/smaller.py).
    A file may say `like: <paper>/<table>`: whatever key it does not have, it has from that one.
    """

    name: str
    title: str
    source: str
    profile: str
    corner: str
    metric: str | Mapping[str, Any]
    overrides: Sequence[str]
    rows: Sequence[Row]
    columns: Sequence[Column]
    seeds: Sequence[int] | None = None
    exceptions: Sequence[Mapping[str, Any]] = ()
    published: Mapping[str, Any] = field(default_factory=lambda: {"kind": "none"})
    claims: Sequence[Claim] = ()
    deviations: Sequence[str] = ()
    findings: Sequence[str] = ()
    figure: Mapping[str, Any] = field(default_factory=dict)
    smaller: Sequence[Smaller] = ()
    rules: Rules | None = None  # of the profile that reshapes it: its words are then not those of the file

    @property
    def reshaped(self) -> bool:
        return self.rules is not None

    @property
    def path(self) -> Path:
        places = [folder / f"{self.name}.yaml" for folder in table_folders()]
        return next((path for path in places if path.exists()), places[0])

    def metric_of(self, column: Column) -> Metric:
        return metric_of(self.metric if column.metric is None else column.metric)

    def form_of(self, column: Column) -> str:
        return column.form or self.metric_of(column).form

    @property
    def metrics(self) -> list[Metric]:
        """Of each column."""
        return [self.metric_of(column) for column in self.columns]

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

    def seeds_of(self, row: Row, column: Column) -> Sequence[int]:
        """The training seeds of a cell; none where its words alone say which run it is."""
        said = [self.seeds, row.seeds, column.seeds, *(exception.get("seeds") for exception in self._exceptions(row, column))]
        seeds = next((seeds for seeds in reversed(said) if seeds is not None), ())
        return seeds if self.rules is None else seeds[: self.rules.seeds]

    def cells_behind(self, row: Row, column: Column) -> dict[str, str]:
        """The cells that a cell is worked out from: as its metric calls each, and its name, `row / column`."""
        return {called: called if " / " in called else f"{row.label} / {called}" for called in self.metric_of(column).cells}

    def words_of(self, row: Row, column: Column) -> list[list[str]]:
        """The words of `evaluate` for each evaluation behind a cell: none where nothing is run for it, several for several seeds."""
        if row.not_run is not None or not self.metric_of(column).evaluated:
            return []
        overrides: list[str] = []
        for more in self.words_said(row, column):
            overrides = merged_overrides(overrides, more)
        every = [merged_overrides(overrides, [f"seed={seed}"]) for seed in self.seeds_of(row, column)] or [overrides]
        return every if self.rules is None else [self.rules.applied(words) for words in every]

    def words_said(self, row: Row, column: Column) -> list[Sequence[str]]:
        """What the table, the row, the column and its exceptions say of a cell, the later before the earlier."""
        return [self.overrides, row.overrides, column.overrides, *(entry["overrides"] for entry in self._exceptions(row, column))]

    def words(self) -> Iterator[tuple[Row, Column, list[str]]]:
        """Row, column and the words of `evaluate`, cell by cell, and within a cell seed by seed."""
        for row in self.rows:
            for column in self.columns:
                for words in self.words_of(row, column):
                    yield row, column, words

    def _exceptions(self, row: Row, column: Column) -> list[Mapping[str, Any]]:
        return [entry for entry in self.exceptions if fits(row.label, entry["row"]) and fits(column.label, entry["column"])]
