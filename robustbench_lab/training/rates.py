"""Learning rates of single parameters, by globs of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from robustbench_lab.errors import LabError
from robustbench_lab.training.recipe import Recipe


def optimizer_and_rates(parameters: Sequence[Any], model: nn.Module, recipe: Recipe) -> tuple[Any, list[float]]:
    """The recipe's optimiser of a player's parameters, or groups of them, and the learning rate of each of its groups.

    A group's own `lr_factor` multiplies its rate. With `learning_rates`, each group is split into those of one factor. Raises LabError for
    a glob that fits no parameter of the model.
    """
    wanted: Sequence[Mapping[str, Any]] = parameters if parameters and isinstance(parameters[0], Mapping) else [{"params": parameters}]
    if recipe.learning_rates is None:
        optimizer = recipe.optimizer([{**group} for group in wanted])
        return optimizer, [group["lr"] * group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    factors = factors_of(model, recipe.learning_rates)
    groups, shares = [], []
    for group in wanted:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_factor.setdefault(factors[id(parameter)], []).append(parameter)
        groups += [{**group, "params": chosen} for chosen in by_factor.values()]
        shares += [factor * group.get("lr_factor", 1.0) for factor in by_factor]
    optimizer = recipe.optimizer(groups)
    return optimizer, [group["lr"] * share for group, share in zip(optimizer.param_groups, shares, strict=True)]


def factors_of(model: nn.Module, rates: Mapping[str, float]) -> dict[int, float]:
    """The factor on each parameter's rate, by id: the product of those of all globs that fit its name or the end of it."""
    named = dict(model.named_parameters())
    factors = {id(parameter): 1.0 for parameter in named.values()}
    for glob, factor in rates.items():
        fitting = [parameter for name, parameter in named.items() if fnmatchcase(f".{name}", f"*.{glob}")]
        if not fitting:
            raise LabError(f"training.learning_rates: {glob!r} fits no parameter; there are {', '.join(list(named)[:5])}, ...")
        for parameter in fitting:
            factors[id(parameter)] *= factor
    return factors
