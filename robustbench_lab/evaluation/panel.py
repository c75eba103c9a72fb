"""Reasons to distrust an evaluation: signs that a model hides its gradients, or that an attack was too weak.

Source: Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 3.1, whose five signs FM 2021 discusses in section 6; Carlini et al.
2019, arXiv:1902.06705; the flags of AutoAttack (fra31/auto-attack, flags_doc.md). Each sign is a code with the figures behind it; a record
carries them as `warnings`. What the panel tries, on how many images, and from where on a figure counts as a sign, is conf/panel/.
Limits: a model can hide its gradients in ways that none of these sees; no warning is no proof.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.loop import evaluate
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.knobs import Knobs, ShareBelowOne, above, at_least
from robustbench_lab.models.defended import Defended, cross_entropy, frozen, full_precision
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class Panel(Knobs):
    """What is tried on a model, on a few of its test images, with the attacker seeing everything.

    images: how many, spread evenly over the split; 0: no panel. one_step, iterated, longer (iterated, with more steps), margin (iterated,
    on another loss), queries, random, strongest: attacks; strongest may be null. larger: what eps is multiplied by. tolerance: how many
    images may stand on the wrong side by chance; zero_gradients, unbounded: share of images without a gradient, and accuracy in an
    unbounded ball, that are still sound; gap: what the strongest attack may take from the iterated one.
    """

    images: Annotated[int, at_least(0)]
    one_step: Attack
    iterated: Attack
    longer: Attack
    margin: Attack
    queries: Attack
    random: Attack
    strongest: Attack | None
    larger: Annotated[float, above(1)]
    tolerance: Annotated[int, at_least(0)]
    zero_gradients: ShareBelowOne
    unbounded: ShareBelowOne
    gap: ShareBelowOne

    def check(self, budget: Budget) -> None:
        """Stop if one of the attacks cannot search this ball."""
        for name in ("one_step", "iterated", "longer", "margin", "queries", "random", "strongest"):
            attack = getattr(self, name)
            if attack is not None:
                try:
                    attack.check(budget)
                except LabError as error:
                    raise LabError(f"panel.{name}: {error}; panel=none leaves the panel out") from error

    def run(self, defended: Defended, data: ImageSet, budget: Budget, protocol: Protocol) -> dict[str, Any]:
        """The figures: what the outputs look like, and which of the panel's images each attack leaves right.

        budget: a finite ball, linf or l2. Of the protocol, what says how to ask; nothing else is measured or kept.
        """
        chosen = data.subset(torch.linspace(0, len(data) - 1, min(self.images, len(data))).round().long().unique())
        asked = replace(protocol, misclassified=False, measures={}, keepers=(), train=None)
        facts = outputs(defended, chosen, asked.batch_size)
        facts["eot_samples"] = asked.eot_samples if defended.stochastic else 1
        whole = 1.0 if budget.norm == "linf" else math.prod(chosen.shape) ** 0.5  # no two images are further apart
        attempts = {
            "one_step": (self.one_step, budget.eps),
            "iterated": (self.iterated, budget.eps),
            "longer": (self.longer, budget.eps),
            "margin": (self.margin, budget.eps),
            "larger": (self.iterated, min(self.larger * budget.eps, whole)),
            "unbounded": (self.iterated, whole),
            "queries": (self.queries, budget.eps),
            "random": (self.random, budget.eps),
            "strongest": (self.strongest, budget.eps),
        }
        right = {}
        for name, (attack, eps) in attempts.items():
            if attack is not None:
                try:
                    outcome = evaluate(defended, defended, chosen, attack, Budget(budget.norm, eps), asked)
                except LabError as error:
                    raise LabError(f"panel.{name}: {error}; panel=none leaves the panel out") from error
                facts["clean_accuracy"] = float(outcome.clean.mean())
                right[name] = outcome.robust.tolist()
        return {
            "norm": budget.norm, "eps": budget.eps, "n": len(chosen), **facts,
            "accuracy": {name: sum(flags) / len(chosen) for name, flags in right.items()},
            "ids": chosen.ids.tolist(), "right": right,
        }  # fmt: skip


def outputs(defended: Defended, data: ImageSet, batch_size: int) -> dict[str, Any]:
    """Whether the model returns probabilities, whether its output is random, and for which share of the images its gradient is zero."""
    probabilities, random, zeros = True, False, 0
    for x, y, _ in data.batches(torch.arange(len(data)), batch_size):
        with frozen(defended, fast=False) as model, full_precision():
            x = x.requires_grad_()
            gradient = torch.autograd.grad(cross_entropy(model(x), y).sum(), x)[0]
            zeros += int((gradient == 0).flatten(1).all(dim=1).sum())
            with torch.no_grad():
                logits = model(x)
                random |= not torch.equal(model(x), logits)
            probabilities &= is_distribution(logits)
    return {"probabilities": probabilities, "random_output": random, "zero_gradients": zeros / len(data)}


def is_distribution(logits: Tensor) -> bool:
    """Whether every row lies in [0, 1] and sums to 1."""
    return bool((logits >= 0).all() and (logits <= 1).all() and ((logits.sum(dim=1) - 1).abs() < 1e-3).all())
