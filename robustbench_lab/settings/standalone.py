"""Our choices without a command line: for a program of somebody else's, which may be a Hydra job of its own."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase

from robustbench_lab.errors import LabError
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.conf import CONF, choices, with_fractions
from robustbench_lab.settings.pieces import piece
from robustbench_lab.settings.values import Unresolved
from robustbench_lab.settings.yaml_files import read_yaml

OF_THE_PROGRAM: tuple[Any, ...] = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)  # what Hydra keeps of the job that runs


@contextmanager
def hydra_set_aside() -> Iterator[None]:
    """What is composed within is ours, whatever Hydra job runs around; afterwards Hydra is as it was, also not begun."""
    instances: dict[Any, Any] = Singleton._instances
    before = {kind: instances.pop(kind) for kind in OF_THE_PROGRAM if kind in instances}
    try:
        yield
    finally:
        for kind in OF_THE_PROGRAM:
            instances.pop(kind, None)
        instances.update(before)


def choice(group: str, name: str, knobs: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One choice of a group of `evaluate` in plain values, with other values for some of its knobs; a mapping changes what it names.

    Raises LabError, with the nearest, for a choice or a knob that is not there.
    """
    if name not in choices(group):
        raise LabError(f"{group}: there is no {name!r}{_nearest(name, choices(group))}; there are {', '.join(choices(group))}")
    try:
        content = piece(group, name).content
    except Unresolved:
        with hydra_set_aside():
            content = alone(group, name)
    return with_fractions(_changed(content, knobs or {}, f"{group}={name}", group), group)


def default(key: str) -> Any:
    """What `evaluate` does where it is told nothing: a key of conf/evaluate.yaml."""
    return read_yaml(CONF / "evaluate.yaml")[key]


def _changed(config: Mapping[str, Any], knobs: Mapping[str, Any], said: str, key: str) -> dict[str, Any]:
    known = [name for name in config if not name.startswith("_")]
    result = dict(config)
    for name, value in knobs.items():
        if name not in known:
            raise LabError(f"{key}.{name}: {said} has no such knob{_nearest(name, known)}; it has {', '.join(known) or 'none'}")
        deeper = isinstance(value, Mapping) and isinstance(config[name], Mapping)
        result[name] = _changed(config[name], value, said, f"{key}.{name}") if deeper else value
    return result


def _nearest(name: object, known: Any) -> str:
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; the nearest is {found[0]}" if found else ""
