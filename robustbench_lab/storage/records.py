"""The files of runs and evaluations: their names, their forms, and one reader each.

A form names every key that anybody reads. Keys that a file of an older version lacks, and whoever reads them can do without, may be absent;
what is there must be what it says.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.knobs import Check, Count, Epoch, Share, at_least, at_most
from robustbench_lab.storage.files import from_json, read_json, read_text, reading
from robustbench_lab.storage.forms import misfit

MODEL_FILE = "model.safetensors"  # the weights of a training run
RUN_FILE = "run.json"  # the last file of a training run
RECORD_FILE = "record.json"  # the last file of an evaluation
OUTCOME_FILE = "outcome.npz"  # of an evaluation: what happened to each image
EXAMPLES_FILE = "examples.npz"  # of an evaluation: a few images, clean and attacked
DEFENDED_IMAGES_FILE = "defended_images.npz"  # of an evaluation that was asked for it: what the network sees of a few images
FEATURES_FILE = "features.npz"  # of an evaluation that was asked for them: of some images, clean and attacked
RAY_FILE = "ray.npz"  # of an evaluation that was asked for it: what is right on the way to attacked images
PLANE_FILE = "plane.npz"  # of points in the plane: confidence everywhere, and what was trained on
CHECKPOINT_FILE = "checkpoint.safetensors"  # of a training run: where it stands after a complete epoch
EXTRA_FILE = "extra_images.safetensors"  # of a training run: images that it made once, until it is finished
PARTIAL_FILE = "outcome.partial.npz"  # of an evaluation: what is done so far
ERROR_FILE = "error.json"
METRICS_FILE = "metrics.jsonl"  # of a training run: a line for each epoch

Seconds = Annotated[float, at_least(0), at_most(1e10)]  # three centuries: sums and medians of them are numbers too
Passes = Annotated[float, at_least(0), at_most(1e15)]
Number = float | Literal["inf", "-inf", "nan"]  # as files.to_json writes it
Eps = Annotated[float, at_least(0)] | Literal["inf"]
Parameters = Annotated[int, at_least(0), at_most(10**15)]
LARGEST_VALUE = 1e30  # of an epoch's number: differences of two are numbers too
Measured = Annotated[  # of an epoch: a loss may be nan, where its player goes on
    object,
    Check(
        "a number from -1e30 to 1e30, or nan or infinite",
        lambda value: isinstance(value, int | float) and not LARGEST_VALUE < abs(value) < float("inf"),
    ),
]


class Budget(TypedDict):
    norm: str
    eps: Eps


class Sees(TypedDict):
    sees: str


class EvaluationConfig(TypedDict):
    attack: dict[str, Any]
    budget: Budget
    threat_model: Sees
    test_size: NotRequired[Count | None]
    metric: NotRequired[dict[str, Any]]
    keep: NotRequired[dict[str, Any]]


class DatasetConfig(TypedDict):
    train_size: NotRequired[Count | None]


class TrainingConfig(TypedDict):
    epochs: NotRequired[int]


class RunConfig(TypedDict):
    dataset: DatasetConfig
    backbone: dict[str, Any]
    defense: dict[str, Any]
    training: TrainingConfig
    seed: int


class RunChoices(TypedDict):
    dataset: str
    backbone: str
    defense: str
    training: str


class EvaluationChoices(TypedDict):
    attack: str
    threat_model: str


class Teacher(TypedDict):
    fingerprint: str


class Provenance(TypedDict):
    device: NotRequired[str | None]
    platform: NotRequired[str | None]
    commit: NotRequired[str | None]
    command: NotRequired[str | None]
    finished_at: NotRequired[str | None]
    versions: NotRequired[dict[str, str | None] | None]


class Warned(TypedDict):
    code: str
    message: NotRequired[str]


class Import(TypedDict):
    """Of a run that someone else has trained: where its weights came from, and how right it is on clean images."""

    file: str | None
    matched: str
    n: Count
    clean_accuracy: Share
    others: dict[str, Share]
    warnings: list[Warned]


class RunContent(Provenance):
    """run.json."""

    fingerprint: NotRequired[str]
    choices: NotRequired[RunChoices]
    config: RunConfig
    model_digest: str
    teacher: NotRequired[Teacher | None]
    parameters: NotRequired[Parameters | None]
    epochs: NotRequired[Epoch | None]
    seconds: NotRequired[Seconds | None]
    imported: NotRequired[Import]


class AboutRun(TypedDict):
    name: str
    fingerprint: str
    choices: RunChoices
    seed: int
    model_digest: str


class Draws(TypedDict):
    clean_accuracy_mean: NotRequired[Share]
    robust_accuracy_mean: NotRequired[Share]


class Runs(TypedDict):
    accuracies: list[Share]


class Metric(TypedDict):
    """What a record says of a metric: where that is damaged, its other figures stand all the same (check_metrics)."""

    mean: Number | None
    interval: tuple[Number | None, Number | None] | None
    n: Epoch


class Stage(TypedDict):
    attack: str
    survivors: Epoch


class PanelTold(TypedDict):
    """The panel as a record has it."""

    key: str | None
    norm: str
    eps: Eps
    n: Count
    clean_accuracy: Share
    accuracy: dict[str, Share]


class RecordContent(Provenance):
    """record.json."""

    fingerprint: str
    run: AboutRun
    source: AboutRun | None
    choices: EvaluationChoices
    config: EvaluationConfig
    n: Count
    clean_correct: Epoch
    robust_correct: Epoch
    clean_accuracy: Share
    robust_accuracy: Share
    clean_interval: tuple[Share, Share]
    robust_interval: tuple[Share, Share]
    seconds: NotRequired[Seconds]
    warnings: list[Warned]
    attacked: NotRequired[Epoch]
    eot_samples: NotRequired[Count]
    stages: NotRequired[list[Stage]]
    draws: NotRequired[Draws | None]
    runs: NotRequired[Runs]
    attacked_accuracy: NotRequired[Share]
    attacked_interval: NotRequired[tuple[Share, Share] | None]
    examples_from_before: NotRequired[list[Epoch]]
    forward_per_attacked_image: NotRequired[Passes | None]
    backward_per_attacked_image: NotRequired[Passes | None]
    panel: NotRequired[PanelTold]


class EveryAttack(TypedDict):
    one_step: Share
    iterated: Share
    longer: Share
    margin: Share
    larger: Share
    unbounded: Share
    queries: Share
    random: Share
    strongest: NotRequired[Share]


class PanelContent(TypedDict):
    """panel/<key>.json: a panel's figures for some weights."""

    norm: str
    eps: Annotated[float, at_least(0)]
    n: Count
    clean_accuracy: Share
    probabilities: bool
    random_output: bool
    zero_gradients: Share
    eot_samples: Count
    accuracy: EveryAttack
    ids: list[Epoch]
    right: dict[str, list[bool]]


class ErrorContent(TypedDict):
    """error.json."""

    error: NotRequired[str]
    overrides: NotRequired[list[str]]


class EpochContent(TypedDict):
    """A line of metrics.jsonl; what else it has are numbers too."""

    epoch: Annotated[int, at_least(0), at_most(10**9)]
    seconds: NotRequired[Seconds]


def read_run(path: Path) -> dict[str, Any]:
    """A training run's run.json. Raises Missing, or LabError, naming the file, when it is damaged: without the digest no weights could be
    trusted."""
    return read_json(path, RunContent)


def read_record(path: Path) -> dict[str, Any]:
    """An evaluation's record. Raises Missing, or LabError, naming the file, when it is damaged: when its figures do not follow from its
    counts."""
    return sound(read_json(path), path)


def sound(record: dict[str, Any], where: object) -> dict[str, Any]:
    """The record, if it has the form of one and its figures follow from its counts. Raises LabError, naming the file, if not."""
    if (problem := misfit(record, RecordContent)) is not None:
        raise LabError(f"{where} is damaged: {problem}; repeat the job with force=true")
    n = record["n"]
    follows = record["robust_correct"] <= n >= record["clean_correct"] and all(
        record[f"{kind}_accuracy"] == record[f"{kind}_correct"] / n
        and np.allclose(record[f"{kind}_interval"], wilson_interval(record[f"{kind}_correct"], n), rtol=0, atol=1e-9)
        for kind in ("clean", "robust")
    )
    if not follows:
        raise LabError(f"{where} is damaged: its figures do not agree with one another; repeat the job with force=true")
    return record


def check_metrics(record: Mapping[str, Any], where: object) -> None:
    """Raises LabError where a record does not say what its evaluation measured beside accuracy."""
    told = record.get("metrics", {})
    problem = misfit(told, dict[str, Metric], "metrics")
    if problem is None and (lacking := sorted(record["config"].get("metric", {}).keys() - told.keys())):
        problem = f"it says nothing of {', '.join(lacking)}"
    if problem is not None:
        raise LabError(f"{where} is damaged: {problem}; repeat the job with force=true")


def read_panel(path: Path) -> dict[str, Any]:
    """A panel's figures. Raises Missing, or LabError, naming the file, when it is damaged."""
    content = read_json(path, PanelContent)
    n, right = content["n"], content["right"]
    shares = {name: sum(flags) / n for name, flags in right.items()}
    if shares != content["accuracy"] or any(len(flags) != n for flags in (*right.values(), content["ids"])):
        raise LabError(f"{path} is damaged: its figures do not agree with one another; delete it")
    return content


def read_error(path: Path) -> dict[str, Any]:
    """What a failed job left. Raises LabError, naming the file, when it is damaged."""
    return read_json(path, ErrorContent)


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no such file. Raises LabError, naming file and line, where it is damaged."""
    remedy, rows = "train with force=true", []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        with reading(path, remedy):
            row = from_json(line)
        problem = misfit(row, EpochContent) or misfit(_numbers(row), dict[str, Measured])
        if problem is not None:
            raise LabError(f"{path}:{number} cannot be read ({problem}); {remedy}")
        rows.append(row)
    return rows


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a line is no text, flag or null: these nobody reads."""
    return {key: value for key, value in row.items() if not isinstance(value, str | bool | None)}


# Of each file of arrays: what stands in it, as its kind (b: bool, i: whole numbers, f: floats, U: text) and its dimensions, of which those
# with one letter are alike; after "?" what may be absent. F: floats that are finite. Nothing is empty but what a defense added and runs.
ARRAYS: Mapping[str, Mapping[str, str]] = {
    OUTCOME_FILE: {
        "index": "i N", "clean": "b N", "robust": "b N", "distance": "f N", "right": "f N", "broken_by": "i N", "stages": "U S",
        "after": "?f N", "runs": "?f R N",
    },
    EXAMPLES_FILE: {
        "index": "i E", "x": "i E C H W", "delta": "F E C H W", "label": "i E", "clean_prediction": "i E", "prediction": "i E",
    },
    DEFENDED_IMAGES_FILE: {
        "index": "i E", "clean": "i E C H W", "attacked": "i E C H W", "clean_masks": "?i E 1 I J", "attacked_masks": "?i E 1 I J",
    },
    FEATURES_FILE: {
        "index": "?i M", "label": "i M", "clean": "f M F", "attacked": "f M F", "prediction_clean": "?i M", "prediction_attacked": "?i M",
    },
    RAY_FILE: {"index": "i N", "t": "F T", "right": "i N W", "free": "b N"},
    PLANE_FILE: {"probability": "f G G", "points": "F P 2", "labels": "i P", "extra": "F Q 2", "extra_labels": "i Q"},
}  # fmt: skip
KINDS = {"b": "b", "i": "iu", "f": "f", "F": "f", "U": "U"}  # as numpy calls them


def check_arrays(name: str, arrays: Mapping[str, np.ndarray], where: object) -> None:
    """Raises LabError where arrays are not those that a file of this name has."""
    problem = misfit_of_arrays(arrays, ARRAYS.get(name, {}))
    if problem is not None:
        raise LabError(f"{where} is damaged: {problem}; repeat the job with force=true")


def misfit_of_arrays(arrays: Mapping[str, np.ndarray], form: Mapping[str, str]) -> str | None:
    """What of arrays is not as their form says; None where all is."""
    sizes: dict[str, int] = {}
    lacking = sorted(key for key, asked in form.items() if key not in arrays and not asked.startswith("?"))
    if lacking:
        return f"it lacks {', '.join(lacking)}"
    for key, asked in form.items():
        if key in arrays:
            array, (kind, *dims) = arrays[key], asked.removeprefix("?").split()
            told = f"{key}: expected {kind} [{', '.join(dims)}], got {array.dtype} {list(array.shape)}"
            if array.dtype.kind not in KINDS[kind] or array.ndim != len(dims):
                return told
            if kind == "F" and not np.isfinite(array).all():
                return f"{key}: expected finite numbers"
            for dim, size in zip(dims, array.shape, strict=True):
                if (int(dim) if dim.isdecimal() else sizes.setdefault(dim, size)) != size or (size == 0 and dim not in "QR"):
                    return told
    return None
