"""The jobs of a verb, one or many: of many, a failing one leaves its error, the others go on, and the command ends with a list.

A job may run in another process, or on another machine, where nothing but this module is known of the command.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from robustbench_lab import startup
from robustbench_lab.errors import LabError, said
from robustbench_lab.output import command_line, telling
from robustbench_lab.settings.conf import path_of, plain, sweep_words
from robustbench_lab.settings.keys import check_config
from robustbench_lab.settings.refusals import REFUSALS, refusal
from robustbench_lab.storage.failures import write_error
from robustbench_lab.storage.files import SCHEMA, Missing, locked, read_json, remove, storing, there, write_bytes, write_json
from robustbench_lab.storage.records import ERROR_FILE
from robustbench_lab.tables.pages import aligned
from robustbench_lab.tables.sweep import (
    RESULT_FILE,
    SWEEP_FILE,
    SWEEPING,
    Sweep,
    check_objective,
    leave_result,
    objective_of,
    read_sweep,
    searched_for,
)
from robustbench_lab.tables.sweep_pages import csv_of, grid, headline, markdown

log = logging.getLogger("robustbench_lab")

_locks = ExitStack()  # of the sweeps' folders
_sweeps: list[Path] = []
_unwritten: list[str] = []  # failures that left no error on disk
OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|overflow", re.IGNORECASE)


class RememberSweep(Callback):
    """Hydra's word to us, in the process that launches, of where the jobs of the sweep leave their errors."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        startup.done()
        try:
            folder = path_of(config.hydra.sweep.dir, "hydra.sweep.dir")
            _sweeps.append(folder)
            if config.hydra.job.config_name == "reproduce":  # often there is nothing to launch, and then nothing to leave
                return
            with storing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if config.hydra.job.config_name in SWEEPING:
                begin_sweep(folder, config)
        except (LabError, *REFUSALS) as error:  # Hydra turns an exception in a callback into a warning, and then meets the same disk
            print(f"error: {refusal(error)}", file=sys.stderr)
            raise SystemExit(2) from None


def begin_sweep(folder: Path, config: DictConfig) -> None:
    """Take the sweep's folder: no other process works in it until this one has told its table. What jobs left there before does not count.

    Raises LabError where another sweep has left its results there.
    """
    verb, words = str(config.hydra.job.config_name), sweep_words(config.hydra.overrides.task)
    searched = "optuna" in str(config.hydra.sweeper._target_)
    _locks.enter_context(locked(folder, log.info))
    with suppress(Missing):
        known = read_sweep(folder)
        if (known.verb, list(known.words), known.searched) != (verb, words, searched):
            raise LabError(f"hydra.sweep.dir: {folder} holds another sweep, {known.command}; choose another folder for {' '.join(words)}")
    objective = searched_for(verb, words) if searched else config.objective
    try:
        write_json(folder / SWEEP_FILE, {"schema": SCHEMA, "verb": verb, "words": words, "objective": objective, "searched": searched})
    except LabError as error:  # a full disk: the jobs will say so too
        log.error("this sweep will have no table: %s", error)
    if searched:  # what its trials left is what it goes on from
        for note in Sweep(verb, words, objective, (), searched).on_test_images:
            log.warning("%s", note)
        return
    for path in [*folder.glob(f"*/{RESULT_FILE}"), *folder.glob(f"*/{ERROR_FILE}")]:
        remove(path)


def tell_sweeps() -> None:
    """Write and print the table of each sweep of this command, of the jobs that there are."""
    try:
        for folder in _sweeps:
            with suppress(Missing):
                sweep = read_sweep(folder)
                if not sweep.trials:
                    continue
                head, body = grid(sweep)
                write_bytes(folder / "sweep.md", markdown(sweep).encode())
                write_bytes(folder / "sweep.csv", csv_of(sweep).encode())
                table = aligned("\n".join(f"| {' | '.join(row)} |" for row in (head, *body))) if body else ""
                print("\n".join([f"\n{table}{headline(sweep)}", *sweep.notes, str(folder / "sweep.md")]))
    except (LabError, OSError) as error:
        log.error("the sweep's table could not be written: %s", said(error))
    finally:
        _locks.close()


def job(cfg: DictConfig) -> float | None:
    """One job of a verb. In a multirun a failing job leaves its error and the next one starts.

    Returns, of a job of a sweep, the figure of its objective: the larger the better. None where it failed, or has none.
    """
    run = HydraConfig.get()
    one_of_many = not OmegaConf.is_missing(run.job, "num")
    if one_of_many:
        words = sweep_words(run.overrides.task)
        sys.argv = [f"robustbench_lab {run.job.config_name}", *words]  # what its records tell, in whichever process it runs
    with telling():  # the job may run in a process of its own
        try:
            check_config(cfg, str(run.job.config_name))
            verb = import_module(f"robustbench_lab.jobs.{run.job.config_name}")
            startup.done()
            of_sweep = one_of_many and run.job.config_name in SWEEPING and there(Path(run.sweep.dir) / SWEEP_FILE)
            if "objective" in cfg:
                parts = [key for key in ("training", "metric", "attack_misclassified") if key in cfg]
                check_objective(cfg.objective, str(run.job.config_name), plain(cfg, *parts))
            with enough_memory():
                made = verb.main(cfg)
            if of_sweep:
                figure = objective_of(made, str(run.job.config_name), cfg.objective)
                leave_result(Path(run.runtime.output_dir), made, list(run.overrides.task), str(run.job.config_name), figure)
                return figure
        except Exception as error:
            if one_of_many:
                log.error("failed: %s", said(error))
                leave_error(error)
            elif isinstance(error, (LabError, *REFUSALS)):
                print(f"error: {refusal(error)}", file=sys.stderr)
                raise SystemExit(2) from None
            else:
                raise
    return None


@contextmanager
def enough_memory() -> Iterator[None]:
    """Says what takes memory where there was not enough."""
    try:
        yield
    except (MemoryError, OverflowError, RuntimeError, TypeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        remedy = (
            "fewer images at a time (training.batch_size, batch_size), smaller ones (dataset.size), a smaller network or a larger machine"
        )
        reason = (str(error) or "there is no more").splitlines()[0]
        raise LabError(f"out of memory: {reason}; what helps: {remedy}") from error


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
