"""A table's grid as conf/table/<paper>/<table>.yaml declares it: read, checked, reshaped by a profile, and expanded into evaluations.

Expanding is quick: Hydra composes each choice of a group once, and an evaluation is put together from these pieces. Words that are more
than `group=choice` and `key=value` are left to Hydra.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch, fnmatchcase
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from robustbench_lab.config import (
    CONF,
    RUN_GROUPS,
    Evaluation,
    Run,
    compose,
    evaluation_from,
    evaluation_of,
    merged_overrides,
    parsed,
    readable,
    run_of,
    setting_of,
    train_overrides,
)
from robustbench_lab.errors import LabError

TABLES = Path(os.environ.get("ROBUSTBENCH_LAB_TABLES") or CONF / "table").absolute()
RULES = CONF / "grid"
METRICS = ("robust_accuracy", "clean_accuracy")
KINDS = ("exact", "claim", "none")
PROFILES = ("paper", "quick", "smoke")  # from the whole to the least
GROUPS = (*RUN_GROUPS, "attack", "budget", "threat_model", "panel")
WHOLE = ("profile=", "metric=")  # words that Hydra composes a whole config for, the others being added to it
REFERENCE = re.compile(r"\$\{(?:backbone|defense|training|seed|profile)\b")
COMPARISON = re.compile(r"(?P<left>.+?) (?P<sign><=|>=|<|>) (?P<right>.+)")
SIDE = re.compile(r"(?P<cell>.+? / .+?)(?: (?P<sign>[+-]) (?P<points>\d+(?:\.\d+)?))?")


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One row or column: its label and the words that it adds to `evaluate`; a column may show another metric than the table."""

    label: str
    overrides: Sequence[str] = ()
    metric: str | None = None


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says in words, and the comparisons of our figures that bear it out: all of them must hold.

    holds_if: such as `FM / PGD > undefended / PGD + 10`, where a side is `row / column`, that and points, or a number in percent.
    """

    text: str
    source: str
    holds_if: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table's grid, layout and published figures.

    exceptions: cells that take further words. published: kind (exact, claim or none), source, and for exact figures `values`, in percent,
    a row each, null where the paper has none, and `band`: the difference in points up to which ours counts as theirs. claims: orderings
    that the paper states. deviations: where we knowingly differ. findings: what the measured figures say; figures in both are named, not
    typed: {ours: row / column}, {paper: row / column}. profile: what made, or would make, this table.
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
    claims: Sequence[Claim] = ()
    deviations: Sequence[str] = ()
    findings: Sequence[str] = ()
    rules: Rules | None = None  # of the profile that reshapes it: its words are then not those of the file

    @property
    def reshaped(self) -> bool:
        return self.rules is not None

    @property
    def path(self) -> Path:
        return TABLES / f"{self.name}.yaml"

    def words(self) -> Iterator[tuple[Axis, Axis, list[str]]]:
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
    path = next((path for suffix in (".yaml", ".yml") if (path := TABLES / f"{name}{suffix}").exists()), TABLES / f"{name}.yaml")
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        axes = {axis: [_entry(Axis, entry, path, f"{axis}[{i}]") for i, entry in enumerate(content[axis])] for axis in ("rows", "columns")}
        claims = [_entry(Claim, entry, path, f"claims[{i}]") for i, entry in enumerate(content.get("claims", []))]
        table = Table(**{**content, **axes, "claims": claims, "name": name})
    except KeyError as error:
        raise LabError(f"{path}: {error.args[0]} is missing") from error
    except (TypeError, AttributeError, YAMLError, OmegaConfBaseException, OSError) as error:
        raise LabError(f"{path}: {error}") from error
    _check(table, path)
    return table


def _entry(kind: type[Any], content: Any, path: Path, key: str) -> Any:
    """One row, column or claim. Raises LabError, naming it, for an unknown key or a missing one."""
    _require(isinstance(content, Mapping), path, key, "a mapping", content)
    try:
        return kind(**content)
    except TypeError as error:
        raise LabError(f"{path}:{_line(path, key)}: {key}: {str(error).partition('() ')[2]}") from error


def _check(table: Table, path: Path) -> None:
    for axis in ("rows", "columns"):
        for i, entry in enumerate(getattr(table, axis)):
            _require(isinstance(entry.label, str), path, f"{axis}[{i}].label", "a text, in quotes if it looks like a number", entry.label)
    for key in ("title", "source", "corner"):
        _require(isinstance(getattr(table, key), str), path, key, "a text", getattr(table, key))
    labels = {axis: [entry.label for entry in getattr(table, axis)] for axis in ("rows", "columns")}
    for axis, found in labels.items():
        _require(len(set(found)) == len(found), path, axis, "labels that differ", found)
    for metric in (table.metric, *(column.metric for column in table.columns if column.metric)):
        _require(metric in METRICS, path, "metric", f"one of {', '.join(METRICS)}", metric)
    _require(table.profile in PROFILES, path, "profile", f"one of {', '.join(PROFILES)}", table.profile)
    for i, exception in enumerate(table.exceptions):
        _require(isinstance(exception, Mapping), path, f"exceptions[{i}]", "row, column, overrides", exception)
        known = exception.get("row") in labels["rows"] and exception.get("column") in labels["columns"]
        complete = known and set(exception) == {"row", "column", "overrides"}
        _require(complete, path, f"exceptions[{i}]", "row, column, overrides, of this table", exception)
    _check_words(table, path)
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
            _require(_is_number(figure) or figure is None, path, "published.values", "numbers in percent, or null", figure)
        band: Any = table.published.get("band")
        _require(_is_number(band) and band >= 0, path, "published.band", "the points up to which ours counts as theirs", band)
    _require(kind != "claim" or bool(table.claims), path, "claims", "what the paper claims, because published.kind is claim", [])
    for i, claim in enumerate(table.claims):
        _require(bool(claim.holds_if), path, f"claims[{i}].holds_if", "comparisons", claim.holds_if)
        for comparison in claim.holds_if:
            sides = sides_of(str(comparison))
            known = sides is not None and all(isinstance(side, float) or side[0] in table.labels for side in (sides[0], sides[2]))
            _require(known, path, f"claims[{i}].holds_if", "such as 'row / column > row / column + 5', of this table", comparison)


def _check_words(table: Table, path: Path) -> None:
    places = [("overrides", table.overrides)]
    places += [(f"{axis}[{i}].overrides", entry.overrides) for axis in ("rows", "columns") for i, entry in enumerate(getattr(table, axis))]
    places += [(f"exceptions[{i}].overrides", entry["overrides"]) for i, entry in enumerate(table.exceptions)]
    for key, words in places:
        _require(isinstance(words, Sequence) and not isinstance(words, str), path, key, "a list of words", words)
        for word in words:
            try:
                found = [parsed(word), *(parsed(inner) for inner in _inner(word))]
            except (HydraException, LabError, TypeError) as error:
                raise LabError(f"{path}:{_line(path, key)}: {key}: {word!r} is no word of the command line: {error}") from error
            for override in found:
                group = override.key_or_group
                if (CONF / group).is_dir():
                    choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
                    value = override.value()
                    known = all(entry in choices for entry in (value if isinstance(value, list) else [value]))
                    _require(known, path, key, f"{group} to be one of {', '.join(choices)}", value)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require(condition: bool, path: Path, key: str, expected: str, got: object) -> None:
    if not condition:
        raise LabError(f"{path}:{_line(path, key)}: {key}: expected {expected}, got {got!r}")


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


def sides_of(comparison: str) -> tuple[float | tuple[str, float], str, float | tuple[str, float]] | None:
    """The two sides of a comparison and its sign; a side is a number, or a cell's name and the points to add to it."""
    if not (match := COMPARISON.fullmatch(comparison)):
        return None

    def side(text: str) -> float | tuple[str, float] | None:
        try:
            return float(text)
        except ValueError:
            found = SIDE.fullmatch(text)
        return (found["cell"], float(f"{found['sign'] or '+'}{found['points'] or 0}")) if found else None

    left, right = side(match["left"]), side(match["right"])
    return None if left is None or right is None else (left, match["sign"], right)


# Profiles


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How a profile changes a table's words, as conf/grid/<profile>.yaml says; of several patterns, the first that fits counts.

    choices: group -> pattern -> the choice instead; what the table says about the old one's keys is dropped. words: for a pattern of
    `group=choice`, words that are added. everywhere: words that every cell gets.
    """

    choices: Mapping[str, Mapping[str, str]]
    words: Mapping[str, Sequence[str]]
    everywhere: Sequence[str]

    @classmethod
    def read(cls, profile: str) -> Rules:
        path = RULES / f"{profile}.yaml"
        try:
            return cls(**OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
        except (TypeError, OSError, YAMLError, OmegaConfBaseException) as error:
            raise LabError(f"{path}: {error}") from error

    def applied(self, words: Sequence[str]) -> list[str]:
        """A cell's words, changed."""
        replaced, result = set(), []
        for word in words:
            override = parsed(word)
            if inner := _inner(word):
                result.append(_outer(self.applied(inner)))
                continue
            new = self._choice(override.key_or_group, override.value())
            if new is not None:
                replaced.add(override.key_or_group)
                word = f"{override.key_or_group}={new}"
            result.append(word)
        kept = [word for word in result if not _speaks_of(word, replaced)]
        added = [more for word in kept for pattern, words in self.words.items() if fnmatchcase(word, pattern) for more in words]
        return merged_overrides(kept, added)

    def _choice(self, group: str, choice: object) -> str | None:
        patterns = self.choices.get(group, {})
        new = next((new for pattern, new in patterns.items() if fnmatchcase(str(choice), pattern)), choice)
        return None if new == choice else str(new)


def reshaped(table: Table, profile: str) -> Table:
    """The table as the profile has it: itself, if it is of that size already or smaller."""
    if PROFILES.index(table.profile) >= PROFILES.index(profile):
        return table
    return replace(table, profile=profile, rules=Rules.read(profile))


def _speaks_of(word: str, groups: set[str]) -> bool:
    """Whether the word is about a key within one of the groups, and no choice."""
    group, _, key = parsed(word).key_or_group.partition(".")
    return bool(key) and group in groups


def _inner(word: str) -> list[str]:
    """The words within `threat_model.overrides=[...]`; none of any other word."""
    override = parsed(word)
    value = override.value() if override.key_or_group == "threat_model.overrides" else []
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _outer(words: Sequence[str]) -> str:
    return readable(f"threat_model.overrides=[{','.join(words)}]")


# From words to evaluations


class Expansion:
    """The evaluations that many cells' words describe; what they share is composed once."""

    def __init__(self, every: Iterable[Sequence[str]]) -> None:
        self._bases: dict[tuple[str, ...], tuple[DictConfig, dict[str, Any]]] = {}
        self._nodes: dict[tuple[str, str], tuple[DictConfig, dict[str, Any]] | None] = {}  # None: a choice that reaches beyond its group
        self._runs: dict[tuple[str, ...], Run] = {}
        self._hows: dict[tuple[str, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
        self._found: dict[tuple[str, ...], Evaluation] = {}
        self._texts: dict[int, str] = {}  # of nodes that live as long as this object
        self._compose_choices({choice for words in every for choice in self._choices_in(words)})

    def evaluation(self, words: Sequence[str]) -> Evaluation:
        key = tuple(words)
        if key not in self._found:
            described = train_overrides(words)
            how = [word for word in words if word not in described]
            if self._looks_at_the_run(how):
                self._found[key] = evaluation_of(*compose("evaluate", words), words)
            else:
                of_data = [word for word in described if parsed(word).key_or_group.partition(".")[0] in ("dataset", "profile")]
                self._found[key] = evaluation_from(self._run(described), *self._how([*of_data, *how]), words, self._run)
        return self._found[key]

    def _how(self, words: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Everything but the run, and the choices behind it."""
        key = tuple(words)
        if key not in self._hows:
            cfg, choices = self._config("evaluate", words)
            self._hows[key] = setting_of(cfg), choices
        return self._hows[key]

    def _looks_at_the_run(self, words: Sequence[str]) -> bool:
        """Whether the way of attacking refers to the run by more than its images: then the two are composed together."""
        chosen = {parsed(word).key_or_group: parsed(word).value() for word in words}
        nodes = [self._nodes.get((group, str(choice))) for group, choice in chosen.items() if group in GROUPS]
        found = [node[0] for node in nodes if node is not None]
        found += [self._base("evaluate")[0][group] for group in ("attack", "budget", "threat_model") if group not in chosen]
        return any("${" in word for word in words) or any(REFERENCE.search(self._text(node)) for node in found)

    def _text(self, node: DictConfig) -> str:
        if id(node) not in self._texts:
            self._texts[id(node)] = OmegaConf.to_yaml(node)
        return self._texts[id(node)]

    def _run(self, words: Sequence[str]) -> Run:
        key = tuple(words)
        if key not in self._runs:
            self._runs[key] = run_of(*self._config("train", words))
        return self._runs[key]

    def _choices_in(self, words: Sequence[str]) -> set[tuple[str, str]]:
        """(group, choice) of plain words, those of the attacker's other run as well."""
        overrides = [parsed(inner) for word in words for inner in (word, *_inner(word))]
        return {(o.key_or_group, str(o.value())) for o in overrides if o.key_or_group in GROUPS and o.package is None}

    def _compose_choices(self, wanted: set[tuple[str, str]]) -> None:
        """Many groups at a time, one choice of each; a choice that changes what other groups choose is left to Hydra."""
        queues = {group: sorted(choice for g, choice in wanted if g == group) for group in GROUPS}
        while any(queues.values()):
            asked = {group: queue.pop() for group, queue in queues.items() if queue}
            cfg, choices = compose("evaluate", [f"{group}={choice}" for group, choice in asked.items()])
            expected = {**self._base("evaluate")[1], **asked}
            alone = all(choices[group] == expected[group] for group in GROUPS)
            for group, choice in asked.items():
                within = {key: value for key, value in choices.items() if key.startswith(f"{group}@") or f"@{group}." in key}
                self._nodes[group, choice] = (cfg[group], within) if alone else None

    def _base(self, verb: str, *profile: str) -> tuple[DictConfig, dict[str, Any]]:
        if (verb, *profile) not in self._bases:
            self._bases[verb, *profile] = compose(verb, profile)
        return self._bases[verb, *profile]

    def _config(self, verb: str, words: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
        """As config.compose, without Hydra's own part where the words are plain."""
        base, choices = self._base(verb, *(word for word in words if word.startswith(WHOLE)))
        cfg = OmegaConf.create({key: None for key in base if key != "hydra"}, flags={"allow_objects": True})
        values = []
        choices = dict(choices)
        chosen: dict[str, DictConfig] = {}
        for word in words:
            override = parsed(word)
            group = override.key_or_group
            if word.startswith(WHOLE):
                continue
            if override.type != OverrideType.CHANGE or override.package is not None or override.is_sweep_override():
                return compose(verb, words)
            if group in GROUPS:
                node = self._nodes.get((group, str(override.value())))
                if node is None or group not in base:
                    return compose(verb, words)
                chosen[group], choices[group] = node[0], str(override.value())
                choices |= node[1]
            elif (CONF / group).is_dir():
                return compose(verb, words)
            else:
                values.append((group, override.value()))
        for key in cfg:
            cfg[key] = chosen[key] if key in chosen else base._get_node(key)  # a copy: omegaconf never shares a node
        for key, value in values:
            if OmegaConf.select(cfg, key, default=_NOTHING) is _NOTHING:
                return compose(verb, words)  # Hydra's error says it well
            OmegaConf.update(cfg, key, value, merge=True)
        return cfg, choices


_NOTHING = object()
