"""Failing jobs of a multirun: each leaves its error, the others go on, and the command ends with a list."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from robustbench_lab.errors import LabError
from robustbench_lab.records import ERROR_FILE, SCHEMA, read_json, storing, write_json

_sweeps: list[Path] = []
_unwritten: list[str] = []  # failures whose error could not be written either


class RememberSweep(Callback):
    """Hydra's word to us, in the process that launches, of where the jobs of the sweep leave their errors."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        _sweeps.append(folder)
        try:
            with storing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        except LabError as error:  # Hydra turns an exception in a callback into a warning, and then meets the same disk
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def leave_error(error: Exception) -> None:
    """Write the failed job's error where `failures` looks for it, whichever process or machine the job ran on."""
    hydra = HydraConfig.get()
    content = {"schema": SCHEMA, "overrides": list(hydra.overrides.task), "error": f"{type(error).__name__}: {error}"}
    if isinstance(error, LabError):
        content["error"] = str(error)
    path = Path(hydra.runtime.output_dir) / ERROR_FILE
    try:
        write_json(path, {**content, "traceback": traceback.format_exc()})
    except LabError:
        _unwritten.append(_line(content, path))


def failures() -> list[str]:
    """One line for each failed job of this command's sweep."""
    lines = list(_unwritten)
    for sweep in _sweeps:
        for path in sorted(sweep.glob(f"*/{ERROR_FILE}"), key=lambda p: int(p.parent.name) if p.parent.name.isdigit() else 0):
            lines.append(_line(read_json(path), path))
    return lines


def _line(content: Mapping[str, Any], path: Path) -> str:
    return f"{' '.join(content['overrides'])}\n    {content['error']}\n    {path}"
