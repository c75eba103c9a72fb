"""Failing jobs of a multirun: each leaves its error, the others go on, and the command ends with a list."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from robustbench_lab.errors import LabError
from robustbench_lab.records import ERROR_FILE, SCHEMA, read_json, write_json

_sweeps: list[Path] = []


class RememberSweep(Callback):
    """Hydra's word to us, in the process that launches, of where the jobs of the sweep leave their errors."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        _sweeps.append(Path(config.hydra.sweep.dir))


def leave_error(error: Exception) -> None:
    """Write the failed job's error where `failures` looks for it, whichever process or machine the job ran on."""
    hydra = HydraConfig.get()
    content = {"schema": SCHEMA, "overrides": list(hydra.overrides.task), "error": f"{type(error).__name__}: {error}"}
    if isinstance(error, LabError):
        content["error"] = str(error)
    write_json(Path(hydra.runtime.output_dir) / ERROR_FILE, {**content, "traceback": traceback.format_exc()})


def failures() -> list[str]:
    """One line for each failed job of this command's sweep."""
    lines = []
    for sweep in _sweeps:
        for path in sorted(sweep.glob(f"*/{ERROR_FILE}"), key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0):
            content = read_json(path)
            lines.append(f"{' '.join(content['overrides'])}\n    {content['error']}\n    {path}")
    return lines
