"""The metrics that tables show: where a record has them, in which unit, and how their figures are written."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_lab.errors import LabError

ACCURACIES = ("robust_accuracy", "robust_accuracy_mean", "attacked_accuracy", "clean_accuracy")  # shown in percent
OTHERS = "metrics."  # begins the names of those of conf/metric/, shown as they are
FORM = re.compile(r",?\.\d{1,2}[efg]")  # none with a sign, which differences add


@dataclass(frozen=True)
class Figure:
    """What a record says of one metric, in the metric's unit: the value, None where no image counts; its 95 % interval, None where there is
    none; and n, the images that count."""

    value: float | None
    interval: tuple[float, float] | None
    n: int


def is_percent(metric: str) -> bool:
    return not metric.startswith(OTHERS)


def unit_of(metric: str) -> str:
    """`%`, or the metric's name for what is in a unit of its own."""
    return "%" if is_percent(metric) else metric.removeprefix(OTHERS)


def title_of(metric: str) -> str:
    """The metric in words, with its unit if that is percent: `robust accuracy, %`."""
    return metric.removeprefix(OTHERS).replace("_", " ") + (", %" if is_percent(metric) else "")


def default_form(metric: str) -> str:
    return ".2f" if is_percent(metric) else ".4g"


def word_for(metric: str) -> str | None:
    """The word without which an evaluation does not measure it; None for what each one does."""
    if metric == "attacked_accuracy":
        return "attack_misclassified=true"
    return None if is_percent(metric) else f"metric=[{unit_of(metric)}]"


def figure_of(metric: str, record: Mapping[str, Any]) -> Figure:
    """The record's figure; a mean over draws is told without an interval. Raises LabError, with the remedy, for a record that lacks it."""
    try:
        if not is_percent(metric):
            of_metric = record["metrics"][unit_of(metric)]
            value, interval = of_metric["mean"], of_metric["interval"]
            return Figure(None if value is None else float(value), _finite(interval), int(of_metric["n"]))
        share, interval = record["robust_accuracy"], None
        if metric != "robust_accuracy_mean":
            share, interval = record[metric], _finite(record[metric.replace("accuracy", "interval")])
        elif (draws := record.get("draws")) is not None:
            share = draws[metric]
        return Figure(100 * share, (100 * interval[0], 100 * interval[1]) if interval else None, int(record["n"]))
    except (KeyError, TypeError, ValueError) as error:
        word = word_for(metric)
        needs = f"the cell's words need {word}; where they have it, " if word else ""
        raise LabError(f"the record says nothing of {metric}: {needs}evaluate again with force=true") from error


def _finite(interval: Any) -> tuple[float, float] | None:
    """A record has nulls where no image counts, and "nan" where one image does."""
    low, high = (math.nan if end is None else float(end) for end in interval or (None, None))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
