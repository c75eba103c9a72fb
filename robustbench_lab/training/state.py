"""Where training stands after an epoch, in tensors that a file can hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustbench_lab.models.defended import Defended
from robustbench_lab.training.recipe import Recipe


@dataclass
class State:
    """Where training stands after a complete epoch: everything that the next one needs."""

    epoch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizers: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    averaged: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best_epoch(self) -> int:
        """Epochs done when validation accuracy, or a density's likelihood, was highest (the first of equals); 0 before the first."""
        merits = [row.get("validation_accuracy", -row.get("validation_bits_per_dimension", 1.0)) for row in self.history]
        return merits.index(max(merits)) + 1 if merits else 0

    def finished(self, recipe: Recipe) -> bool:
        stale = recipe.patience is not None and self.epoch - self.best_epoch >= recipe.patience
        return self.epoch >= recipe.epochs or (stale and self.epoch > 0)


def advance(
    state: State, model: Defended, optimizers: dict[str, Optimizer], averaged: dict[str, Tensor], row: dict[str, Any], recipe: Recipe
) -> State:
    """The state after one more epoch, in tensors of its own on the CPU; averaged: the average of the parameters, where there is one."""
    weights = snapshot(model)
    after = State(state.epoch + 1, weights, state.best, optimizer_tensors(optimizers), [*state.history, row], averaged)
    if recipe.keep == "best" and after.best_epoch == after.epoch:
        after.best = weights | averaged
    return after


def snapshot(model: Defended) -> dict[str, Tensor]:
    """The model's weights and buffers, in tensors of their own on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}


def optimizer_tensors(optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as flat tensors named player/parameter/key, on the CPU."""
    flat = {}
    for player, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if value is not None:
                    flat[f"{player}/{index}/{key}"] = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
    return flat


def restore_optimizers(optimizers: dict[str, Optimizer], flat: dict[str, Tensor]) -> None:
    states: dict[str, dict[int, dict[str, Tensor]]] = {player: {} for player in optimizers}
    for name, tensor in flat.items():
        player, index, key = name.rsplit("/", 2)
        states[player].setdefault(int(index), {})[key] = tensor.clone()
    for player, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[player], "param_groups": optimizer.state_dict()["param_groups"]})
