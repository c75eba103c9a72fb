"""The metrics that tables show: where a record has them, in which unit, and how their figures are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from robustbench_lab.errors import LabError

ACCURACIES = (  # shown in percent
    "robust_accuracy", "robust_accuracy_mean", "attacked_accuracy", "clean_accuracy", "clean_accuracy_mean", "attack_success_rate",
    "accuracy_of_runs",
)  # fmt: skip
PARAMETERS = "parameters"  # how many the run has trained; tables add it to the record from run.json
OTHERS = "metrics."  # begins the names of those of conf/metric/, shown as they are
FORM = re.compile(r",?\.\d{1,2}[efg]")  # none with a sign, which differences add


@dataclass(frozen=True)
class Figure:
    """What a record says of one metric, in the metric's unit: the value, None where no image counts; its 95 % interval, None where there is
    none; n, the images that count; and std, the sample standard deviation over the attack's runs, where the value is their mean."""

    value: float | None
    interval: tuple[float, float] | None
    n: int
    std: float | None = None


def is_percent(metric: str) -> bool:
    return metric in ACCURACIES


def unit_of(metric: str) -> str:
    """`%`, or the metric's name for what is in a unit of its own."""
    return "%" if is_percent(metric) else metric.removeprefix(OTHERS)


def title_of(metric: str) -> str:
    """The metric in words, with its unit if that is percent: `robust accuracy, %`."""
    return metric.removeprefix(OTHERS).replace("_", " ") + (", %" if is_percent(metric) else "")


def default_form(metric: str) -> str:
    return ".2f" if is_percent(metric) else ",.0f" if metric == PARAMETERS else ".4g"


def word_for(metric: str) -> str | None:
    """The word without which an evaluation does not measure it; None for what each one does."""
    if metric == "accuracy_of_runs":
        return "an attack that is repeated, such as attack=pgd_fm_five"
    if metric == "attacked_accuracy":
        return "attack_misclassified=true"
    return f"metric=[{unit_of(metric)}]" if metric.startswith(OTHERS) else None


def figure_of(metric: str, record: Mapping[str, Any]) -> Figure:
    """The record's figure; means over draws and over runs are told without an interval. Raises LabError, with the remedy, for a record that
    lacks it.

    attack_success_rate is 100 minus robust accuracy: of all images, those count that are wrong without an attack.
    """
    try:
        n = int(record["n"])
        if metric == PARAMETERS:
            return Figure(float(record["run"][metric]), None, n)
        if metric == "accuracy_of_runs":
            runs = [100 * share for share in record["runs"]["accuracies"]]
            return Figure(mean(runs), None, n, stdev(runs))
        if metric == "attack_success_rate":
            robust, (low, high) = record["robust_accuracy"], record["robust_interval"]
            return Figure(100 - 100 * robust, (100 - 100 * high, 100 - 100 * low), n)
        if metric.startswith(OTHERS):
            of_metric = record["metrics"][unit_of(metric)]
            value, interval = of_metric["mean"], of_metric["interval"]
            return Figure(None if value is None else float(value), _finite(interval), int(of_metric["n"]))
        if metric in ("robust_accuracy_mean", "clean_accuracy_mean"):
            if (draws := record.get("draws")) is not None:
                return Figure(100 * draws[metric], None, n)
            metric = metric.removesuffix("_mean")  # every draw is alike
        share, interval = record[metric], _finite(record[metric.replace("accuracy", "interval")])
        return Figure(100 * share, (100 * interval[0], 100 * interval[1]) if interval else None, n)
    except (KeyError, TypeError, ValueError) as error:
        word = word_for(metric)
        needs = f"the cell's words need {word}; where they have it, " if word else ""
        raise LabError(f"the record says nothing of {metric}: {needs}evaluate again with force=true") from error


def _finite(interval: Any) -> tuple[float, float] | None:
    """A record has nulls where no image counts, and "nan" where one image does."""
    low, high = (math.nan if end is None else float(end) for end in interval or (None, None))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
