"""What a sweep ends with: what was swept beside what came of it, best first (sweep_pages.py tells it).

A job leaves, in a folder of its own within the sweep's, result.json with its words and where its run or evaluation is, or error.json. The
figures are those of the records: the same sweep again gives the same table.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal, NotRequired, TypedDict

from robustbench_lab.errors import LabError
from robustbench_lab.output import command_line, one_line
from robustbench_lab.storage.files import SCHEMA, Missing, names_in, read_json, there, write_json
from robustbench_lab.storage.records import (
    ERROR_FILE,
    METRICS_FILE,
    RECORD_FILE,
    RUN_FILE,
    check_metrics,
    read_epochs,
    read_record,
    read_run,
)

SWEEP_FILE, RESULT_FILE = "sweep.json", "result.json"
SWEEPING = ("train", "evaluate")  # verbs whose sweeps end with a table
SEEDS = ("seed", "attack_seed")  # over which a mean is taken
OF_EVALUATION = ("robust_accuracy", "clean_accuracy", "attacked_accuracy", "seconds")
VALIDATION = "validation_accuracy"
OF_TRAINING = (VALIDATION, "seconds")
SHARES = ("robust_accuracy", "clean_accuracy", "attacked_accuracy", "validation_accuracy")  # told in percent


class SweepContent(TypedDict):
    """sweep.json. searched: whether a sweeper chose the jobs by the objective, and no grid."""

    verb: Literal["train", "evaluate"]
    words: list[str]
    objective: str | None
    searched: NotRequired[bool]


class ResultContent(TypedDict):
    """result.json. folder: of the run or evaluation, from the job's own; objective: its figure, None where there is none."""

    overrides: list[str]
    command: str
    folder: str
    objective: NotRequired[float | None]


@dataclass(frozen=True)
class Trial:
    """A job: its words, its figures, those of them that have an interval, and why it failed, where it did."""

    number: int
    words: Sequence[str]
    figures: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    n: int | None
    warnings: Sequence[str]
    error: str | None = None

    @cached_property
    def said(self) -> dict[str, str]:
        """Its words by their keys; the last one of a key counts."""
        found = {}
        for word in self.words:
            key, _, value = word.partition("=")
            found[key.lstrip("+")] = value
        return found


@dataclass(frozen=True)
class Line:
    """A line of the table: trials that differ by their seeds alone. values: of the swept keys."""

    values: Sequence[str]
    trials: Sequence[Trial]

    @property
    def warnings(self) -> list[str]:
        return list(dict.fromkeys(code for trial in self.trials for code in trial.warnings))

    def values_of(self, figure: str) -> list[float]:
        return [trial.figures[figure] for trial in self.trials if figure in trial.figures]

    def mean(self, figure: str) -> float | None:
        values = self.values_of(figure)
        return mean(values) if values else None

    def deviation(self, figure: str) -> float | None:
        """Of the sample, over two seeds or more."""
        values = self.values_of(figure)
        return stdev(values) if len(values) > 1 else None

    def interval(self, figure: str) -> tuple[float, float] | None:
        """Over the images, of a single trial."""
        return self.trials[0].intervals.get(figure) if len(self.trials) == 1 else None


@dataclass(frozen=True)
class Sweep:
    """verb, words, objective: of the command; trials: its jobs, in their order; searched: whether the objective chose them."""

    verb: str
    words: Sequence[str]
    objective: str | None
    trials: Sequence[Trial]
    searched: bool = False

    @property
    def command(self) -> str:
        return command_line(self.verb, ["--multirun", *(["hydra/sweeper=optuna"] if self.searched else []), *self.words])

    @property
    def of_validation(self) -> bool:
        """Whether the figures are of images that the recipe held out."""
        return self.verb == "evaluate" and (
            (self.objective or "").lstrip("-").startswith("validation_") or "split=validation" in self.words
        )

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the figures."""
        if self.of_validation:
            return ["Accuracies are of validation images, which the recipe held out; evaluate the best one on test images."]
        return self.on_test_images

    @property
    def on_test_images(self) -> list[str]:
        """What a search does that looks at test images, where it does."""
        if not self.searched or self.verb != "evaluate" or self.of_validation or (self.objective or "").lstrip("-") == "seconds":
            return []
        return ["Chosen by its accuracy on test images: the best one's figure is too good to be reported; objective=validation_... is not."]

    @cached_property
    def done(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.error is None]

    @property
    def failed(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.error is not None]

    @cached_property
    def varied(self) -> list[str]:
        """The keys in which jobs differ, in the order of their words."""
        keys = list(dict.fromkeys(key for trial in self.trials for key in trial.said))
        return [key for key in keys if len({trial.said.get(key) for trial in self.trials}) > 1]

    @cached_property
    def keys(self) -> list[str]:
        """Those of them that are no seeds: what the lines tell."""
        return [key for key in self.varied if key not in SEEDS]

    @property
    def seeds(self) -> list[str]:
        return [key for key in self.varied if key in SEEDS]

    @property
    def names(self) -> list[str]:
        """The keys as short as they can be and still differ."""
        return [shortest(key, self.keys) for key in self.keys]

    @cached_property
    def figures(self) -> list[str]:
        """What the columns tell of each line."""
        known = dict.fromkeys(name for trial in self.done for name in trial.figures)
        return [*(name for name in known if name != "seconds"), *(["seconds"] if "seconds" in known else [])]

    @property
    def ranked_by(self) -> str | None:
        """The figure that puts the best line first, with its sign; None where nothing was asked for, and there is no validation."""
        if self.verb == "evaluate" and self.objective:
            return self.objective.replace("validation_", "", 1)
        return self.objective or (VALIDATION if VALIDATION in self.figures else None)

    @cached_property
    def lines(self) -> list[Line]:
        """Best first by the objective; where a line has none of it, after those that have, in the order of the jobs."""
        groups: dict[tuple[str, ...], list[Trial]] = {}
        for trial in self.done:
            groups.setdefault(tuple(trial.said.get(key, "–") for key in self.keys), []).append(trial)
        lines = [Line(values, trials) for values, trials in groups.items()]
        if self.ranked_by is None:
            return lines
        name, sign = self.ranked_by.lstrip("-"), -1 if self.ranked_by.startswith("-") else 1
        worth = {id(line): line.mean(name) for line in lines}
        return sorted(lines, key=lambda line: -sign * value if (value := worth[id(line)]) is not None else math.inf)


def shortest(key: str, keys: Sequence[str]) -> str:
    """The fewest last parts of a key that no other key ends in."""
    parts = key.split(".")
    for count in range(1, len(parts)):
        short = ".".join(parts[-count:])
        if sum(other == short or other.endswith(f".{short}") for other in keys) == 1:
            return short
    return key


def check_objective(objective: str | None, verb: str, config: Mapping[str, Any]) -> None:
    """Stop at an objective that the verb does not have under these settings (`metric`, `training`): before hours of work. Raises LabError,
    with those that there are."""
    if objective is None:
        return
    if verb == "evaluate":
        known = [name for name in OF_EVALUATION if name != "attacked_accuracy" or config.get("attack_misclassified")]
        known += list(config.get("metric") or {})
        known += [f"validation_{name}" for name in known if name != "seconds"]
    else:
        known = list(OF_TRAINING) if config["training"].get("validation") else ["seconds"]
        known.append("loss")
    if objective.lstrip("-") not in known:
        raise LabError(f"objective: expected one of {', '.join(known)} for {verb}, or -<name> where less is better, got {objective!r}")


def searched_for(verb: str, words: Sequence[str]) -> str:
    """The objective of a search: what its words say, or a figure of validation images."""
    said = [word.removeprefix("objective=") for word in words if word.startswith("objective=")]
    return said[-1] if said else VALIDATION if verb == "train" else "validation_robust_accuracy"


def figures_of(folder: Path, verb: str) -> tuple[dict[str, float], dict[str, tuple[float, float]], int | None, list[str]]:
    """What the records in a run's or an evaluation's folder say: figures, intervals, n and codes of warnings. Raises LabError."""
    if verb == "train":
        run = read_run(folder / RUN_FILE)
        rows = read_epochs(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
        kept = next((row for row in rows if row.get("epoch") == run.get("kept_epoch")), rows[-1] if rows else {})
        figures = {"validation_accuracy": kept.get("validation_accuracy"), "loss": kept.get("loss_model"), "seconds": run.get("seconds")}
        return _finite(figures), {}, None, [warning["code"] for warning in run.get("imported", {}).get("warnings", [])]
    record = read_record(folder / RECORD_FILE)
    check_metrics(record, folder / RECORD_FILE)
    metrics = {name: metric["mean"] for name, metric in record.get("metrics", {}).items()}
    figures = {name: record.get(name) for name in OF_EVALUATION} | metrics
    intervals = {f"{name}_accuracy": tuple(record[f"{name}_interval"]) for name in ("clean", "robust")}
    return _finite(figures), intervals, record["n"], [warning["code"] for warning in record["warnings"]]


def _finite(figures: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float) and math.isfinite(value)}


def objective_of(folder: Path, verb: str, objective: str | None) -> float | None:
    """The figure that a job returns: of more than one, the larger is the better one. None where the records have none."""
    name = objective or ("robust_accuracy" if verb == "evaluate" else "validation_accuracy")
    value = figures_of(folder, verb)[0].get(name.lstrip("-").removeprefix("validation_") if verb == "evaluate" else name.lstrip("-"))
    return None if value is None else -value if name.startswith("-") else value


def has_ended(job: Path) -> bool:
    """Whether a job has left what came of it: a result, or an error."""
    return there(job / RESULT_FILE) or there(job / ERROR_FILE)


def objective_left(job: Path) -> float | None:
    """The figure of its objective that a job has left; None where it failed, has none, or has left nothing yet."""
    with suppress(Missing):
        return None if there(job / ERROR_FILE) else read_json(job / RESULT_FILE, ResultContent).get("objective")
    return None


def leave_result(job: Path, made: Path, words: Sequence[str], verb: str, objective: float | None) -> None:
    """What a job of a sweep leaves of what it made."""
    content = {"overrides": list(words), "command": command_line(verb, words), "folder": os.path.relpath(made, job), "objective": objective}
    write_json(job / RESULT_FILE, {"schema": SCHEMA, **content})


def read_sweep(folder: Path) -> Sweep:
    """Raises Missing where there is none, and LabError for a damaged one; of a job whose record is gone, the trial says so."""
    content = read_json(folder / SWEEP_FILE, SweepContent)
    numbers = sorted(int(name) for name in names_in(folder) if name.isdecimal())
    trials = list(filter(None, (_trial(folder / str(number), content["verb"]) for number in numbers)))
    return Sweep(content["verb"], content["words"], content.get("objective"), trials, content.get("searched", False))


def _trial(job: Path, verb: str) -> Trial | None:
    """None for a job that has left nothing yet."""
    number = int(job.name)
    try:
        failed = read_json(job / ERROR_FILE)
        return Trial(number, failed.get("overrides", ()), {}, {}, None, (), one_line(str(failed.get("error", "no message"))))
    except Missing:
        pass
    except LabError as error:
        return Trial(number, (), {}, {}, None, (), str(error))
    try:
        result = read_json(job / RESULT_FILE, ResultContent)
    except Missing:
        return None
    except LabError as error:
        return Trial(number, (), {}, {}, None, (), str(error))
    try:
        return Trial(number, result["overrides"], *figures_of((job / result["folder"]).resolve(), verb))
    except LabError as error:
        return Trial(number, result["overrides"], {}, {}, None, (), str(error))


def sweeps_in(root: Path) -> Iterator[tuple[Path, Sweep | LabError]]:
    """Every sweep under an output folder, or why it cannot be read."""
    try:
        names = names_in(root / "sweeps")
    except LabError:
        return
    for name in sorted(names):
        folder = root / "sweeps" / name
        try:
            yield folder, read_sweep(folder)
        except Missing:
            continue
        except LabError as error:
            yield folder, error
