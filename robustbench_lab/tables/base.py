"""The contract of a metric that tables show: what it is given, and the figure that it makes of that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from robustbench_lab.errors import LabError

OF_IMAGES = "metrics."  # begins the names of those of conf/metric/


@dataclass(frozen=True)
class Figure:
    """What is shown of one metric, in the metric's unit: the value, None where no image counts; its 95 % interval, None where there is
    none; n, the images that count; and std, the sample standard deviation over the attack's runs or over training seeds, where the value
    is their mean."""

    value: float | None
    interval: tuple[float, float] | None
    n: int
    std: float | None = None


def number(value: float | None, form: str, std: float | None = None) -> str | None:
    """A figure, with its standard deviation where it is a mean over runs."""
    return None if value is None else format(value, form) + ("" if std is None else f" ± {std:{form}}")


def _no_arrays(file: str) -> dict[str, np.ndarray]:
    raise LabError(f"there is no {file}")


@dataclass(frozen=True)
class Evidence:
    """What a metric may look at: an evaluation's record and its files of arrays, such as outcome.npz; run.json of the run that it attacks;
    and of the cells that the metric names the figures, and the configs of the runs that these are of."""

    record: Mapping[str, Any]
    run: Mapping[str, Any] = field(default_factory=dict)
    arrays: Callable[[str], Mapping[str, np.ndarray]] = _no_arrays
    cells: Mapping[str, Figure] = field(default_factory=dict)
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Metric:
    """What a table shows, and how.

    unit: `%`, or the metric's name for what is in a unit of its own. word: the word without which an evaluation does not measure it, None
    for what each one does. accuracy: whether it is a share of images that are right, as curves show; under_attack: whether it says how
    much an attack leaves. averages: whether it is a mean over the images that count, which may be fewer than those of the evaluation.
    deviation: over what its `std` is, if it has one. evaluated: whether it needs an evaluation, and not other cells alone. files: of the
    evaluation, that it looks at beside record and outcome; they are published with it.
    """

    files: ClassVar[Sequence[str]] = ()

    name: str
    unit: str = "%"
    form: str = ".2f"
    word: str | None = None
    accuracy: bool = False
    under_attack: bool = False
    averages: bool = False
    deviation: str | None = None
    evaluated: bool = True

    @property
    def cells(self) -> Sequence[str]:
        """The other cells that it is worked out from: `row / column`, or a column's label for that cell of the same row."""
        return ()

    def check_cells(self, metrics: Mapping[str, Metric]) -> None:
        """Raises LabError where one of those cells, by the metric that it shows, is none that it can be worked out from."""

    def read(self, seen: Evidence) -> Figure:
        """The figure; a KeyError, TypeError or ValueError means that what it looks at does not have it."""
        raise NotImplementedError

    def asked(self, said: Mapping[str, Any]) -> bool:
        """Whether an evaluation by these words, key -> value, measures it, as far as words alone tell."""
        return True

    def measured_by(self, config: Mapping[str, Any]) -> bool:
        """Whether a composed evaluation does."""
        return True

    @property
    def in_percent(self) -> bool:
        return self.unit == "%"

    @property
    def title(self) -> str:
        """In words, with its unit if that is percent: `robust accuracy, %`."""
        return self.name.removeprefix(OF_IMAGES).replace("_", " ") + (", %" if self.in_percent else "")

    def figure_of(self, seen: Evidence) -> Figure:
        """As `read`. Raises LabError, with the remedy, for a record that lacks it."""
        try:
            return self.read(seen)
        except (KeyError, TypeError, ValueError) as error:
            needs = f"the cell's words need {self.word}; where they have it, " if self.word else ""
            raise LabError(f"the record says nothing of {self.name}: {needs}evaluate again with force=true") from error
