"""The metrics that tables show: one object each, which knows its unit and form, what it needs, and where its figure comes from.

A new one is an entry of METRICS; what a metric of conf/metric/ measures needs none, it is `metrics.<name>`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache, partial
from statistics import mean, stdev
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import student_interval
from robustbench_lab.knobs import Count, Knobs
from robustbench_lab.settings.conf import choices
from robustbench_lab.tables.base import OF_IMAGES, Evidence, Figure, Metric
from robustbench_lab.tables.rays import AccuracyAt, EpsAtAccuracy

FORM = re.compile(r",?\.\d{1,2}[efg]")  # none with a sign, which differences add


@dataclass(frozen=True)
class Share(Metric):
    """A share of the images with its interval, as the record has it."""

    accuracy: bool = True

    def read(self, seen: Evidence) -> Figure:
        interval = _finite(seen.record[self.name.replace("accuracy", "interval")])
        percent = (100 * interval[0], 100 * interval[1]) if interval else None
        return Figure(100 * seen.record[self.name], percent, int(seen.record["n"]))


@dataclass(frozen=True)
class Attacked(Share):
    """The share that is right after the attack, images that were wrong before attacked too."""

    word: str | None = "attack_misclassified=true"

    def asked(self, said: Mapping[str, Any]) -> bool:
        return said.get("attack_misclassified") is True


@dataclass(frozen=True)
class MeanOverDraws(Share):
    """The mean over the draws of a stochastic model, without an interval; a deterministic one's draws are all alike."""

    def read(self, seen: Evidence) -> Figure:
        if (draws := seen.record.get("draws")) is None:
            return Share(self.name.removesuffix("_mean")).read(seen)
        return Figure(100 * draws[self.name], None, int(seen.record["n"]))


@dataclass(frozen=True)
class SuccessRate(Metric):
    """100 minus robust accuracy: of all images, those count that are wrong without an attack."""

    def read(self, seen: Evidence) -> Figure:
        robust, (low, high) = seen.record["robust_accuracy"], seen.record["robust_interval"]
        return Figure(100 - 100 * robust, (100 - 100 * high, 100 - 100 * low), int(seen.record["n"]))


@dataclass(frozen=True)
class OverRuns(Metric):
    """Mean and sample standard deviation over the runs of a repeated attack, without an interval."""

    word: str | None = "an attack that is repeated, such as attack=pgd_fm_five"
    accuracy: bool = True
    deviation: str | None = "the runs of one attack on this model"

    def read(self, seen: Evidence) -> Figure:
        runs = [100 * share for share in seen.record["runs"]["accuracies"]]
        return Figure(mean(runs), None, int(seen.record["n"]), stdev(runs))

    def measured_by(self, config: Mapping[str, Any]) -> bool:
        return "times" in config["attack"]


@dataclass(frozen=True)
class OfRun(Metric):
    """A number that the attacked run says of itself, `key` in its run.json, over how many of its unit are one of the table's."""

    key: str = ""
    over: float = 1

    def read(self, seen: Evidence) -> Figure:
        return Figure(float(seen.run[self.key or self.name]) / self.over, None, int(seen.record["n"]))


@dataclass(frozen=True)
class OfImages(Metric):
    """A metric of conf/metric/: its mean over the images that count, shown as it is."""

    form: str = ".4g"
    averages: bool = True

    def read(self, seen: Evidence) -> Figure:
        found = seen.record["metrics"][self.unit]
        value = found["mean"]
        return Figure(None if value is None else float(value), _finite(found["interval"]), int(found["n"]))

    def asked(self, said: Mapping[str, Any]) -> bool:
        metrics = said.get("metric")
        return self.unit in (metrics if isinstance(metrics, list) else [metrics])


@dataclass(frozen=True, kw_only=True)
class MinutesOfDefending(Metric, Knobs):
    """What the attacked model takes to answer so many `images`, such as 10000, at the pace of those that were timed; without an interval,
    because images of one batch are timed together."""

    images: Count
    unit: str = "min"
    word: str | None = "metric=[seconds_of_defending]"

    def read(self, seen: Evidence) -> Figure:
        timed = OfImages("", unit=SECONDS).read(seen)
        return Figure(None if timed.value is None else timed.value * self.images / 60, None, timed.n)

    def asked(self, said: Mapping[str, Any]) -> bool:
        return OfImages("", unit=SECONDS).asked(said)


SECONDS = "seconds_of_defending"  # the metric of conf/metric/ that minutes are made of

METRICS: dict[str, Callable[..., Metric]] = {
    "robust_accuracy": partial(Share, under_attack=True),
    "robust_accuracy_mean": partial(MeanOverDraws, under_attack=True),
    "attacked_accuracy": Attacked,
    "clean_accuracy": Share,
    "clean_accuracy_mean": MeanOverDraws,
    "attack_success_rate": SuccessRate,
    "accuracy_of_runs": partial(OverRuns, under_attack=True),
    "eps_at_accuracy": EpsAtAccuracy,
    "accuracy_at": AccuracyAt,
    "parameters": partial(OfRun, unit="parameters", form=",.0f"),
    "seconds_of_training": partial(OfRun, unit="s", form=",.0f", key="seconds"),
    "minutes_of_training": partial(OfRun, unit="min", form=",.1f", key="seconds", over=60),
    "minutes_of_defending": MinutesOfDefending,
}


def metric_names() -> list[str]:
    """All that a table may name."""
    return [*METRICS, *(f"{OF_IMAGES}{name}" for name in choices("metric"))]


def metric_of(node: str | Mapping[str, Any]) -> Metric:
    """The metric that a table names; one with knobs is a mapping, `name` and these. Raises LabError for a name or a knob that is not."""
    if isinstance(node, str):
        return _named(node)
    name, knobs = node.get("name"), {key: value for key, value in node.items() if key != "name"}
    return _made(str(name), knobs) if knobs else _named(str(name))


@cache
def _named(name: str) -> Metric:
    return _made(name, {})


def _made(name: str, knobs: Mapping[str, Any]) -> Metric:
    if name not in metric_names():
        raise LabError(f"expected one of {', '.join(metric_names())}, got {name!r}")
    measured = name.removeprefix(OF_IMAGES)
    make = METRICS.get(name) or partial(OfImages, unit=measured, word=f"metric=[{measured}]")
    wrong = knobs.keys() & {one.name for one in fields(Metric)}
    try:
        if not wrong:
            return make(name, **knobs)
    except TypeError as error:
        wrong = {str(error)}
    raise LabError(f"expected the knobs of {name}, got {', '.join(knobs) or 'none'} ({', '.join(sorted(wrong))})")


def over_seeds(figures: Sequence[Figure]) -> Figure:
    """One figure of several trainings: mean, sample standard deviation, and Student's interval of the mean over them, not over images.

    n is that of one training, the smallest if they differ. One training's figure stays what it is.
    """
    if len(figures) == 1:
        return figures[0]
    values, n = [figure.value for figure in figures], min(figure.n for figure in figures)
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Figure(None, None, n)
    return Figure(mean(known), student_interval(known), n, stdev(known))


def _finite(interval: Any) -> tuple[float, float] | None:
    """A record has nulls where no image counts, and "nan" where one image does."""
    low, high = (math.nan if end is None else float(end) for end in interval or (None, None))
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None
