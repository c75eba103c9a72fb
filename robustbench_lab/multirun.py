"""The jobs of a verb, one or many: of many, a failing one leaves its error, the others go on, and the command ends with a list.

A job may run in another process, or on another machine, where nothing but this module is known of the command.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from robustbench_lab import startup
from robustbench_lab.errors import LabError, said
from robustbench_lab.output import command_line, one_line, telling
from robustbench_lab.settings.conf import check_flags
from robustbench_lab.storage.failures import write_error
from robustbench_lab.storage.files import read_json, storing
from robustbench_lab.storage.records import ERROR_FILE

log = logging.getLogger("robustbench_lab")

_sweeps: list[Path] = []
_unwritten: list[str] = []  # failures that left no error on disk
PLACES = ("device", "output_root", "data.", "batch_size")  # words that say where a job runs, and nothing about its result


class RememberSweep(Callback):
    """Hydra's word to us, in the process that launches, of where the jobs of the sweep leave their errors."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        startup.done()
        folder = Path(config.hydra.sweep.dir)
        _sweeps.append(folder)
        if config.hydra.job.config_name == "reproduce":  # often there is nothing to launch, and then nothing to leave
            return
        _watch_launcher(config)
        try:
            with storing(folder):
                folder.mkdir(parents=True, exist_ok=True)
        except LabError as error:  # Hydra turns an exception in a callback into a warning, and then meets the same disk
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None


def _watch_launcher(config: DictConfig) -> None:
    """A launcher that finds no cluster, or whose workers die, says so by its library's error: it becomes one that names the key."""
    launcher: Any = get_class(config.hydra.launcher._target_)
    choice = config.hydra.runtime.choices["hydra/launcher"]
    launch = getattr(launcher.launch, "__wrapped__", launcher.launch)

    @functools.wraps(launch)
    def watched(*arguments: Any, **options: Any) -> Any:
        try:
            return launch(*arguments, **options)
        except (HydraException, OmegaConfBaseException):  # of words, not of the launcher
            raise
        except Exception as error:
            reason = one_line(said(error).strip().partition("\n")[0])
            print(f"error: hydra/launcher={choice} gave up: {reason}; the same command goes on from what is finished", file=sys.stderr)
            raise SystemExit(2) from None

    launcher.launch = watched


def job(cfg: DictConfig) -> None:
    """One job of a verb. In a multirun a failing job leaves its error and the next one starts."""
    run = HydraConfig.get()
    one_of_many = not OmegaConf.is_missing(run.job, "num")
    if one_of_many:
        words = [word for word in run.overrides.task if not word.startswith(PLACES)]
        sys.argv = [f"robustbench_lab {run.job.config_name}", *words]  # what its records tell, in whichever process it runs
    with telling():  # the job may run in a process of its own
        try:
            check_flags(cfg)
            verb = import_module(f"robustbench_lab.jobs.{run.job.config_name}")
            startup.done()
            verb.main(cfg)
        except Exception as error:
            if one_of_many:
                log.error("failed: %s", said(error))
                leave_error(error)
            elif isinstance(error, LabError):
                print(f"error: {error}", file=sys.stderr)
                raise SystemExit(2) from None
            else:
                raise


def lost(command: str, reason: str) -> None:
    """Remember a job that failed without leaving an error."""
    _unwritten.append(f"{command}\n    {reason}")


def leave_error(error: Exception) -> None:
    """Write the failed job's error where `failures` looks for it, whichever process or machine the job ran on."""
    hydra = HydraConfig.get()
    words = list(hydra.overrides.task)
    told, path = (
        {"overrides": words, "command": command_line(str(hydra.job.config_name), words)},
        Path(hydra.runtime.output_dir) / ERROR_FILE,
    )
    if not write_error(path, error, **told):
        _unwritten.append(_line({**told, "error": said(error)}, path))


def failures() -> list[str]:
    """One entry for each failed job of this command's sweep."""
    lines = list(_unwritten)
    for sweep in _sweeps:
        for path in sorted(sweep.glob(f"*/{ERROR_FILE}"), key=lambda p: int(p.parent.name) if p.parent.name.isdecimal() else 0):
            try:
                lines.append(_line(read_json(path), path))
            except LabError as error:
                lines.append(_line({"error": said(error)}, path))
    return lines


def _line(content: Mapping[str, Any], path: Path) -> str:
    return f"{content.get('command', 'a job')}\n    {content.get('error', 'no message')}\n    {path}"
