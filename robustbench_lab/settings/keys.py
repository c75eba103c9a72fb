"""What a verb's keys may be besides the knobs of objects: looked at once, before any of them is read, in whichever process a job runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from omegaconf import DictConfig

from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Check, Count, at_least, below, check
from robustbench_lab.settings.conf import path_of, plain
from robustbench_lab.settings.overrides import LISTS
from robustbench_lab.settings.verbs import groups_and_keys

DEVICE = re.compile(r"auto|free|cpu|cuda(:\d+)?")
Seed = Annotated[int, at_least(0), below(2**63)]
Names = str | Sequence[str]
KEYS: dict[str, Any] = {
    "attack_misclassified": bool,
    "attack_seed": Seed,
    "batch_size": Count,
    "cells": Literal["all", "covering"],
    "data.download": bool,
    "data.workers": Annotated[int, at_least(0)],
    "device": Annotated[
        str, Check("auto, free, cpu, cuda or cuda:N", lambda value: isinstance(value, str) and bool(DEVICE.fullmatch(value)))
    ],
    "eot_samples": Count,
    "force": bool,
    "objective": str | None,
    "plan": Literal[True, False, "full"],
    "reference": bool,
    "report": bool,
    "search_precision": Literal["fp32", "bf16"],
    "seed": Seed,
    "table_profile": str,
    "tables": Annotated[Names, "names or globs of tables, such as [fm/table1,quick/*]"],
    "split": Literal["test", "validation"] | None,
    "tensorboard": bool,
    "test_first": Count | None,
    "train": bool,
    "verdict_draws": Count,
    "without_noise": bool,
}
FOLDERS = ("output_root", "data.root")


def check_config(cfg: DictConfig, verb: str) -> None:
    """Stop at a key that is missing, that nothing reads, or that is not what it may be. Raises LabError, the key first."""
    groups, keys = groups_and_keys(verb)
    for group in groups:
        if group not in ("profile", *LISTS) and group not in cfg:
            raise LabError(f"{group}: expected a choice (`python -m robustbench_lab {verb} --help` lists them), got none")
        if group in cfg:
            check(group, plain(cfg, group)[group], Mapping[str, Any])
    for key in keys:
        if key == "profile" and key not in cfg:
            continue  # the short form of table_profile
        if key not in cfg:
            raise LabError(f"{key}: expected a value, got none; leave the word ~{key} out")
        value = plain(cfg, key)[key]
        if key != "data":
            _check(key, value)
            continue
        check(key, value, Mapping[str, Any])
        known = [name.removeprefix("data.") for name in (*KEYS, *FOLDERS) if name.startswith("data.")]
        for name in {*known, *value}:
            if name not in known or name not in value:
                raise LabError(f"data: expected {', '.join(sorted(known))}, got {', '.join(map(str, value))}")
            _check(f"data.{name}", value[name])


def _check(key: str, value: object) -> None:
    if key in FOLDERS:
        path_of(value, key)
    else:
        check("profile" if key == "table_profile" else key, value, KEYS[key])
