"""Every number of every learning-rate schedule in conf/training: in its place, inf or nan stops when the object is built.

Those of attacks and defenses are clauses of their contracts.
"""

import pytest
from built_kinds import KINDS
from contract_choices import described, names

from robustbench_lab.contract.trying import refuses_numbers_that_are_not_finite


@pytest.mark.parametrize("name", names("training"))
def test_a_number_that_is_not_finite_is_refused(name: str) -> None:
    refuses_numbers_that_are_not_finite("training", described("training", name), KINDS["training"])
