"""Which panel an evaluation has, in which ball, and its figures, made once for a model and a ball."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.panel import Panel
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.evaluation.warnings import with_signs
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.build import build
from robustbench_lab.settings.identity import Run, fingerprint
from robustbench_lab.settings.images import other_images, told
from robustbench_lab.storage.files import SCHEMA, Forbidden, Missing, locked, remove, write_json
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.storage.records import read_panel
from robustbench_lab.threats import Budget

log = logging.getLogger("robustbench_lab")


@dataclass(frozen=True)
class Look:
    """A panel on a run, in a ball; content: what names its figures for some weights."""

    panel: Panel
    ball: Budget
    run: Run
    content: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any], run: Run, protocol: Protocol, without_noise: bool = False) -> Look:
        """The panel of a resolved config (panel, budget, dataset), with its own ball, or the dataset's usual one where that is unbounded or
        of l0. Raises LabError where one of the panel's attacks cannot search it."""
        panel, budget = build(config["panel"], "panel", Panel), build(config["budget"], "budget", Budget)
        ball, usual = config["budget"], config["dataset"]["budget"]
        pixels = config["dataset"].get("space") == "pixels"  # where the dataset's usual ball is in other units
        same = pixels and (budget.norm, budget.eps) == (usual["norm"], usual["eps"])
        require(
            not same, "budget.eps", "the size of the ball in pixels, with dataset.space=pixels: budget.eps=8/255, for example", budget.eps
        )
        if budget.norm == "l0" or not 0 < budget.eps < math.inf:
            expected = "none, with dataset.space=pixels and no ball of a size: the dataset's usual one is in other units"
            require(not (pixels and panel.images), "panel", expected, f"images={panel.images}")
            ball = {**ball, **usual}
            budget = build(ball, "dataset.budget", Budget)
        if panel.images:
            panel.check(budget)
        asked = {"test_size": config["dataset"].get("test_size"), "without_noise": without_noise or None}
        asked["space"] = "pixels" if config["dataset"].get("space") == "pixels" else None
        asked["split"] = config.get("split")
        facts = protocol.facts(random_output=run.random_output and not without_noise)
        return cls(panel, budget, run, {"panel": config["panel"], "ball": ball, **asked, **facts})

    def key(self, digest: str) -> str | None:
        """What names this panel's figures for weights of this digest; None for no panel."""
        return fingerprint({**self.content, "digest": digest}) if self.panel.images else None

    def facts(
        self, defended: Defended, data: ImageSet, protocol: Protocol, folder: RunFolder, force: bool, images: Mapping[str, str]
    ) -> dict[str, Any]:
        """The panel's figures for the weights in the run's folder and these images: as they were written once, or made now."""
        path = folder.panel_file(str(self.key(folder.digest)))
        with locked(path.parent, log.info):
            if not force and (known := _known(path, self.ball, images)) is not None:
                return known
            remove(path)
            figures = self.panel.run(defended, data, self.ball, protocol)
            write_json(path, {"schema": SCHEMA, "run": self.run.name, **figures, **told(images)})
            return read_panel(path)

    def told(self, record: Mapping[str, Any], facts: Mapping[str, Any], verdicts: Mapping[int, bool]) -> dict[str, Any]:
        """The panel as a record has it, and the record's warnings with the signs that it found; verdicts: robust, by image index."""
        kept = {name: part for name, part in facts.items() if name not in ("ids", "right", "schema", "run", "images")}
        return {"panel": kept, "warnings": with_signs(self.panel, facts, record, verdicts)}


def _known(path: Path, ball: Budget, images: Mapping[str, str]) -> dict[str, Any] | None:
    """The figures as they were written once; None where there are none of use, and why in the log."""
    try:
        facts = read_panel(path)
        if (facts["norm"], facts["eps"]) != (ball.norm, ball.eps):
            raise LabError(f"{path} is damaged: it speaks of another ball than {ball.norm} {ball.eps:g}")
        if (others := other_images(facts, images)) is not None:
            raise LabError(f"{path}: {others}")
    except (Missing, Forbidden) as error:
        if isinstance(error, Forbidden):
            raise
        return None
    except LabError as error:
        log.warning("made anew: %s", error)
        return None
    return facts
