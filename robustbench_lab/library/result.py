"""What an evaluation and a check through the library come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from robustbench_lab.evaluation.warnings import panel_lines, percent


@dataclass(frozen=True, repr=False)
class Result:
    """The verdict on a model, image by image; arrays are in the order in which the images came.

    attack: its name. norm, eps: of the ball. n: images.
    clean_accuracy, robust_accuracy: shares of the images; clean_interval, robust_interval: their 95 % intervals (Wilson 1927).
    clean, robust bool [N]: right without an attack, and under it; of random output, robust in every draw. right float64 [N]: the share of
    draws in which the image is right under the attack. broken_by [N]: the name of the stage that broke the image, "" if none did.
    distance float64 [N]: from the image to what the attack made of it, in the ball's norm; nan for images that were wrong already.
    stages: for each attack of a list its name, survivors, seconds, and passes an attacked image. seconds: of all.
    random_output: whether two passes over one image differ; then draws and eot_samples say how often each verdict was asked for, and how
    many passes the attack averaged. panel: its figures, None without one. warnings: reasons to distrust the figures, code and message.
    x_adv: images as x came, where they were to be kept; else None.
    """

    attack: str
    norm: str
    eps: float
    clean: np.ndarray
    robust: np.ndarray
    right: np.ndarray
    broken_by: np.ndarray
    distance: np.ndarray
    figures: Mapping[str, Any] = field(repr=False)  # as a record has them
    random_output: bool
    asked: Mapping[str, Any]  # seed, batch_size, the attack's config, ...
    warnings: list[dict[str, Any]]
    panel: dict[str, Any] | None
    x_adv: Any = None

    @property
    def n(self) -> int:
        return len(self.clean)

    @property
    def clean_accuracy(self) -> float:
        return float(self.figures["clean_accuracy"])

    @property
    def clean_interval(self) -> tuple[float, float]:
        low, high = self.figures["clean_interval"]
        return low, high

    @property
    def robust_accuracy(self) -> float:
        return float(self.figures["robust_accuracy"])

    @property
    def robust_interval(self) -> tuple[float, float]:
        low, high = self.figures["robust_interval"]
        return low, high

    @property
    def stages(self) -> list[dict[str, Any]]:
        return list(self.figures["stages"])

    @property
    def seconds(self) -> float:
        return float(self.figures["seconds"])

    @property
    def draws(self) -> int:
        return int(self.figures["draws"]["count"]) if self.random_output else 1

    @property
    def eot_samples(self) -> int:
        return int(self.figures["eot_samples"])

    def to_dict(self) -> dict[str, Any]:
        """Everything but x_adv, as JSON can hold it; figures have the names that a record gives them."""
        images = {name: getattr(self, name).tolist() for name in ("clean", "robust", "right", "broken_by")}
        distances = [None if np.isnan(distance) else distance for distance in self.distance.tolist()]
        return {
            "attack": self.attack, "budget": {"norm": self.norm, "eps": self.eps}, **self.asked, **self.figures,
            "random_output": self.random_output, "panel": self.panel, "warnings": self.warnings, "images": images | {"distance": distances},
        }  # fmt: skip

    def __repr__(self) -> str:
        lines = [self._title, *(f"  {name:<8}{accuracy:>9}   95 % interval {interval}" for name, accuracy, interval in self._accuracies)]
        if len(self.stages) > 1:
            leaves = ", ".join(f"{stage['attack']} leaves {stage['survivors']}" for stage in self.stages)
            lines.append(f"  of {self.figures['attacked']}: {leaves}")
        lines.append(f"  {self._took}")
        return "\n".join([*lines, *(f"  {word}" for word in self._words)])

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{name}</td><td>{accuracy}</td><td>{interval}</td></tr>" for name, accuracy, interval in self._accuracies)
        stages = "".join(
            f"<tr><td>{escape(stage['attack'])}</td><td>{stage['survivors']}</td><td>{stage['seconds']:.1f}</td></tr>"
            for stage in self.stages
        )
        words = "".join(f"<li>{escape(word)}</li>" for word in self._words)
        return (
            f"<b>{escape(self._title)}</b>"
            f"<table><tr><th></th><th>accuracy</th><th>95 % interval</th></tr>{rows}</table>"
            f"<table><tr><th>attack</th><th>leaves, of {self.figures['attacked']}</th><th>seconds</th></tr>{stages}</table>"
            f"<ul>{words}</ul>"
        )

    @property
    def _title(self) -> str:
        return f"{self.attack}, {self.norm} {self.eps:.4g}, n = {self.n}"

    @property
    def _accuracies(self) -> list[tuple[str, str, str]]:
        return [
            (name, percent(accuracy), f"{100 * low:.2f} to {100 * high:.2f}")
            for name, accuracy, (low, high) in (
                ("clean", self.clean_accuracy, self.clean_interval),
                ("robust", self.robust_accuracy, self.robust_interval),
            )
        ]

    @property
    def _took(self) -> str:
        forward, backward = (self.figures[f"{way}_per_attacked_image"] or 0 for way in ("forward", "backward"))
        return f"{self.seconds:.1f} s; {forward:.0f} forward and {backward:.0f} backward passes an attacked image"

    @property
    def _words(self) -> list[str]:
        """What is to be said beside the figures."""
        drawn = f"random output: two passes over an image differ; {self.draws} draws a verdict, of which robust is all, {self.eot_samples} "
        return [
            *([f"{drawn}passes averaged by the attack"] if self.random_output else []),
            *([] if self.panel else ["there was no panel: nothing looked for hidden gradients"]),
            *(f"warning {warning['code']}: {warning.get('message', '')}" for warning in self.warnings),
        ]


@dataclass(frozen=True, repr=False)
class Checked:
    """What the panel found in a model.

    norm, eps: of the ball. n: how many of the images were tried. accuracy: the share that each attempt leaves right. signs: of hidden
    gradients, code, message and figures; none is no proof. figures: all of the panel's, as a record has them.
    """

    norm: str
    eps: float
    n: int
    accuracy: dict[str, float]
    signs: list[dict[str, Any]]
    figures: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {**self.figures, "signs": self.signs}

    def __repr__(self) -> str:
        return "\n".join([f"panel, {self.norm} {self.eps:.4g}, n = {self.n}", *panel_lines(self.figures, self.signs)])

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"
