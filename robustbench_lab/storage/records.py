"""The files of runs and evaluations: their names, and those that are read as a whole."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.storage.files import SCHEMA, read_json, write_json

log = logging.getLogger("robustbench_lab")

MODEL_FILE = "model.safetensors"  # the weights of a training run
RUN_FILE = "run.json"  # the last file of a training run
RECORD_FILE = "record.json"  # the last file of an evaluation
OUTCOME_FILE = "outcome.npz"  # of an evaluation: what happened to each image
EXAMPLES_FILE = "examples.npz"  # of an evaluation: a few images, clean and attacked
FEATURES_FILE = "features.npz"  # of an evaluation that was asked for them: of some images, clean and attacked
PLANE_FILE = "plane.npz"  # of points in the plane: confidence everywhere, and what was trained on
ERROR_FILE = "error.json"
METRICS_FILE = "metrics.jsonl"  # of a training run: a line for each epoch


def read_record(path: Path) -> dict[str, Any]:
    """An evaluation's record. Raises LabError, naming the file, when it is damaged: when its figures do not follow from its counts."""
    record = read_json(path)
    try:
        sound = "model_digest" in record["run"] and all(
            record[f"{kind}_accuracy"] == record[f"{kind}_correct"] / record["n"]
            and np.allclose(record[f"{kind}_interval"], wilson_interval(record[f"{kind}_correct"], record["n"]), rtol=0, atol=1e-9)
            for kind in ("clean", "robust")
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        sound = False
    if not sound:
        raise LabError(f"{path} is damaged: its figures do not agree with one another; repeat the job with force=true")
    return record


def finished_runs(output_root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every finished training run with its run.json; damaged ones are passed over."""
    for path in sorted((output_root / "runs").glob(f"*/{RUN_FILE}")):
        with suppress(LabError):
            yield path.parent, read_json(path)


@contextmanager
def leaving_error(folder: Path) -> Iterator[None]:
    """Leave the error of a failed job in its folder; the next attempt takes it away."""
    path = folder / ERROR_FILE
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception as error:
        try:
            write_json(path, {"schema": SCHEMA, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()})
        except LabError:
            log.warning("the error could not be written to %s either", path)
        raise
