"""Write the report."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from robustbench_lab.report.page import write_report
from robustbench_lab.settings.conf import reference_results


def main(cfg: DictConfig) -> None:
    reference = reference_results() if cfg.reference else None
    print(write_report(Path(cfg.output_root).absolute(), cfg.tables, reference))
