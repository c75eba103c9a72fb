"""Write the report."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from robustbench_lab.report.page import write_report


def main(cfg: DictConfig) -> None:
    print(write_report(Path(cfg.output_root).absolute(), cfg.tables))
