"""The panel of an evaluation: which one, in which ball, and its figures, made once for a model and a ball."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.evaluation.panel import Panel
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import plain
from robustbench_lab.settings.identity import Run, fingerprint
from robustbench_lab.storage.files import SCHEMA, locked, read_json, write_json
from robustbench_lab.threats import Budget

log = logging.getLogger("robustbench_lab")


@dataclass(frozen=True)
class Look:
    """A panel, the ball that it tries, and which of the test images there are."""

    panel: Panel
    ball: Budget
    test_size: int | None

    def key(self, digest: str, how: dict[str, Any]) -> str | None:
        """What names this panel's figures for these weights; None for no panel."""
        kept = {name: entry for name, entry in how.items() if name != "batch_size"}
        content = {"panel": repr(self.panel), "ball": repr(self.ball), "digest": digest, "test_size": self.test_size, **kept}
        return fingerprint(content) if self.panel.images else None


def panel_of(cfg: DictConfig) -> Look:
    """The panel with the evaluation's own ball, or the dataset's usual one where that is unbounded or of l0."""
    config = plain(cfg, "panel", "budget", "dataset")
    panel, budget = build(config["panel"], "panel"), build(config["budget"], "budget")
    if budget.norm == "l0" or not 0 < budget.eps < math.inf:
        budget = Budget(**config["dataset"]["budget"])
    if panel.images:
        panel.check(budget)
    return Look(panel, budget, config["dataset"].get("test_size"))


def panel_facts(
    look: Look, key: str, run: Run, defended: Defended, data: ImageSet, how: dict[str, Any], output_root: Path, force: bool
) -> dict[str, Any]:
    """The panel's figures for these weights and this ball: as they were written once, or made now."""
    path = run.folder(output_root) / "panel" / f"{key}.json"
    with locked(path.parent, log.info):
        if force or not path.exists():
            write_json(path, {"schema": SCHEMA, "run": run.name, **look.panel.run(defended, data, look.ball, **how)})
        return read_json(path)
