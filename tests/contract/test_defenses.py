"""Every file of conf/defense keeps every clause of the defense contract (robustbench_lab/contract/defenses.py); every recipe, budget and
threat model builds.

Each choice is put together by Hydra and makes one step. The other clauses are tried with one choice of each class, and with those that
differ from it other than by numbers.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from built_kinds import NEEDED
from contract_choices import names, tried

from robustbench_lab.contract import Clause, clauses
from robustbench_lab.models.defended import Defended
from robustbench_lab.threats import NORMS, VIEWS, Budget, ThreatModel
from robustbench_lab.training.recipe import Recipe

CLAUSES = {name: clauses("defense", name, NEEDED.get(("defense", name), [])) for name in names("defense")}


@pytest.mark.parametrize("clause", [case for name, all_of in CLAUSES.items() for case in tried("defense", name, all_of)])
def test_contract(clause: Clause) -> None:
    clause()


@pytest.mark.parametrize("name", [name for name in names("training") if name != "imported"])  # which trains nothing
def test_recipes_build(name: str, built: Callable[..., Any], tiny_net: Callable[..., Defended]) -> None:
    recipe = built("training", name)
    assert isinstance(recipe, Recipe)
    optimizer = recipe.optimizer(list(tiny_net().parameters()))
    assert isinstance(optimizer, torch.optim.Optimizer)
    factors = [recipe.schedule(share * recipe.epochs, recipe.epochs) for share in (0, 0.1, 0.5, 0.9, 0.999)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("name", names("budget"))
def test_budgets_build(name: str, built: Callable[..., Any]) -> None:
    budget = built("budget", name)
    assert isinstance(budget, Budget)
    assert budget.norm in NORMS
    assert budget.eps > 0


@pytest.mark.parametrize("name", names("threat_model"))
def test_threat_models_build(name: str, built: Callable[..., Any]) -> None:
    threat_model = built("threat_model", name)
    assert isinstance(threat_model, ThreatModel)
    assert threat_model.sees in VIEWS


def test_every_view_has_a_threat_model(built: Callable[..., Any]) -> None:
    assert {built("threat_model", name).sees for name in names("threat_model")} == set(VIEWS)
