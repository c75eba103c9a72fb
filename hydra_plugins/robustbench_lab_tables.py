"""Hydra finds its plugins in this namespace: the sweeper behind `reproduce`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class TableSweeper(Sweeper):
    """Hands the launcher the jobs that tables miss: an explicit list, no product of choices."""

    def __init__(self) -> None:
        self.job: tuple[DictConfig, HydraContext, TaskFunction] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.job = (config, hydra_context, task_function)

    def sweep(self, arguments: Sequence[str]) -> Any:
        from robustbench_lab.jobs.reproduce import sweep

        assert self.job is not None, "Hydra sets a sweeper up before it sweeps"
        return sweep(*self.job)
