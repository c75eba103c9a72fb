"""Train one run, or finish it, or find it finished."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from robustbench_lab.settings.conf import current_choices, current_overrides, place_of
from robustbench_lab.settings.identity import run_of
from robustbench_lab.training.making import make_run


def main(cfg: DictConfig) -> Path:
    run = run_of(cfg, current_choices(), current_overrides())
    return make_run(run, place_of(cfg), force=bool(cfg.force), tensorboard=bool(cfg.tensorboard))
