"""What a table's file must hold, so that a wrong one is named with its line before anything is computed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.errors import HydraException

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import choices, table_folders
from robustbench_lab.settings.overrides import inner_words, parsed
from robustbench_lab.settings.verbs import groups_and_keys
from robustbench_lab.settings.yaml_files import nodes_of, read_text, read_yaml
from robustbench_lab.tables.claims import cells_in
from robustbench_lab.tables.drawing import kind_of
from robustbench_lab.tables.metrics import FORM, metric_of
from robustbench_lab.tables.profiles import PROFILES
from robustbench_lab.tables.published import fits, published_figure

if TYPE_CHECKING:
    from robustbench_lab.tables.grid import Table

KINDS = ("exact", "claim", "none")
NO_WORDS = ("output_root", "force", "device", "data", "objective", "split", "train")  # of a cell: where it is made, and of other images
WORDS = tuple(name for part in groups_and_keys("evaluate") for name in part if name not in NO_WORDS)


def check(table: Table, path: Path) -> None:
    """Raises LabError for the first thing that is wrong, with file, line and key."""
    for axis in ("rows", "columns"):
        for i, entry in enumerate(getattr(table, axis)):
            require(isinstance(entry.label, str), path, f"{axis}[{i}].label", "a text, in quotes if it looks like a number", entry.label)
    for key in ("title", "source", "corner"):
        require(isinstance(getattr(table, key), str), path, key, "a text", getattr(table, key))
    labels = {axis: [entry.label for entry in getattr(table, axis)] for axis in ("rows", "columns")}
    for axis, found in labels.items():
        require(len(set(found)) == len(found), path, axis, "labels that differ", found)
    for key, metric in (("metric", table.metric), *((f"columns[{i}].metric", column.metric) for i, column in enumerate(table.columns))):
        _check_metric(path, key, metric)
    for i, column in enumerate(table.columns):
        valid = column.form is None or (isinstance(column.form, str) and FORM.fullmatch(column.form))
        require(bool(valid), path, f"columns[{i}].form", "a number format such as .3f, .4g or ,.0f", column.form)
    require(table.profile in PROFILES, path, "profile", f"one of {', '.join(PROFILES)}", table.profile)
    run = [row.label for row in table.rows if row.not_run is None]
    for i, exception in enumerate(table.exceptions):
        require(isinstance(exception, Mapping), path, f"exceptions[{i}]", "row, column, overrides", exception)
        for axis in ("row", "column"):
            told = exception.get(axis, "")
            require(isinstance(told, str), path, f"exceptions[{i}].{axis}", "a text, in quotes if it looks like a number", told)
        complete = set(exception) - {"seeds"} == {"row", "column", "overrides"} and all(
            any(fits(label, exception[axis]) for label in labels[f"{axis}s"]) for axis in ("row", "column")
        )
        require(complete, path, f"exceptions[{i}]", "row, column, overrides, of this table, perhaps with seeds", exception)
        some = any(fits(label, exception["row"]) for label in run)
        require(some, path, f"exceptions[{i}].row", "a row that is run, without not_run", exception["row"])
    _check_words(table, path)
    _check_seeds(table, path)
    _check_cells_behind(table, path)
    _check_measured(table, path)
    _check_figure(table, path)
    _check_published(table, path)
    _check_rows_not_run(table, path)
    _check_claims(table, path)


def _check_metric(path: Path, key: str, metric: Any) -> None:
    if metric is None and key != "metric":
        return  # the table's
    require(isinstance(metric, str | Mapping), path, key, "a metric's name, or a mapping of its name and knobs", metric)
    try:
        metric_of(metric)
    except LabError as error:
        raise LabError(f"{place(path, key)}: {key}: {error}") from error


def _check_seeds(table: Table, path: Path) -> None:
    places: list[tuple[str, Any]] = [("seeds", table.seeds)]
    places += [(f"{axis}[{i}].seeds", entry.seeds) for axis in ("rows", "columns") for i, entry in enumerate(getattr(table, axis))]
    places += [(f"exceptions[{i}].seeds", entry.get("seeds")) for i, entry in enumerate(table.exceptions)]
    for key, seeds in places:
        whole = isinstance(seeds, list) and all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds)
        known = seeds is None or (whole and len(set(seeds)) == len(seeds) > 0)
        require(known, path, key, "training seeds that differ, such as [0, 1, 2]", seeds)
    for row in table.rows:
        for column in table.columns:
            told = [word for words in table.words_said(row, column) for word in words if parsed(word).key_or_group == "seed"]
            name = f"{row.label} / {column.label}"
            require(not (told and table.seeds_of(row, column)), path, "seeds", f"no seed among the words of {name} beside them", told)


def _check_cells_behind(table: Table, path: Path) -> None:
    """A figure that is worked out from other cells: they must be there, show what it needs, and not be worked out from it in turn."""
    places = {f"{row.label} / {column.label}": (row, i) for row in table.rows for i, column in enumerate(table.columns)}
    behind = {cell: table.cells_behind(row, table.columns[i]) for cell, (row, i) in places.items()}
    metrics = table.metrics
    for cell, others in behind.items():
        i = places[cell][1]
        key = f"columns[{i}].metric" if table.columns[i].metric is not None else "metric"
        for name in others.values():
            require(name in behind, path, key, f"cells of this table behind {cell}", name)
        try:
            metrics[i].check_cells({called: metrics[places[name][1]] for called, name in others.items()})
        except LabError as error:
            raise LabError(f"{place(path, key)}: {key}: {error}") from error
    try:
        TopologicalSorter({cell: others.values() for cell, others in behind.items()}).prepare()
    except CycleError as error:
        require(False, path, "columns", "cells that are not worked out from each other in a circle", error.args[1])


def _check_published(table: Table, path: Path) -> None:
    published = table.published
    require(isinstance(published, Mapping), path, "published", "kind, source and values", published)
    kind = published.get("kind")
    require(kind in KINDS, path, "published.kind", f"one of {', '.join(KINDS)}", kind)
    unknown = set(published) - {"kind", "source", "values", "band", "quoted"}
    require(not unknown, path, "published", "kind, source, values, band, quoted", sorted(unknown))
    if kind != "none":
        require(bool(published.get("source")), path, "published.source", "where the figures stand", None)
    if kind != "exact":
        unused = set(published) & {"values", "band", "quoted"}
        require(not unused, path, "published", "values, band and quoted beside `kind: exact` only", sorted(unused))
        return
    values = published.get("values") or []
    require(isinstance(values, list), path, "published.values", f"{len(table.rows)} rows of {len(table.columns)}", values)
    shape = [len(row) if isinstance(row, list) else row for row in values]
    expected = [len(table.columns)] * len(table.rows)
    require(shape == expected, path, "published.values", f"{len(table.rows)} rows of {len(table.columns)}", shape)
    for i, row in enumerate(values):
        for figure in row:
            known = figure is None or _is_number(figure) or (isinstance(figure, str) and published_figure(figure, None) is not None)
            meant = "numbers in the column's unit, or null, or mean ± standard deviation such as '80.03 ± 0.15'"
            require(known, path, f"published.values[{i}]", meant, figure)
    band: Any = published.get("band")
    each = isinstance(band, list)
    counted = not each or len(band) == len(table.columns)
    known = all((each and entry is None) or (_is_number(entry) and entry >= 0) for entry in (band if each else [band]))
    meant = "the difference up to which ours counts as theirs: a number, or one for each column, null where none is compared"
    require(counted and known, path, "published.band", meant, band)
    _check_quoted(table, path)


def _check_quoted(table: Table, path: Path) -> None:
    quoted = table.published.get("quoted", [])
    require(isinstance(quoted, list), path, "published.quoted", "a list of cells and source", quoted)
    for i, entry in enumerate(quoted):
        complete = (
            isinstance(entry, Mapping) and set(entry) == {"cells", "source"} and all(isinstance(text, str) for text in entry.values())
        )
        require(complete, path, f"published.quoted[{i}]", "cells, a glob on 'row / column', and source", entry)
    printed = [f"{row.label} / {column.label}" for row in table.rows for column in table.columns if table.published_in(row, column)]
    for i, entry in enumerate(quoted):
        meant = "a glob on 'row / column' that fits a cell with a published figure"
        require(any(fits(cell, entry["cells"]) for cell in printed), path, f"published.quoted[{i}].cells", meant, entry["cells"])


def _check_rows_not_run(table: Table, path: Path) -> None:
    for i, row in enumerate(table.rows):
        if row.not_run is not None:
            key = f"rows[{i}].not_run"
            require(isinstance(row.not_run, str) and bool(row.not_run.strip()), path, key, "why the row is not run", row.not_run)
            require(not row.overrides, path, key, "a row without overrides, because nothing of it is run", row.overrides)
            printed = any(table.published_in(row, column) for column in table.columns)
            require(printed, path, key, "published figures in the row, because it shows nothing else", row.label)


def _check_claims(table: Table, path: Path) -> None:
    cells = {f"{row.label} / {column.label}": (row, table.metric_of(column)) for row in table.rows for column in table.columns}
    required = table.published["kind"] == "claim"
    require(not required or bool(table.claims), path, "claims", "what the paper claims, because published.kind is claim", [])
    for i, claim in enumerate(table.claims):
        for key in ("text", "source", "evidence", "sign"):
            told = getattr(claim, key)
            optional = key in ("evidence", "sign") and told is None
            require(isinstance(told, str) or optional, path, f"claims[{i}].{key}", "a text", told)
        key = f"claims[{i}].holds_if"
        require(bool(claim.holds_if), path, key, "comparisons", claim.holds_if)
        for comparison in claim.holds_if:
            named = cells_in(str(comparison)) or []
            known = cells_in(str(comparison)) is not None and all(name in cells for name in named)
            require(known, path, key, "such as 'row / column > row / column + 5', of this table", comparison)
            run = all(cells[name][0].not_run is None for name in named)
            require(run, path, key, "cells of rows that are run, without not_run", comparison)
            require(len({cells[name][1].unit for name in named}) < 2, path, key, "figures of one unit", comparison)


def _check_words(table: Table, path: Path) -> None:
    places = [("overrides", table.overrides)]
    places += [(f"{axis}[{i}].overrides", entry.overrides) for axis in ("rows", "columns") for i, entry in enumerate(getattr(table, axis))]
    places += [(f"exceptions[{i}].overrides", entry["overrides"]) for i, entry in enumerate(table.exceptions)]
    for key, words in places:
        require(isinstance(words, Sequence) and not isinstance(words, str), path, key, "a list of words", words)
        for word in words:
            try:
                found = [parsed(word), *(parsed(inner) for inner in inner_words(word))]
            except (HydraException, LabError, TypeError, RecursionError) as error:
                raise LabError(f"{place(path, key)}: {key}: {word!r} is no word of the command line: {error}") from error
            for override in found:
                name = re.split(r"[./]", override.package or override.key_or_group)[0]
                meant = f"words for the groups and keys of evaluate, {', '.join(WORDS)}"
                require(name in WORDS, path, key, meant, word)
                group = override.key_or_group
                if there := choices(group):
                    value = override.value()
                    known = all(entry in there for entry in (value if isinstance(value, list) else [value]))
                    require(known, path, key, f"{group} to be one of {', '.join(there)}", value)


def _check_measured(table: Table, path: Path) -> None:
    """Every cell's words must ask for what it shows; whether its attack can tell is known when it is composed, in tables/cells.py."""
    for row, column, words in table.words():
        metric = table.metric_of(column)
        said = {override.key_or_group: override.value() for override in map(parsed, words)}
        key = f"columns[{table.columns.index(column)}].metric" if column.metric else "metric"
        require(metric.asked(said), path, key, f"the words of {row.label} / {column.label} to have {metric.word}, for {metric.name}", words)


def _check_figure(table: Table, path: Path) -> None:
    require(isinstance(table.figure, Mapping), path, "figure", "kind, and what that needs", table.figure)
    if not table.figure:
        return
    try:
        kind = kind_of(table.figure)
    except LabError as error:
        raise LabError(f"{place(path, str(error).partition(':')[0])}: {error}") from error
    kind.check(table, path)


def check_smaller(table: Table, path: Path, names: Sequence[str], read: Callable[[str], Table]) -> None:
    """What stands in must be there, run, measured by a short schedule and in the unit of what it stands in for."""
    whole = table.profile == "paper"
    require(whole, path, "smaller", "in a table of the profile paper alone; one that is like it says `smaller: []`", table.profile)
    columns = {column.label: table.metric_of(column).unit for column in table.columns}
    for i, entry in enumerate(table.smaller):
        key = f"smaller[{i}]"
        require(entry.table in names and entry.table != table.name, path, f"{key}.table", "the name of another table", entry.table)
        other = read(entry.table)
        require(other.profile == "quick", path, f"{key}.table", "a table of the profile quick", f"{other.name}, of {other.profile}")
        run = [row.label for row in other.rows if row.not_run is None]
        units = {column.label: other.metric_of(column).unit for column in other.columns}
        for axis, labels in (("rows", [row.label for row in table.rows]), ("columns", list(columns))):
            said = getattr(entry, axis)
            known = isinstance(said, Mapping) and bool(said) and all(label in labels for label in said)
            require(known, path, f"{key}.{axis}", f"{axis} of this table, each with what stands in for it there", said)
        for label, found in entry.rows.items():
            known = isinstance(found, list) and bool(found) and all(row in run for row in found)
            require(known, path, f"{key}.rows", f"for {label} a list of rows of {other.name} that are run", found)
        for label, column in entry.columns.items():
            require(column in list(units), path, f"{key}.columns", f"for {label} a column of {other.name}", column)
            require(units[column] == columns[label], path, f"{key}.columns", f"for {label} a column in its unit", column)
        require(entry.note is None or isinstance(entry.note, str), path, f"{key}.note", "a text", entry.note)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def require(condition: bool, path: Path, key: str, expected: str, got: object) -> None:
    """Raises LabError with the key's place unless the condition holds."""
    if not condition:
        raise LabError(f"{place(path, key)}: {key}: expected {expected}, got {got!r}")


def place(path: Path, key: str) -> str:
    """File and line of a key; the file is that of the table that this one is like, if only that one has the key."""
    content = read_yaml(path)
    if key.partition(".")[0].partition("[")[0] not in content and "like" in content:
        other = file_of(str(content["like"]))
        path = other if other.exists() else path
    return f"{path}:{_line(path, key)}"


def file_of(name: str) -> Path:
    """The file of <paper>/<table>, in whichever folder of tables it is."""
    paths = [folder / f"{name}{suffix}" for folder in table_folders() for suffix in (".yaml", ".yml")]
    return next((path for path in paths if path.exists()), paths[0])


def _line(path: Path, key: str) -> int:
    """The line of a file where a key such as rows[2].label stands, or the innermost part of it that is there."""
    node, line = nodes_of(read_text(path)), 1
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
