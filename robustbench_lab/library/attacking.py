"""Attacks by their names, on any module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.attacks.base import Attack
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.judging import Judge, Search, Task
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.knobs import Count, Seed, check
from robustbench_lab.library.images import images_of
from robustbench_lab.library.lending import lent
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.build import build
from robustbench_lab.settings.standalone import choice, default
from robustbench_lab.threats import Budget


def attack(name: str, /, **knobs: Any) -> NamedAttack:
    """The attack of conf/attack/<name>.yaml, with other values for some of its knobs: `attack("pgd", steps=20)`.

    A knob that is a mapping changes what it names: `attack("autoattack", attacks={"square": {"queries": 1000}})`.
    Raises LabError, with the nearest, for a name or a knob that is not there, and for a value that a knob does not take.
    """
    config = choice("attack", name, {knob: plain_value(value) for knob, value in knobs.items()})
    return NamedAttack(name, build(config, "attack", Attack), config)


@dataclass(frozen=True, repr=False)
class NamedAttack:
    """An attack that any module can be given to: `attack(model, x, y, lab.Budget("linf", 8/255))`.

    search: the attack itself. config: what describes it.
    """

    name: str
    search: Attack
    config: Mapping[str, Any]

    def __call__(
        self, model: Any, x: Any, y: Any, budget: Budget, *, seed: int = 0, ids: Any = None, output: str | int | None = None,
        gives: str = "logits", draws: int | None = None, eot_samples: int | None = None, device: str | None = None,
    ) -> Any:  # fmt: skip
        """x_adv, of the kind and on the device of x: what an evaluation finds, for every image.

        x, y: tensors or arrays, [B, C, H, W] in [0, 1] and whole numbers [B]. Of a list of attacks each sees the images that the ones
        before it left right; an image keeps what broke it, or what the last one made of it. seed, and an image's number in ids, or its
        position: the random numbers of its search. The other knobs are those of `evaluate`.
        The model is searched in eval mode and left as it was, so that it can be attacked between two steps of its training.
        Raises LabError as `evaluate` does.
        """
        images = images_of(x, y, ids)
        if not isinstance(budget, Budget):
            raise LabError(f'budget: expected a Budget, such as lab.Budget("linf", 8/255), got {budget!r}')
        self.search.check(budget)
        budget.check(images.shape, "budget")
        protocol = protocol_of(seed, len(images), draws, eot_samples)
        learning = getattr(model, "training", False)
        with lent(model, images, len(images), seed=seed, output=output, gives=gives, device=device) as loan:
            defended, stages = loan.defended, self.search.stages()
            judge = Judge(defended, protocol.draws if defended.stochastic else 1, seed)
            search = Search(defended, seed, protocol.eot_samples, protocol.precision)
            if not learning:  # between two steps of a training a copy would pay for one search only
                search.attach_fast_copy()
            pixels, labels, numbers = next(loan.images.batches(torch.arange(len(images)), len(images)))
            x_adv, left = pixels.clone(), torch.arange(len(pixels), device=pixels.device)
            for part, stage in stages:
                rng = ImageRandom.of(numbers[left], seed, "attack")
                rng = rng.fold("stage", part) if len(stages) > 1 else rng
                found = search(Task(part, stage, pixels[left], labels[left], numbers[left], budget, rng), judge)
                x_adv[left] = found.x_adv
                left = left[found.right > 0]
                if not len(left):
                    break
        return as_came(x_adv, x)

    def __repr__(self) -> str:
        return f"<attack {self.name}: {self.search}>"


def attack_of(given: object) -> NamedAttack:
    """An attack by its name, as `attack` makes it, or as an object of a class of one's own."""
    if isinstance(given, NamedAttack):
        return given
    if isinstance(given, str):
        return attack(given)
    if isinstance(given, Attack):
        return NamedAttack(type(given).__name__, given, {})
    raise LabError(f'attack: expected a name, such as "autoattack", or what lab.attack("pgd", steps=20) gives, got {given!r}')


def protocol_of(seed: int, batch_size: int | None, draws: int | None, eot_samples: int | None, **how: Any) -> Protocol:
    """How to ask; what is not said, is as conf/evaluate.yaml has it. Raises LabError for a wrong knob."""
    size = default("batch_size") if batch_size is None else plain_value(batch_size)
    judged = default("verdict_draws") if draws is None else plain_value(draws)
    averaged = default("eot_samples") if eot_samples is None else plain_value(eot_samples)
    for key, value, kind in (("seed", seed, Seed), ("batch_size", size, Count), ("draws", judged, Count), ("eot_samples", averaged, Count)):
        check(key, value, kind)
    return Protocol(seed=seed, batch_size=size, draws=judged, eot_samples=averaged, precision=default("search_precision"), **how)


def plain_value(value: Any) -> Any:
    """A number of numpy's or torch's as Python's, wherever in a mapping or list it is."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0):
        return value.item()
    if isinstance(value, Mapping):
        return {name: plain_value(entry) for name, entry in value.items()}
    return [plain_value(entry) for entry in value] if isinstance(value, list | tuple) else value


def as_came(found: Tensor, x: Any) -> Any:
    """Images as a tensor or an array, like x, in its precision."""
    if isinstance(x, np.ndarray):
        return found.cpu().numpy().astype(x.dtype, copy=False)
    return found.to(x.device, x.dtype) if isinstance(x, Tensor) else found.cpu()
