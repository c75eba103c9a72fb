"""One choice's config by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from yaml import YAMLError

from robustbench_lab.errors import LabError, said
from robustbench_lab.settings.conf import CONF, HYDRA_VERSION_BASE, compose, plain
from robustbench_lab.settings.overrides import RUN_GROUPS, readable
from robustbench_lab.settings.refusals import REFUSALS, refusal


def alone(group: str, choice: str, words: Sequence[str] = (), dataset: str = "digits") -> dict[str, Any]:
    """What a choice says, in plain values, on a dataset (a choice, or a mapping in Hydra's grammar): composed in a fifth of the time that a
    verb's whole config takes, which is read only where the choice refers to more of it.

    words: further ones about the choice. Raises LabError for words that do not fit, values that are missing, and a file that is no YAML.
    """
    others = [] if group == "dataset" else [f"+dataset={dataset}"]
    try:
        cfg = _composed([*others, f"+{group}={choice}", *map(readable, words)])
    except REFUSALS as error:
        raise LabError(refusal(error)) from error
    except (YAMLError, ValueError) as error:  # no YAML, not UTF-8, or a name such as null or nan, which Hydra takes for a value
        raise LabError(f"{group}={choice}: expected a choice that can be read: {' '.join(said(error).split())}") from error
    try:
        return plain(cfg, group)[group]
    except LabError:
        verb = "train" if group in RUN_GROUPS else "evaluate"
        return plain(compose(verb, [f"{group}={choice}", *map(readable, words)])[0], group)[group]


def _composed(words: Sequence[str]) -> Any:
    if GlobalHydra.instance().is_initialized():
        return hydra_compose(None, list(words))
    with initialize_config_dir(str(CONF), version_base=HYDRA_VERSION_BASE):
        return hydra_compose(None, list(words))
