"""Tables read from their files: conf/table/<paper>/<table>.yaml, whole, checked, and reshaped by a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_lab.errors import LabError
from robustbench_lab.output import one_line
from robustbench_lab.settings.conf import table_folders
from robustbench_lab.settings.yaml_files import read_yaml
from robustbench_lab.tables.checks import check, check_smaller, file_of, place, require
from robustbench_lab.tables.claims import Claim, cells_in
from robustbench_lab.tables.drawing import kind_of
from robustbench_lab.tables.grid import Column, Row, Smaller, Table
from robustbench_lab.tables.profiles import PROFILES, Rules
from robustbench_lab.tables.published import fits


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


def published_tables(output_root: Path) -> list[Table]:
    """The tables whose pages are below an output folder, as the profile has them that made them, by name."""
    written, known, found = output_root / "tables", set(table_names()), []
    for path in sorted(written.rglob("*.md")):
        name = str(path.relative_to(written).with_suffix(""))
        profile, _, rest = name.partition("/")
        if name in known or (profile in PROFILES and rest in known):
            found.append(read_table(name) if name in known else reshaped(read_table(rest), profile))
    return found


def table_names() -> list[str]:
    """<paper>/<table> of every file. Raises LabError when two files have one name."""
    found: dict[str, tuple[str, Path]] = {}
    for folder in table_folders():
        for path in sorted(path for path in folder.glob("*/*") if path.suffix in (".yaml", ".yml")):
            name = str(path.relative_to(folder).with_suffix(""))
            _, other = found.setdefault(name.lower(), (name, path))
            if other is not path:
                raise LabError(f"{other} and {path} are two tables with one name; rename one of them")
    return sorted(name for name, _ in found.values())


def read_table(name: str) -> Table:
    """Raises LabError, naming file and key, for an unknown key, a missing one, a wrong count, or a choice that does not exist."""
    path = file_of(name)
    try:
        content: Any = _in_lines(read_yaml(path))
        if "like" in content:
            content = {**_likeness(content, path), **content}
            del content["like"]
        axes = {
            axis: [_entry(kind, entry, path, f"{axis}[{i}]") for i, entry in enumerate(content[axis])]
            for axis, kind in (("rows", Row), ("columns", Column))
        }
        claims = [_entry(Claim, entry, path, f"claims[{i}]") for i, entry in enumerate(content.get("claims", []))]
        smaller = [_entry(Smaller, entry, path, f"smaller[{i}]") for i, entry in enumerate(content.get("smaller", []))]
        table = Table(**{**content, **axes, "claims": claims, "smaller": smaller, "name": name})
    except KeyError as error:
        raise LabError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, AttributeError, YAMLError, OmegaConfBaseException, OSError) as error:
        raise LabError(f"{path}: {error}") from error
    check(table, path)
    if table.smaller:
        check_smaller(table, path, table_names(), read_table)
    return table


def _likeness(content: Mapping[str, Any], path: Path) -> Any:
    """The keys of the table that this one is like. Raises LabError where there is none, or where that is like another."""
    name = content["like"]
    require(name in table_names(), path, "like", f"one of {', '.join(table_names())}", name)
    require("title" in content, path, "like", "a title beside it, because no two tables have the same", name)
    other = _in_lines(read_yaml(file_of(name)))
    require(isinstance(other, Mapping) and "like" not in other, path, "like", "a table that is not like another itself", name)
    return other


def _in_lines(content: Any, key: str = "") -> Any:
    """A table's content with each text, which all are meant to be one line, on one line; words of a command line stay as they are."""
    if isinstance(content, Mapping) and key != "overrides":
        return {name: _in_lines(entry, str(name)) for name, entry in content.items()}
    if isinstance(content, list) and key != "overrides":
        return [_in_lines(entry) for entry in content]
    return one_line(content) if isinstance(content, str) and key != "overrides" and not content.isprintable() else content


def _entry(kind: type[Any], content: Any, path: Path, key: str) -> Any:
    """One row, column, claim or smaller table. Raises LabError, naming it, for an unknown key or a missing one."""
    require(isinstance(content, Mapping), path, key, "a mapping", content)
    try:
        return kind(**content)
    except TypeError as error:
        raise LabError(f"{place(path, key)}: {key}: {str(error).partition('() ')[2]}") from error


def reshaped(table: Table, profile: str) -> Table:
    """The table as the profile has it: itself, if it is of that size already or smaller."""
    order = list(PROFILES)
    if order.index(table.profile) >= order.index(profile):
        return table
    rules, columns = Rules.read(profile), list(table.columns)
    if rules.curve_points is not None and table.figure and kind_of(table.figure).thinned:
        last = len(columns) - 1
        columns = [columns[i] for i in sorted({round(i * last / (rules.curve_points - 1)) for i in range(rules.curve_points)})]
    exceptions = [exception for exception in table.exceptions if any(fits(column.label, exception["column"]) for column in columns)]
    cells = {f"{row.label} / {column.label}" for row in table.rows for column in columns}
    claims = [claim for claim in table.claims if all(cells.issuperset(cells_in(comparison) or ()) for comparison in claim.holds_if)]
    published = table.published
    if len(columns) < len(table.columns) and published["kind"] == "exact":
        published = {"kind": "none"}
    return replace(
        table, profile=profile, rules=rules, columns=columns, exceptions=exceptions, claims=claims, published=published, smaller=()
    )
