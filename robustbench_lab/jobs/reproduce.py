"""Train and evaluate what tables still miss, one job after the other, then write them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from robustbench_lab.config import Run
from robustbench_lab.errors import LabError
from robustbench_lab.jobs.tables import Cell, cells_of, chosen_tables, write

if TYPE_CHECKING:
    from robustbench_lab.config import Evaluation

log = logging.getLogger("robustbench_lab")


def main(cfg: DictConfig) -> None:
    output_root = Path(cfg.output_root).absolute()
    tables = chosen_tables(cfg.tables)
    missing = [cell for table in tables for cell in cells_of(table, output_root) if cell.record is None]
    runs = _distinct(missing)
    log.info("%d tables, %d cells to fill, from %d runs", len(tables), len(missing), len(runs))
    failed = _work(cfg, missing, runs) if missing else []
    for table in tables:
        write(table, cells_of(table, output_root), output_root)
    if failed:
        raise LabError(f"{len(failed)} of the jobs failed:\n" + "\n".join(f"- {line}" for line in failed))


def _distinct(cells: list[Cell]) -> dict[str, tuple[Cell, Run]]:
    """The training runs that the cells need, each once, by fingerprint."""
    found: dict[str, tuple[Cell, Run]] = {}
    for cell in cells:
        for run in (cell.evaluation.run, cell.evaluation.source):
            if run is not None:
                found.setdefault(run.fingerprint, (cell, run))
    return found


def _work(cfg: DictConfig, missing: list[Cell], runs: dict[str, tuple[Cell, Run]]) -> list[str]:
    """Do the jobs, go on after a failure, and say which failed."""
    from robustbench_lab.jobs.evaluate import job
    from robustbench_lab.jobs.train import train

    failed = []
    untrained: set[str] = set()
    done: set[tuple[str, str]] = set()
    for cell, run in runs.values():
        try:
            train(_here(cfg, cell), run)
        except Exception as error:  # any failure is that job's own; the others go on
            log.error("failed: %s: %s", run.name, error)
            failed.append(f"train {run.name}: {error}")
            untrained.add(run.fingerprint)
    for cell in missing:
        evaluation: Evaluation = cell.evaluation
        name = (evaluation.run.fingerprint, evaluation.fingerprint)
        if name in done or untrained & {evaluation.run.fingerprint, evaluation.source.fingerprint if evaluation.source else ""}:
            continue
        done.add(name)
        try:
            job(_here(cfg, cell), evaluation)
        except Exception as error:
            log.error("failed: %s: %s", evaluation.name, error)
            failed.append(f"evaluate {' '.join(cell.overrides)}: {error}")
    return failed


def _here(cfg: DictConfig, cell: Cell) -> DictConfig:
    """The cell's settings, on this command's device, data and folders."""
    local = cell.cfg.copy()
    OmegaConf.set_struct(local, False)
    for key in ("device", "data", "output_root", "batch_size"):
        local[key] = cfg[key]
    local.force = False
    return local
