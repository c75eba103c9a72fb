"""What names a training run and an evaluation: their content, not where a class lives, nor what changes no result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from robustbench_lab.errors import LabError, printable
from robustbench_lab.knobs import check, require
from robustbench_lab.settings.conf import compose, path_of, plain
from robustbench_lab.settings.overrides import LISTS, RUN_GROUPS, merged_overrides, readable, train_overrides, written_out
from robustbench_lab.storage.files import file_digest
from robustbench_lab.storage.folders import EvaluationFolder, OutputFolder, RunFolder, existing
from robustbench_lab.storage.image_files import within
from robustbench_lab.storage.records import RUN_FILE

# They change no weight, or, a teacher's words, are said better by its content.
NOT_IN_RUN = {
    ("dataset", "test_size"),
    ("dataset", "budget"),
    ("dataset", "space"),
    ("dataset", "in_memory_limit"),
    ("defense", "teacher"),
    ("training", "claimed_clean"),
    ("training", "images"),
}
HOW = ("attack_seed", "verdict_draws", "eot_samples", "search_precision")  # beside the groups, what changes an evaluation's result
OF_RANDOM_OUTPUT = ("verdict_draws", "eot_samples")  # of these, what changes nothing where no output is random
ON_REQUEST = ("attack_misclassified", "test_first", "without_noise")  # the same; what is not asked for is not in the name

LONGEST_CHAIN = 8  # of teachers that have a teacher

_chain = ContextVar("chain", default=0)  # how many runs are being described that wait for their teacher

RunAt = Callable[[Sequence[str]], "Run"]  # the run that words describe


@dataclass(frozen=True)
class Run:
    """What names a training run: its content, and the words a person would use for it.

    teacher: the run that this one's defense, or a front of it, learns from, or whose weights it begins from; `defense.teacher`,
    `defense.fronts.<name>.teacher` or `training.start` describes it by the words in which it differs.
    teacher_words: of `train`, for the teacher.
    """

    config: dict[str, Any]  # dataset, backbone, defense, training, seed: resolved
    choices: dict[str, str]
    teacher: Run | None = None
    teacher_words: list[str] = field(default_factory=list, compare=False)

    @property
    def content(self) -> dict[str, Any]:
        return run_content(self.config, self.teacher.fingerprint if self.teacher else None)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.content)

    @property
    def name(self) -> str:
        words = [self.choices[group] for group in ("dataset", "backbone", "defense")]
        if call := self.config["backbone"].get("call"):
            words[1] += f"_{str(call).rpartition('.')[2]}"
        return "-".join([*words, f"s{self.config['seed']}", self.fingerprint])

    @property
    def imported(self) -> bool:
        """Whether someone else has trained it: then it is made at once, wherever it is asked for."""
        return str(self.config["training"].get("_target_")).endswith(".Imported")

    @property
    def random_output(self) -> bool:
        """Whether two passes over one image may differ."""
        return says_stochastic(self.config["defense"])

    def folder(self, output_root: Path) -> Path:
        """Where the run is, or will be: an existing folder of this content counts under any name."""
        return existing(output_root / "runs", self.fingerprint, RUN_FILE) or output_root / "runs" / self.name

    def at(self, output_root: Path) -> RunFolder:
        """Its folder, which knows what it should hold."""
        return RunFolder(self.folder(output_root), self.differs)

    def differs(self, record: Mapping[str, Any]) -> str | None:
        """How a run.json speaks of another run; None if it does not."""
        teacher = record.get("teacher")
        return difference(run_content(record["config"], teacher and teacher.get("fingerprint")), self.content)


@dataclass(frozen=True)
class Evaluation:
    """What names an evaluation: the run that is attacked, the run that the attacker sees instead (if any), and how it is attacked."""

    run: Run
    source: Run | None
    config: dict[str, Any]  # attack, budget, threat_model, HOW, test_size, and what is asked for: resolved
    choices: dict[str, str]
    source_words: list[str] = field(default_factory=list, compare=False)  # of `train`, for the source

    @property
    def content(self) -> dict[str, Any]:
        return self._content_of(self.config)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.content)

    @property
    def name(self) -> str:
        return f"{self.choices['attack']}-{self.choices['threat_model']}-{self.fingerprint}"

    @property
    def runs(self) -> dict[str, Run]:
        """The runs that it takes, by the part of the record that speaks of them."""
        return {"run": self.run, **({"source": self.source} if self.source else {})}

    @property
    def random_output(self) -> bool:
        runs = any(run.random_output for run in self.runs.values()) and not self.config.get("without_noise")
        return runs or says_stochastic(self.config["threat_model"])

    def folder(self, output_root: Path) -> Path:
        """Where the evaluation is, or will be: an existing folder of this content counts under any name."""
        return self.at(output_root).path

    def at(self, output_root: Path) -> EvaluationFolder:
        """Its folder, which knows what it should hold."""
        return self.within(self.run.at(output_root))

    def within(self, run: RunFolder) -> EvaluationFolder:
        """Its folder in that of its run."""
        return run.evaluation(self.name, self.fingerprint, self.differs)

    def differs(self, record: Mapping[str, Any]) -> str | None:
        """How a record.json speaks of another evaluation; None if it does not."""
        return difference(self._content_of(record["config"]), self.content)

    def _content_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        seen = {k: v for k, v in config["threat_model"].items() if k != "overrides"}  # the source's content says it better
        idle = () if self.random_output else OF_RANDOM_OUTPUT
        kept = {key: entry for key, entry in config.items() if key not in idle}
        order = _order(config["attack"])  # which attack is tried first changes who is credited
        source = self.source.fingerprint if self.source else None
        return {**kept, "threat_model": seen, "source": source, "order": order or None}


def run_content(config: Mapping[str, Any], teacher: str | None) -> dict[str, Any]:
    """What a run's weights depend on; teacher: the fingerprint of the run that it learns from."""
    kept = {group: {k: v for k, v in config[group].items() if (group, k) not in NOT_IN_RUN} for group in RUN_GROUPS}
    if isinstance(kept["training"].get("start"), list):
        kept["training"]["start"] = "teacher"  # which one it is, is said by its content
    if kept["training"].get("weights_digest"):
        del kept["training"]["weights"]  # the file's content says it better than its name
    if isinstance(fronts := kept["defense"].get("fronts"), Mapping):
        kept["defense"]["fronts"] = {name: _without_teacher(front) for name, front in fronts.items()}
        kept["defense"]["order"] = kept["defense"].get("order") or list(fronts)  # a name does not see the order of keys
    return {**kept, "seed": config["seed"], "teacher": teacher}


def _without_teacher(front: Any) -> Any:
    return {key: entry for key, entry in front.items() if key != "teacher"} if isinstance(front, Mapping) else front


def _order(attack: Mapping[str, Any]) -> list[Any]:
    """The names of a list of attacks, in order, with those of lists within it."""
    return [[name, _order(part)] for name, part in attack.get("attacks", {}).items()]


def says_stochastic(node: object) -> bool:
    """Whether what a config describes, or a part of it, draws at random when it answers: its YAML says `_stochastic_: true`."""
    if isinstance(node, Mapping):
        return bool(node.get("_stochastic_")) or any(says_stochastic(entry) for key, entry in node.items() if key != "_stochastic_")
    return isinstance(node, list) and any(map(says_stochastic, node))


def canonical(value: object) -> object:
    """One spelling per value: 3 and 3.0 alike, tuples as lists, paths as text; a class by its name and whose package it is of, wherever in
    it. What is null is left out, so that a knob that comes later, null by default, renames nothing."""
    if isinstance(value, Mapping):
        kept = {str(key): entry for key, entry in value.items() if entry is not None and key != "_stochastic_"}
        return {key: _class_of(entry) if key == "_target_" else canonical(entry) for key, entry in kept.items()}
    if isinstance(value, list | tuple):
        return [canonical(entry) for entry in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    return value


def _class_of(target: object) -> str:
    package, _, rest = str(target).partition(".")
    return f"{package}.{rest.rpartition('.')[2]}"


def fingerprint(content: Mapping[str, Any]) -> str:
    """Eight hex digits that depend on the content alone, not on key order or on how a number was written."""
    text = json.dumps(canonical(content), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The keys in which two contents differ, at most four; None for none."""
    one, other = canonical(found), canonical(wanted)
    if one == other:
        return None
    flat = [_flat(one), _flat(other)]
    keys = sorted(key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key) != flat[1].get(key))
    told = [f"{key}: {flat[0].get(key)!r} != {flat[1].get(key)!r}" for key in keys]
    return f"{', '.join(told[:4])}{', ...' if len(told) > 4 else ''}"


def run_of(cfg: DictConfig | dict[str, Any], choices: Mapping[str, Any], words: Sequence[str], run_at: RunAt | None = None) -> Run:
    """The run that a composed config describes; `words` are those that it was composed from, `run_at` gives the run that words describe.

    Raises LabError where `defense.teacher` does not choose a defense, or a run would teach itself.
    """
    named = {group: str(choices[group]) for group in RUN_GROUPS}
    config = plain(cfg, *RUN_GROUPS, "seed")
    if isinstance(path := config["dataset"].get("path"), str) and path:
        require(printable(path) == path, "dataset.path", "a name that is text, in UTF-8; rename the folder", printable(path))
        config["dataset"]["path"] = within(plain(cfg, "data")["data"]["root"], path)
    if (file := config["training"].get("weights")) is not None:
        config["training"]["weights_digest"] = file_digest(_file(file, "training.weights"))
    others = _other_runs(config)
    if not others:
        return Run(config, named)
    ours = described_by(named, words)
    if "training.start" in others:
        ours = merged_overrides(ours, ["training.start=null"])
    of_others = {key: merged_overrides(ours, described) for key, described in others.items()}
    chain = _chain.set(_chain.get() + 1)
    try:
        if _chain.get() > LONGEST_CHAIN:
            key, described = next(iter(others.items()))
            raise LabError(f"{key}: {described} describe a run that learns from itself; choose another defense there")
        teacher, *start = [(run_at or run_at_words)(of_it) for of_it in of_others.values()]
    finally:
        _chain.reset(chain)
    if start and start[0].fingerprint != teacher.fingerprint:
        key, words = next(iter(others.items()))
        expected = f"words for the run that {key}={words} describes, teacher or null"
        raise LabError(f"training.start: expected {expected}, got {others['training.start']!r}")
    return Run(config, named, teacher, next(iter(of_others.values())))


def _file(path: object, key: str) -> Path:
    """A file that a setting names, where it is. Raises LabError where it is not."""
    require("://" not in str(path), key, "a file on this machine; fetch it first, and name what was fetched", path)
    found = path_of(path, key)
    try:
        is_file = found.is_file()
    except (OSError, ValueError) as error:  # no permission, or no name that a file could have
        raise LabError(f"{key}: expected a file, but {found} cannot be looked at ({error})") from error
    if not is_file:
        raise LabError(f"{key}: expected a file, but {found} is none")
    return found


def _other_runs(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The words by which a run describes another one, whose training comes first, by the key that has them.

    A defense's teacher or a front's, and what training begins from; both must then be the same run. Raises LabError for words that choose
    no defense.
    """
    found = {"defense.teacher": config["defense"].get("teacher")}
    fronts = config["defense"].get("fronts")
    for name, front in fronts.items() if isinstance(fronts, Mapping) else ():
        found[f"defense.fronts.{name}.teacher"] = front.get("teacher") if isinstance(front, Mapping) else None
    found["training.start"] = config["training"].get("start")
    described = {key: words for key, words in found.items() if words not in (None, "teacher")}
    for key, words in described.items():
        if not isinstance(words, list) or not any(str(word).startswith("defense=") for word in words):
            raise LabError(f"{key}: expected the words in which that run differs, such as [defense=standard], got {words!r}")
    return described


def run_at_words(words: Sequence[str]) -> Run:
    """The run that words of `train` describe."""
    words = written_out(words)
    return run_of(*compose("train", [readable(word) for word in words]), words)


def described_by(choices: Mapping[str, str], words: Sequence[str]) -> list[str]:
    """The words of `train` that give a run again: its groups' choices, and what else its own words say of it."""
    return merged_overrides([f"{group}={choices[group]}" for group in RUN_GROUPS], train_overrides(words))


def evaluation_of(cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> Evaluation:
    """The evaluation that a composed config describes; `overrides` are the words that it was composed from."""
    return evaluation_from(run_of(cfg, choices, overrides), setting_of(cfg), choices, overrides, run_at_words)


def said(config: Mapping[str, Any], group: str, key: str) -> Any:
    """What a resolved config says of a group's key. Raises LabError where it says nothing."""
    if not isinstance(config[group], Mapping) or key not in config[group]:
        raise LabError(f"{group}.{key}: expected a value, got none")
    return config[group][key]


def setting_of(cfg: DictConfig | dict[str, Any]) -> dict[str, Any]:
    """Everything of an evaluation but the run: attack, budget, threat model, HOW, test_size and what is asked for, resolved."""
    config = plain(cfg, "attack", "budget", "threat_model", *HOW)
    dataset = plain(cfg, "dataset")
    config["test_size"] = said(dataset, "dataset", "test_size")
    space = dataset["dataset"].get("space")
    require(space in (None, "network", "pixels"), "dataset.space", "network or pixels", space)
    if space == "pixels":  # the space that such a run is trained in needs no word
        config["space"] = space
    asked = {key: cfg[key] for key in ON_REQUEST if cfg[key]} | ({"split": "validation"} if split_of(cfg) == "validation" else {})
    lists = plain(cfg, *(group for group in LISTS if group in cfg))
    return config | asked | {group: entries for group, entries in lists.items() if entries}


def split_of(cfg: DictConfig | dict[str, Any]) -> str:
    """Which images are attacked: test, or validation, those that the run's recipe has held out. Raises LabError where an objective on the
    one is asked of the other."""
    split, objective = cfg.get("split"), str(cfg.get("objective") or "").lstrip("-")
    implied = "validation" if objective.startswith("validation_") else None
    require(split in (None, "test", "validation"), "split", "test, validation, or null: as the objective says", split)
    require(not (implied and split == "test"), "split", f"validation, or null, with objective={objective}", split)
    return split or implied or "test"


def evaluation_from(
    run: Run, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str], run_at: RunAt
) -> Evaluation:  # fmt: skip
    """As evaluation_of, from its parts; `run_at` gives the run that words describe.

    Raises LabError when the attacker's other run is the attacked run itself: that is the white box, and must be called so.
    """
    source, source_words = None, []
    if said(config, "threat_model", "sees") in ("twin", "substitute"):
        words = said(config, "threat_model", "overrides")
        check("threat_model.overrides", words, Sequence[str])
        source_words = merged_overrides(described_by(run.choices, overrides), words)
        source = run_at(source_words)
        if config["threat_model"]["sees"] == "substitute" and source.fingerprint == run.fingerprint:
            raise LabError(
                f"threat_model.overrides: {config['threat_model']['overrides']} describe the attacked run itself; name another run, or use "
                "threat_model=white"
            )
    return Evaluation(run, source, config, {group: str(choices[group]) for group in ("attack", "budget", "threat_model")}, source_words)


def nearest_runs(run: Run, output_root: Path, most: int = 3) -> str:
    """The finished runs that differ least from this one, with the keys that differ: what to look at when it is missing."""
    wanted = _flat(run.config)
    ranked = []
    for folder in OutputFolder(output_root).trained():
        found = _flat(folder.record["config"])
        differing = sorted(k for k in wanted.keys() | found.keys() if canonical(wanted.get(k)) != canonical(found.get(k)))
        differing = [k for k in differing if tuple(k.split(".")[:2]) not in NOT_IN_RUN]
        ranked.append((len(differing), folder.name, [f"{k}: {found.get(k)!r} != {wanted.get(k)!r}" for k in differing]))
    lines = [f"{name}, which differs in {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}" for _, name, keys in sorted(ranked)[:most]]
    return "; nearest: " + "; ".join(lines) if lines else f"; there are no finished runs in {output_root / 'runs'}"


def _flat(content: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {prefix: content}
    return {k: v for name, entry in content.items() for k, v in _flat(entry, f"{prefix}.{name}" if prefix else str(name)).items()}
