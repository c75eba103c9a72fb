"""From configuration to objects, and the fingerprints that name runs and evaluations.

`build` is the only place where a `_target_` becomes an object, and only the packages in `TARGETS` may be named there. Nothing here
imports torch: help and tables stay quick.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_lab.errors import LabError
from robustbench_lab.overrides import RUN_GROUPS, merged_overrides, train_overrides
from robustbench_lab.records import RECORD_FILE, RUN_FILE, finished_runs

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "conf").is_dir() else None
CONF = CHECKOUT / "conf" if CHECKOUT else PACKAGE / "conf"  # a wheel carries conf/ inside the package
TARGETS = ("robustbench_lab.", "torch.optim.")
FLAGS = ("force", "tensorboard", "attack_misclassified", "without_noise", "plan", "report", "data.download")
HYDRA_VERSION_BASE = "1.3"

NOT_IN_RUN = {("dataset", "test_size"), ("dataset", "budget"), ("dataset", "in_memory_limit")}  # they change no weight
HOW = ("attack_seed", "verdict_draws", "eot_samples", "search_precision")  # beside the groups, what changes an evaluation's result
ON_REQUEST = ("attack_misclassified", "test_first", "keep_features", "without_noise")  # the same; what is not asked for is not in the name
FRACTION = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def project_path(relative: str) -> str:
    """A path inside the checkout that this code runs from; inside the working directory when it is installed without one."""
    return str((CHECKOUT or Path.cwd()) / relative)


OmegaConf.register_new_resolver("project_path", project_path, replace=True)


def _existing(parent: Path, fingerprint: str, last_file: str) -> Path | None:
    """The folder of this content; of several, which two processes with other words for it may make side by side, a finished one."""
    found = sorted(parent.glob(f"*-{fingerprint}"), key=lambda folder: (not (folder / last_file).exists(), folder))
    return found[0] if found else None


@dataclass(frozen=True)
class Run:
    """What names a training run: its content, and the words a person would use for it."""

    config: dict[str, Any]  # dataset, backbone, defense, training, seed: resolved
    choices: dict[str, str]

    @property
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

    @property
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


def check_flags(cfg: DictConfig) -> None:
    """Stop at a flag that is neither true nor false: Hydra's grammar takes `no` and `off` for texts, and a text counts as true."""
    for key in FLAGS:
        if not isinstance(value := OmegaConf.select(cfg, key, default=False), bool):
            raise LabError(f"{key}: expected true or false, got {value!r}")


def plain(cfg: DictConfig, *keys: str) -> dict[str, Any]:
    """The named parts of a composed config as plain values: interpolations resolved, fractions such as 8/255 read as numbers.

    Raises LabError with the key of a missing value, a broken interpolation or a fraction with a zero below the line.
    """
    result = {}
    for key in keys:
        try:
            node = cfg[key]
            content = OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException as error:
            raise LabError(f"{getattr(error, 'full_key', None) or key}: {str(error).splitlines()[0]}") from error
        result[key] = content if key == "data" else with_fractions(content, key)  # a path such as 1/2 is no number
    return result


def with_fractions(value: object, key: str) -> Any:
    """Read every text of the form a/b as the number that it is; it is parsed, never evaluated as code."""
    if isinstance(value, Mapping):
        return {name: with_fractions(entry, f"{key}.{name}") for name, entry in value.items()}
    if isinstance(value, list):
        return [with_fractions(entry, f"{key}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, str) and (match := FRACTION.fullmatch(value)):
        above, below = map(float, match.groups())
        if below == 0:
            raise LabError(f"{key}: {value!r} divides by zero; write a number or a fraction such as 8/255")
        return above / below
    return value


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


def compose(verb: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of a verb under overrides, and the choices made in its groups; works inside a running job and outside."""
    if GlobalHydra.instance().is_initialized():
        cfg = hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=True)
    else:
        with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION_BASE):
            cfg = hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=True)
    return cfg, dict(cfg.hydra.runtime.choices)


def build(node: object, key: str) -> Any:
    """The object that a config describes; errors carry the full config key.

    A mapping with `_target_` becomes that callable's result (`_partial_: true`: the callable with its arguments bound). Raises LabError
    for a target outside `TARGETS`, an unknown or missing knob, or one that the object itself refuses.
    """
    if isinstance(node, list):
        return [build(entry, f"{key}[{index}]") for index, entry in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    knobs = {name: build(entry, f"{key}.{name}") for name, entry in node.items() if name not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return knobs
    target = str(node["_target_"])
    if not target.startswith(TARGETS):
        raise LabError(f"{key}._target_: expected something in {' or '.join(TARGETS)}, got {target!r}")
    try:
        callee = get_object(target)
        if node.get("_partial_"):
            inspect.signature(callee).bind_partial(**knobs)
            return partial(callee, **knobs)
        inspect.signature(callee).bind(**knobs)
    except (ImportError, AttributeError, TypeError) as error:
        raise LabError(f"{key}: {target} does not take these knobs: {error}") from error
    try:
        return callee(**knobs)
    except LabError as error:
        named = str(error) if str(error).startswith(f"{key.partition('.')[0]}.") else f"{key}.{error}"
        raise LabError(named) from error


def dataset_of(config: Mapping[str, Any]) -> Any:
    """The dataset object of a resolved run; its `budget` is for others to refer to."""
    return build({name: entry for name, entry in config["dataset"].items() if name != "budget"}, "dataset")


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


def current_choices() -> dict[str, Any]:
    """The groups' choices of the job that runs now."""
    return dict(HydraConfig.get().runtime.choices)


def current_overrides() -> list[str]:
    """The command line of the job that runs now."""
    return list(HydraConfig.get().overrides.task)
