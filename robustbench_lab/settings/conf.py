"""Where the choices are found, and what a composed config says in plain values. Nothing here imports torch: help and tables stay quick."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require
from robustbench_lab.settings.packages import files_in, sources
from robustbench_lab.settings.refusals import REFUSALS, refusal
from robustbench_lab.settings.values import resolved

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "conf").is_dir() else None
CONF = CHECKOUT / "conf" if CHECKOUT else PACKAGE / "conf"  # a wheel carries conf/ inside the package
WHERE = ("device", "output_root", "data.", "batch_size", "force")  # words that say where a job runs, and nothing about its result
PLACES = ("data", "output_root")  # keys whose texts are paths
HYDRA_VERSION_BASE = "1.3"
NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
FRACTION = re.compile(rf"\s*([+-]?{NUMBER})\s*/\s*({NUMBER})\s*")  # 8/255, 8./255., .5/255


def project_path(relative: str) -> str:
    """A path inside the checkout that this code runs from; inside the working directory when it is installed without one."""
    return str((CHECKOUT or Path.cwd()) / relative)


def reference_results() -> Path | None:
    """The output folder of what the project has measured, published with the code; None where the package is installed without it."""
    return None if CHECKOUT is None else CHECKOUT / "outputs" / "reference"


def tables_folder() -> Path:
    """Where the project's tables' files are: conf/table, or the folder that ROBUSTBENCH_LAB_TABLES names."""
    return path_of(os.environ.get("ROBUSTBENCH_LAB_TABLES") or CONF / "table", "ROBUSTBENCH_LAB_TABLES")


def table_folders() -> list[Path]:
    """The same, and those of other packages."""
    return [tables_folder(), *(source.folder / "table" for source in sources() if (source.folder / "table").is_dir())]


def groups() -> list[str]:
    """Every group that others may have choices of: not Hydra's own, which say what it runs, nor what a profile makes of our tables."""
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "grid"))


OmegaConf.register_new_resolver("project_path", project_path, replace=True)
OmegaConf.register_new_resolver("whole_path", lambda value: str(path_of(value, "output_root")), replace=True)


def _sweep_name() -> str:
    """Of a sweep's folder: its verb and a hash of the command's words, so that the same sweep again is the same folder."""
    verb, words = sys.argv[0].split()[-1], sweep_words(sys.argv[1:])
    return f"{verb}-{hashlib.blake2b(json.dumps(words).encode(), digest_size=4).hexdigest()}"


def sweep_words(words: Sequence[str]) -> list[str]:
    """Those that say what a sweep does, and not where it does it."""
    return [str(word) for word in words if not str(word).startswith((*WHERE, "-", "hydra"))]


OmegaConf.register_new_resolver("sweep_name", _sweep_name, use_cache=True, replace=True)  # its jobs are told, and do not ask anew


def choices(group: str) -> tuple[str, ...]:
    """The choices of a group, such as those of `attack`, sorted; none of what is no group."""
    return tuple(files_in(CONF, group))


def choice_file(group: str, choice: object) -> Path | None:
    """The file of a group's choice, if there is one."""
    return files_in(CONF, group).get(str(choice))


def path_of(value: object, key: str) -> Path:
    """A path that a user gave, whole, `~` as the home folder; a number, such as a date, is a name too.

    Raises LabError for what is no path.
    """
    named = isinstance(value, str | Path) or (isinstance(value, int) and not isinstance(value, bool))
    require(named and str(value).strip() != "" and "\0" not in str(value), key, "a path, a text", value)
    try:
        return Path(str(value)).expanduser().absolute()
    except RuntimeError as error:  # ~someone who has no home
        raise LabError(f"{key}: {error}, got {value!r}") from error


def output_root_of(cfg: DictConfig) -> Path:
    """Where everything is that is written."""
    return path_of(plain(cfg, "output_root")["output_root"], "output_root")


@dataclass(frozen=True)
class Place:
    """Where jobs work: everything that is written goes to output_root; data: root, download and workers of datasets; device: its name."""

    output_root: Path
    data: Mapping[str, Any]
    device: str


def place_of(cfg: DictConfig) -> Place:
    return Place(output_root_of(cfg), plain(cfg, "data")["data"], str(cfg.device))


def plain(cfg: DictConfig | dict[str, Any], *keys: str) -> dict[str, Any]:
    """The named parts of a composed config as plain values: interpolations resolved, fractions such as 8/255 read as numbers.

    Raises LabError with the key of a missing value, a broken interpolation or a fraction with a zero below the line; for a config of plain
    mappings, Unresolved instead of the first two.
    """
    result = {}
    for key in keys:
        try:
            node = cfg[key]
            if isinstance(cfg, dict):
                content: Any = resolved(node, cfg)
            else:
                content = OmegaConf.to_container(node, resolve=True, throw_on_missing=True) if OmegaConf.is_config(node) else node
        except OmegaConfBaseException as error:
            raise LabError(f"{getattr(error, 'full_key', None) or key}: {str(error).splitlines()[0]}") from error
        result[key] = content if key in PLACES else with_fractions(content, key)  # a path such as 1/2 is no number
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


def compose(verb: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of a verb under overrides, and the choices made in its groups; works inside a running job and outside.

    Raises LabError for words that do not fit.
    """
    try:
        if GlobalHydra.instance().is_initialized():
            cfg = hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=True)
        else:
            with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION_BASE):
                cfg = hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=True)
    except REFUSALS as error:
        raise LabError(refusal(error)) from error
    return cfg, dict(cfg.hydra.runtime.choices)


def current_choices() -> dict[str, Any]:
    """The groups' choices of the job that runs now."""
    return dict(HydraConfig.get().runtime.choices)


def current_overrides() -> list[str]:
    """The command line of the job that runs now."""
    return list(HydraConfig.get().overrides.task)
