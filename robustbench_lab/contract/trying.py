"""What the clauses are tried on: a tiny network with BatchNorm, images at the box's edge, and a run on the embedded digits.

Each of these makes clauses bind that easy images or networks would not: a missing clamp shows only where images touch 0 and 1, a missing
eval mode only in a network with BatchNorm.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lab.contract.clause import Clause, Level
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.build import build

UNBOUNDED = {"budget.eps"}  # the ball may be the whole box, for attacks that look for the smallest perturbation


def demand(holds: object, words: str) -> None:
    """Raises AssertionError with these words unless it holds; unlike `assert`, also under `python -O`."""
    if not holds:
        raise AssertionError(words)


@contextmanager
def refusal(words: str) -> Iterator[list[str]]:
    """What is refused within, as LabError: the message is in the list afterwards. Raises AssertionError if nothing is."""
    told: list[str] = []
    try:
        yield told
    except LabError as error:
        told.append(str(error))
    demand(told, f"expected a LabError for {words}, but none was raised")


@contextmanager
def settled() -> Iterator[None]:
    """One thread, for the networks here are too small to share, and always the same random state; both as they were afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)


def clause_of(of: str) -> Callable[..., Clause]:
    """`clause(check, *arguments, case="linf", depends_on="kind")`: the check's name and docstring are the clause's."""

    def make(check: Callable[..., None], *arguments: Any, case: object = "", depends_on: Level = "choice") -> Clause:
        def holds() -> None:
            with settled():
                check(*arguments)

        name = f"{check.__name__}[{case}]" if case != "" else check.__name__
        return Clause(name, " ".join(str(check.__doc__).split()), of, holds, depends_on)

    return make


def tiny_net(channels: int = 1, classes: int = 3, size: int = 5, seed: int = 0) -> Defended:
    """An eval-mode convolution, BatchNorm with statistics that are not the identity, ReLU and a linear layer, on 5x5 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(4)
        nn.init.normal_(norm.running_mean, std=0.2)  # type: ignore[arg-type]
        nn.init.uniform_(norm.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, std=0.2)
        layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3, padding=1, bias=False),
            norm,
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * size * size, classes),
        )
        return Defended(Classifier(Normalise([0.5] * channels, [0.25] * channels), layers)).eval()


def edge_images(n: int, channels: int = 1, size: int = 5, seed: int = 0) -> Tensor:
    """Random images [n, channels, size, size] of which every one touches 0 and 1, and the first holds nothing else."""
    x = torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))
    x[:, :, 0] = (x[:, :, 0] > 0.5).float()
    x[:, 0, 0, :2] = torch.tensor([0.0, 1.0])
    x[0] = (x[0] > 0.5).float()
    return x


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(100, 100 + n), 0, "attack")


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) % classes


def snapshot(model: nn.Module) -> dict[str, object]:
    """All of a model that a search must leave as it was."""
    return {
        "a module's mode (train or eval)": [(name, module.training) for name, module in model.named_modules()],
        "a parameter, its gradient or whether it asks for one": [
            (name, p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()
        ],
        "a buffer": [(name, b._version) for name, b in model.named_buffers()],
        "the state": [(name, value.tolist()) for name, value in model.state_dict().items()],
    }


def demand_unchanged(model: nn.Module, before: Mapping[str, object]) -> None:
    after = snapshot(model)
    changed = [what for what in before if after[what] != before[what]]
    demand(not changed, f"the model was not left as it was: {', '.join(changed)} changed")


def numbers(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a config's numbers are."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from numbers(value, (*path, key))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield (*path, key)


def refuses_numbers_that_are_not_finite(group: str, config: Mapping[str, Any], kind: Any) -> None:
    """A knob that is inf or nan stops when the object is built, by its name; so does each knob of the objects that it holds."""
    for path, wrong in itertools.product(numbers(config), (math.inf, -math.inf, math.nan)):
        if ".".join(path) in UNBOUNDED and wrong == math.inf:
            continue
        changed = copy.deepcopy(dict(config))
        holder = functools.reduce(operator.getitem, path[:-1], changed)
        holder[path[-1]] = wrong
        knob = path[-1] if "_target_" in holder else path[-2]  # a mapping of numbers, such as learning_rates, is one knob
        with refusal(f"{group}.{'.'.join(path)}={wrong}") as told:
            build(changed, group, kind)
        demand(f"{knob}: " in told[0], f"{group}.{'.'.join(path)}={wrong} is refused without its name: {told[0]}")
