"""Learning rates and weight decay of single parameters, by globs of their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from robustbench_lab.errors import LabError
from robustbench_lab.training.recipe import Recipe


def optimizer_and_rates(parameters: Sequence[Any], model: nn.Module, recipe: Recipe) -> tuple[Any, list[float]]:
    """The recipe's optimiser of a player's parameters, or groups of them, and the learning rate of each of its groups.

    A group's own `lr_factor` multiplies its rate. With `learning_rates` or `undecayed`, each group is split into those of one factor that
    decay, or do not. Raises LabError for a glob that fits no parameter of the model.
    """
    wanted: Sequence[Mapping[str, Any]] = parameters if parameters and isinstance(parameters[0], Mapping) else [{"params": parameters}]
    if recipe.learning_rates is None and recipe.undecayed is None:
        optimizer = recipe.optimizer([{**group} for group in wanted])
        return optimizer, [group["lr"] * group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    factors = factors_of(model, recipe.learning_rates or {})
    undecayed = {id(parameter) for glob in recipe.undecayed or () for parameter in fitting(model, glob, "training.undecayed")}
    groups, shares = [], []
    for group in wanted:
        alike: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            alike.setdefault((factors[id(parameter)], id(parameter) in undecayed), []).append(parameter)
        groups += [{**group, "params": chosen, **({"weight_decay": 0} if spared else {})} for (_, spared), chosen in alike.items()]
        shares += [factor * group.get("lr_factor", 1.0) for factor, _ in alike]
    optimizer = recipe.optimizer(groups)
    return optimizer, [group["lr"] * share for group, share in zip(optimizer.param_groups, shares, strict=True)]


def factors_of(model: nn.Module, rates: Mapping[str, float]) -> dict[int, float]:
    """The factor on each parameter's rate, by id: the product of those of all globs that fit it."""
    factors = {id(parameter): 1.0 for parameter in model.parameters()}
    for glob, factor in rates.items():
        for parameter in fitting(model, glob, "training.learning_rates"):
            factors[id(parameter)] *= factor
    return factors


def fitting(model: nn.Module, glob: str, key: str) -> list[nn.Parameter]:
    """The parameters whose names, or the ends of them, fit a glob. Raises LabError, with the key, where there is none."""
    named = dict(model.named_parameters())
    found = [parameter for name, parameter in named.items() if fnmatchcase(f".{name}", f"*.{glob}")]
    if not found:
        raise LabError(f"{key}: {glob!r} fits no parameter; there are {', '.join(list(named)[:5])}, ...")
    return found
