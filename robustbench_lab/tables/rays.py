"""Metrics of accuracy under FGSM at every eps up to that of the evaluation, read from what it kept along its rays (keep=[ray]).

An eps is in the unit of what the network is fed: eps * span, where `dataset.normalise.span` of the run's config says how many of these the
pixel range is; else a fraction of the pixel range. Between the points of a ray, accuracy is a straight line.
Source: Deep Defense 2018, arXiv:1803.00404, section 4.1: eps_ref is the smallest eps at which half the images are misclassified under FGSM
by one model, and others are compared at .2, .5 and 1 of it. Every image counts, also one that is wrong when clean and right at some eps.
Limits: FGSM is the weakest attack in its ball. Where the pixel box cuts what it finds, the ray is not FGSM at smaller eps, and is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.knobs import Knobs, Positive, above, below, require
from robustbench_lab.storage.records import RAY_FILE
from robustbench_lab.tables.base import Evidence, Figure, Metric

EPS = "eps"  # the unit


@dataclass(frozen=True)
class Curve:
    """eps float64 [T], from 0 on, rising; accuracy float64 [T] in percent, of n images; span: of the pixel range, in the unit of eps."""

    eps: np.ndarray
    accuracy: np.ndarray
    n: int
    span: float


@dataclass(frozen=True, kw_only=True)
class OfRay(Metric, Knobs):
    """What is read from the ray of an evaluation by FGSM."""

    files: ClassVar[Sequence[str]] = (RAY_FILE,)
    word: str | None = "attack=fgsm in linf, attack_misclassified=true and keep=[ray]"

    def asked(self, said: Mapping[str, Any]) -> bool:
        kept = said.get("keep")
        return "ray" in (kept if isinstance(kept, list) else [kept]) and said.get("attack_misclassified") is True

    def measured_by(self, config: Mapping[str, Any]) -> bool:
        pixels = config.get("space") == "pixels"  # their unit is not the run's
        return config["attack"]["_target_"].endswith(".FGSM") and config["budget"]["norm"] == "linf" and not pixels


@dataclass(frozen=True, kw_only=True)
class EpsAtAccuracy(OfRay):
    """The smallest eps at which at most `at` percent of the images are right, such as 50; 0 where no more are right when clean.

    It has no interval. Raises LabError where more are right all along the ray.
    """

    at: Annotated[float, above(0), below(100), "percent of the images"]
    unit: str = EPS
    form: str = ".4g"

    @property
    def title(self) -> str:
        return f"eps at {self.at:g} % accuracy"

    def read(self, seen: Evidence) -> Figure:
        curve = curve_of(seen)
        if (eps := first_crossing(curve, self.at)) is None:
            raise LabError(
                f"the lowest accuracy up to eps {curve.eps[-1]:.4g} is {curve.accuracy.min():.2f} %, not {self.at:g} % or less; take a "
                "larger budget.eps"
            )
        return Figure(eps, None, curve.n)


@dataclass(frozen=True, kw_only=True)
class AccuracyAt(OfRay):
    """Accuracy at `share` times the eps of another cell, `of` (`row / column`, or a column of the same row), in percent, with Wilson's
    interval. Raises LabError where the ray ends before that, or where that cell's eps is in another unit."""

    of: str
    share: Positive
    accuracy: bool = True

    @property
    def cells(self) -> Sequence[str]:
        return (self.of,)

    def check_cells(self, metrics: Mapping[str, Metric]) -> None:
        require(metrics[self.of].unit == EPS, "of", "a cell that shows eps_at_accuracy", self.of)

    @property
    def title(self) -> str:
        return f"accuracy at {self.share:g} eps, %"

    def read(self, seen: Evidence) -> Figure:
        curve, other = curve_of(seen), seen.cells[self.of].value
        assert other is not None, "cells without a figure are not looked at"
        if (span := span_of(seen.configs[self.of])) != curve.span:
            raise LabError(
                f"the eps of {self.of} is in another unit: its pixel range is {span:g} of what its network is fed, here {curve.span:g}"
            )
        eps = self.share * other
        if eps > curve.eps[-1] * (1 + 1e-9):
            raise LabError(
                f"accuracy is asked for at eps {eps:.4g}, and the ray ends at {curve.eps[-1]:.4g}; take budget.eps={eps / span:.4g} or more"
            )
        accuracy = float(np.interp(eps, curve.eps, curve.accuracy))
        low, high = wilson_interval(accuracy / 100 * curve.n, curve.n)
        return Figure(accuracy, (100 * low, 100 * high), curve.n)


def curve_of(seen: Evidence) -> Curve:
    """Raises LabError where the pixel box has cut what the attack found."""
    arrays, span = seen.arrays(RAY_FILE), span_of(seen.run["config"])
    cut = int((~arrays["free"]).sum())
    if cut:
        raise LabError(
            f"the pixel box has cut the attack on {cut} of {len(arrays['free'])} images, so that their rays are not FGSM at smaller eps; "
            "it needs images that lie further inside, by the dataset's normalise, or a smaller budget.eps"
        )
    right = np.unpackbits(arrays["right"], axis=1)[:, : len(arrays["t"])]
    if right.shape[1] < len(arrays["t"]):
        raise ValueError(f"{RAY_FILE}: {right.shape[1]} bits for {len(arrays['t'])} places on the ray")
    eps = arrays["t"] * float(seen.record["config"]["budget"]["eps"]) * span
    return Curve(eps, 100 * right.mean(axis=0), len(right), span)


def first_crossing(curve: Curve, at: float) -> float | None:
    """The smallest eps at which accuracy is `at` percent or lower; None where it is higher everywhere."""
    low = np.flatnonzero(curve.accuracy <= at)
    if not len(low) or low[0] == 0:
        return 0.0 if len(low) else None
    (near, far), (before, after) = curve.eps[low[0] - 1 : low[0] + 1], curve.accuracy[low[0] - 1 : low[0] + 1]
    return float(near + (before - at) / (before - after) * (far - near))


def span_of(config: Mapping[str, Any]) -> float:
    """How much of what the network is fed the pixel range is, by a run's config; 1 where images are pixels."""
    return float((config["dataset"].get("normalise") or {}).get("span", 1))
