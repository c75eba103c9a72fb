"""Where the choices are found, and what a composed config says in plain values. Nothing here imports torch: help and tables stay quick."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_lab.errors import LabError
from robustbench_lab.settings.values import resolved

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parent if (PACKAGE.parent / "conf").is_dir() else None
CONF = CHECKOUT / "conf" if CHECKOUT else PACKAGE / "conf"  # a wheel carries conf/ inside the package
FLAGS = ("force", "tensorboard", "attack_misclassified", "without_noise", "report", "reference", "data.download")
HYDRA_VERSION_BASE = "1.3"
FRACTION = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*/\s*(\d+(?:\.\d+)?)\s*")


def project_path(relative: str) -> str:
    """A path inside the checkout that this code runs from; inside the working directory when it is installed without one."""
    return str((CHECKOUT or Path.cwd()) / relative)


def reference_results() -> Path | None:
    """The output folder of what the project has measured, published with the code; None where the package is installed without it."""
    return None if CHECKOUT is None else CHECKOUT / "outputs" / "reference"


def tables_folder() -> Path:
    """Where the tables' files are: conf/table, or the folder that ROBUSTBENCH_LAB_TABLES names."""
    return Path(os.environ.get("ROBUSTBENCH_LAB_TABLES") or CONF / "table").absolute()


OmegaConf.register_new_resolver("project_path", project_path, replace=True)


def choices(group: str) -> tuple[str, ...]:
    """The choices of a group, such as those of `attack`, sorted; none of what is no group."""
    return tuple(_files(group))


def choice_file(group: str, choice: object) -> Path | None:
    """The file of a group's choice, if there is one."""
    return _files(group).get(str(choice))


@functools.cache
def _files(group: str) -> dict[str, Path]:
    return {path.stem: path for path in sorted((CONF / group).glob("*.yaml"))}


def check_flags(cfg: DictConfig) -> None:
    """Stop at a flag that is neither true nor false: Hydra's grammar takes `no` and `off` for texts, and a text counts as true."""
    for key in FLAGS:
        if not isinstance(value := OmegaConf.select(cfg, key, default=False), bool):
            raise LabError(f"{key}: expected true or false, got {value!r}")


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


def compose(verb: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, Any]]:
    """The config of a verb under overrides, and the choices made in its groups; works inside a running job and outside."""
    if GlobalHydra.instance().is_initialized():
        cfg = hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=True)
    else:
        with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION_BASE):
            cfg = hydra_compose(config_name=verb, overrides=list(overrides), return_hydra_config=True)
    return cfg, dict(cfg.hydra.runtime.choices)


def current_choices() -> dict[str, Any]:
    """The groups' choices of the job that runs now."""
    return dict(HydraConfig.get().runtime.choices)


def current_overrides() -> list[str]:
    """The command line of the job that runs now."""
    return list(HydraConfig.get().overrides.task)
