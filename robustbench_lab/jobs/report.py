"""Write the report."""

from __future__ import annotations

from omegaconf import DictConfig

from robustbench_lab.report.page import write_report
from robustbench_lab.settings.conf import output_root_of, reference_results


def main(cfg: DictConfig) -> None:
    reference = reference_results() if cfg.reference else None
    print(write_report(output_root_of(cfg), cfg.tables, reference))
