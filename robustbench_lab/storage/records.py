"""The files of runs and evaluations: their names, and those that are read as a whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.storage.files import read_json

log = logging.getLogger("robustbench_lab")

MODEL_FILE = "model.safetensors"  # the weights of a training run
RUN_FILE = "run.json"  # the last file of a training run
RECORD_FILE = "record.json"  # the last file of an evaluation
OUTCOME_FILE = "outcome.npz"  # of an evaluation: what happened to each image
EXAMPLES_FILE = "examples.npz"  # of an evaluation: a few images, clean and attacked
FEATURES_FILE = "features.npz"  # of an evaluation that was asked for them: of some images, clean and attacked
PLANE_FILE = "plane.npz"  # of points in the plane: confidence everywhere, and what was trained on
CHECKPOINT_FILE = "checkpoint.safetensors"  # of a training run: where it stands after a complete epoch
PARTIAL_FILE = "outcome.partial.npz"  # of an evaluation: what is done so far
ERROR_FILE = "error.json"
METRICS_FILE = "metrics.jsonl"  # of a training run: a line for each epoch


def read_run(path: Path) -> dict[str, Any]:
    """A training run's run.json. Raises LabError, naming the file, when it is damaged: without the digest no weights could be trusted."""
    content = read_json(path)
    if not isinstance(content.get("model_digest"), str) or not isinstance(content.get("config"), dict):
        raise LabError(f"{path} is damaged: expected the run's config and the digest of its weights; train with force=true")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """An evaluation's record. Raises LabError, naming the file, when it is damaged: when its figures do not follow from its counts."""
    return sound(read_json(path), path)


def sound(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The record, if its figures follow from its counts. Raises LabError, naming the file, if not."""
    try:
        follows = "model_digest" in record["run"] and all(
            record[f"{kind}_accuracy"] == record[f"{kind}_correct"] / record["n"]
            and np.allclose(record[f"{kind}_interval"], wilson_interval(record[f"{kind}_correct"], record["n"]), rtol=0, atol=1e-9)
            for kind in ("clean", "robust")
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        follows = False
    if not follows:
        raise LabError(f"{path} is damaged: its figures do not agree with one another; repeat the job with force=true")
    return record
