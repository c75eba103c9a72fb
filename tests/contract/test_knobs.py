"""Every number of every attack, defense and learning-rate schedule in conf/: in its place, inf or nan stops when the object is built.

Of choices that differ by numbers only, one is enough: the others have the same numbers to check.
"""

import copy
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from built_kinds import KINDS
from contract_choices import described, kinds, names

from robustbench_lab.errors import LabError
from robustbench_lab.settings.build import build

CHOICES = [(group, name) for group in ("attack", "defense") for name in kinds(group)] + [("training", name) for name in names("training")]
UNBOUNDED = {"budget.eps"}  # the ball may be the whole box, for attacks that look for the smallest perturbation


def numbers(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_a_number_that_is_not_finite_is_refused(group: str, name: str) -> None:
    right = described(group, name)
    for path, wrong in itertools.product(numbers(right), (math.inf, -math.inf, math.nan)):
        if ".".join(path) in UNBOUNDED and wrong == math.inf:
            continue
        changed = copy.deepcopy(right)
        holder = functools.reduce(operator.getitem, path[:-1], changed)
        holder[path[-1]] = wrong
        knob = path[-1] if "_target_" in holder else path[-2]  # a mapping of numbers, such as learning_rates, is one knob
        with pytest.raises(LabError, match=rf"{knob}: "):
            build(changed, group, KINDS[group])
