"""What names a training run and an evaluation: their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.settings.overrides import RUN_GROUPS, merged_overrides, train_overrides
from robustbench_lab.storage.records import RECORD_FILE, RUN_FILE, finished_runs

NOT_IN_RUN = {("dataset", "test_size"), ("dataset", "budget"), ("dataset", "in_memory_limit")}  # they change no weight
HOW = ("attack_seed", "verdict_draws", "eot_samples", "search_precision")  # beside the groups, what changes an evaluation's result
ON_REQUEST = ("attack_misclassified", "test_first", "keep_features", "without_noise")  # the same; what is not asked for is not in the name


def _existing(parent: Path, fingerprint: str, last_file: str) -> Path | None:
    """The folder of this content; of several, which two processes with other words for it may make side by side, a finished one."""
    found = sorted(parent.glob(f"*-{fingerprint}"), key=lambda folder: (not (folder / last_file).exists(), folder))
    return found[0] if found else None


@dataclass(frozen=True)
class Run:
    """What names a training run: its content, and the words a person would use for it."""

    config: dict[str, Any]  # dataset, backbone, defense, training, seed: resolved
    choices: dict[str, str]

    @cached_property
    def fingerprint(self) -> str:
        kept = {group: {k: v for k, v in self.config[group].items() if (group, k) not in NOT_IN_RUN} for group in RUN_GROUPS}
        return fingerprint({**kept, "seed": self.config["seed"]})

    @property
    def name(self) -> str:
        words = [self.choices[group] for group in ("dataset", "backbone", "defense")]
        return "-".join([*words, f"s{self.config['seed']}", self.fingerprint])

    @property
    def source(self) -> Run | None:
        """The run that this one's defense learns from, if any: all but the defense is the same."""
        if "source" not in self.config["defense"]:
            return None
        choices = {group: choice for group, choice in self.choices.items() if group != "defense.source"}
        choices["defense"] = self.choices.get("defense.source", "source")
        return Run({**self.config, "defense": self.config["defense"]["source"]}, choices)

    def folder(self, output_root: Path) -> Path:
        """Where the run is, or will be: an existing folder of this content counts under any name."""
        return _existing(output_root / "runs", self.fingerprint, RUN_FILE) or output_root / "runs" / self.name


@dataclass(frozen=True)
class Evaluation:
    """What names an evaluation: the run that is attacked, the run that the attacker sees instead (if any), and how it is attacked."""

    run: Run
    source: Run | None
    config: dict[str, Any]  # attack, budget, threat_model, HOW, test_size: resolved
    choices: dict[str, str]
    source_words: list[str] = field(default_factory=list, compare=False)  # of `train`, for the source

    @cached_property
    def fingerprint(self) -> str:
        seen = {k: v for k, v in self.config["threat_model"].items() if k != "overrides"}  # the source's content says it better
        source = self.source.fingerprint if self.source else None
        order = _order(self.config["attack"])  # which attack is tried first changes who is credited
        return fingerprint({**self.config, "threat_model": seen, "source": source, **({"order": order} if order else {})})

    @property
    def name(self) -> str:
        return f"{self.choices['attack']}-{self.choices['threat_model']}-{self.fingerprint}"

    def folder(self, output_root: Path) -> Path:
        """Where the evaluation is, or will be: an existing folder of this content counts under any name."""
        parent = self.run.folder(output_root) / "evaluate"
        return _existing(parent, self.fingerprint, RECORD_FILE) or parent / self.name


def _order(attack: Mapping[str, Any]) -> list[Any]:
    """The names of a list of attacks, in order, with those of lists within it."""
    return [[name, _order(part)] for name, part in attack.get("attacks", {}).items()]


def canonical(value: object) -> object:
    """One spelling per value: 3 and 3.0 alike, tuples as lists, paths as text."""
    if isinstance(value, Mapping):
        return {str(key): canonical(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(entry) for entry in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else repr(value)
    return value


def fingerprint(content: Mapping[str, Any]) -> str:
    """Eight hex digits that depend on the content alone, not on key order or on how a number was written."""
    text = json.dumps(canonical(content), sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def run_of(cfg: DictConfig, choices: Mapping[str, Any]) -> Run:
    named = {group: str(choices[group]) for group in RUN_GROUPS}
    if (source := choices.get("defense@defense.source")) is not None:
        named["defense.source"] = str(source)
    return Run(plain(cfg, *RUN_GROUPS, "seed"), named)


def evaluation_of(cfg: DictConfig, choices: Mapping[str, Any], overrides: Sequence[str]) -> Evaluation:
    """The evaluation that a composed config describes; `overrides` are the words that it was composed from."""
    return evaluation_from(run_of(cfg, choices), setting_of(cfg), choices, overrides, lambda words: run_of(*compose("train", words)))


def setting_of(cfg: DictConfig) -> dict[str, Any]:
    """Everything of an evaluation but the run: attack, budget, threat model, HOW, test_size and metrics, resolved."""
    config = plain(cfg, "attack", "budget", "threat_model", *HOW)
    config["test_size"] = plain(cfg, "dataset")["dataset"].get("test_size")
    asked = {key: cfg[key] for key in ON_REQUEST if cfg[key]}
    return config | asked | (plain(cfg, "metric") if "metric" in cfg else {})


def evaluation_from(
    run: Run, config: dict[str, Any], choices: Mapping[str, Any], overrides: Sequence[str], run_at: Callable[[Sequence[str]], Run]
) -> Evaluation:
    """As evaluation_of, from its parts; `run_at` gives the run that words describe.

    Raises LabError when the attacker's other run is the attacked run itself: that is the white box, and must be called so.
    """
    source, source_words = None, []
    if config["threat_model"]["sees"] in ("twin", "substitute"):
        described = merged_overrides([f"{group}={run.choices[group]}" for group in RUN_GROUPS], train_overrides(overrides))
        source_words = merged_overrides(described, config["threat_model"]["overrides"])
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
    for folder, record in finished_runs(output_root):
        found = _flat(record.get("config", {}))
        differing = sorted(k for k in wanted.keys() | found.keys() if canonical(wanted.get(k)) != canonical(found.get(k)))
        differing = [k for k in differing if tuple(k.split(".")[:2]) not in NOT_IN_RUN]
        ranked.append((len(differing), folder.name, [f"{k}: {found.get(k)!r} != {wanted.get(k)!r}" for k in differing]))
    lines = [f"{name}, which differs in {', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''}" for _, name, keys in sorted(ranked)[:most]]
    return "; nearest: " + "; ".join(lines) if lines else f"; there are no finished runs in {output_root / 'runs'}"


def _flat(content: object, prefix: str = "") -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {prefix: content}
    return {k: v for name, entry in content.items() for k, v in _flat(entry, f"{prefix}.{name}" if prefix else str(name)).items()}
