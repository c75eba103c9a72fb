"""From a config to the objects that it describes: the only place where a `_target_` becomes an object."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

from hydra.utils import get_object

from robustbench_lab.errors import LabError

TARGETS = ("robustbench_lab.", "torch.optim.")


def build(node: object, key: str) -> Any:
    """The object that a config describes; errors carry the full config key.

    A mapping with `_target_` becomes that callable's result (`_partial_: true`: the callable with its arguments bound; `_stochastic_` is
    for the names of evaluations). Raises LabError
    for a target outside `TARGETS`, an unknown or missing knob, or one that the object itself refuses.
    """
    if isinstance(node, list):
        return [build(entry, f"{key}[{index}]") for index, entry in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    knobs = {name: build(entry, f"{key}.{name}") for name, entry in node.items() if name not in ("_target_", "_partial_", "_stochastic_")}
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
        whole = (f"{key.partition('.')[0]}.", "dataset.")  # a backbone's images are the dataset's: no key of its own
        named = str(error) if str(error).startswith(whole) else f"{key}.{error}"
        raise LabError(named) from error


def dataset_of(config: Mapping[str, Any]) -> Any:
    """The dataset object of a resolved run: how its images are read. `budget` is for others to refer to, `normalise` the model's."""
    return build({name: entry for name, entry in config["dataset"].items() if name not in ("budget", "normalise")}, "dataset")
