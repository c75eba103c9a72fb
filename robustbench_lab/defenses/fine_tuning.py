"""Fine-tuning: training that begins from another run's weights, under a recipe of its own.

What papers call fine-tuning from a reference network (Deep Defense 2018, arXiv:1803.00404, section 4.2; AT+ALP's undefended twin).
The optimiser begins anew; BatchNorm's statistics come with the weights and move on.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Taught, begin_from
from robustbench_lab.models.defended import Defended


@dataclass(frozen=True, kw_only=True)
class FineTuning(Taught):
    """Standard training from the teacher's weights. Raises LabError where the teacher is another network."""

    def prepare(self, model: Defended, train_data: ImageSet, teacher: nn.Module | None) -> None:
        begin_from(teacher, model)
