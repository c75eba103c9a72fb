"""Reasons to distrust an evaluation: signs that a model hides its gradients, or that an attack was too weak.

Source: Athalye, Carlini and Wagner 2018, arXiv:1802.00420, section 3.1, whose five signs FM 2021 discusses in section 6; Carlini et al.
2019, arXiv:1902.06705; the flags of AutoAttack (fra31/auto-attack, flags_doc.md). Each sign is a code with the figures behind it; a record
carries them as `warnings`. What the panel tries, on how many images, and from where on a figure counts as a sign, is conf/panel/.
Limits: a model can hide its gradients in ways that none of these sees; no warning is no proof.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robustbench_lab.attacks.gradients import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation import evaluate
from robustbench_lab.models import Defended, cross_entropy, frozen, full_precision
from robustbench_lab.threats import Budget, is_number, require

STRONGEST = ("autoattack", "strongest")  # how the names of attacks begin that are held against PGD


@dataclass(frozen=True, kw_only=True)
class Panel:
    """What is tried on a model, on a few of its test images, with the attacker seeing everything.

    images: how many, spread evenly over the split; 0: no panel. one_step, iterated, longer (iterated, with more steps), margin (iterated,
    on another loss), queries, random, strongest: attacks; strongest may be null. larger: what eps is multiplied by. tolerance: how many
    images may stand on the wrong side by chance; zero_gradients, unbounded: share of images without a gradient, and accuracy in an
    unbounded ball, that are still sound; gap: what the strongest attack may take from the iterated one.
    """

    images: int
    one_step: Attack
    iterated: Attack
    longer: Attack
    margin: Attack
    queries: Attack
    random: Attack
    strongest: Attack | None
    larger: float
    tolerance: int
    zero_gradients: float
    unbounded: float
    gap: float

    def __post_init__(self) -> None:
        for name in ("images", "tolerance"):
            value = getattr(self, name)
            require(isinstance(value, int) and not isinstance(value, bool) and value >= 0, name, "a whole number >= 0", value)
        require(is_number(self.larger) and self.larger > 1, "larger", "a number > 1", self.larger)
        for name in ("zero_gradients", "unbounded", "gap"):
            value = getattr(self, name)
            require(is_number(value) and 0 <= value < 1, name, "a share of the images, 0 <= share < 1", value)

    def check(self, budget: Budget) -> None:
        """Stop if one of the attacks cannot search this ball."""
        for name in ("one_step", "iterated", "longer", "margin", "queries", "random", "strongest"):
            attack = getattr(self, name)
            if attack is not None:
                try:
                    attack.check(budget)
                except LabError as error:
                    raise LabError(f"panel.{name}: {error}; panel=none leaves the panel out") from error

    def run(self, defended: Defended, data: ImageSet, budget: Budget, **how: Any) -> dict[str, Any]:
        """The figures: what the outputs look like, and which of the panel's images each attack leaves right.

        budget: a finite ball, linf or l2. how: seed, batch_size and what else evaluate() takes.
        """
        chosen = data.subset(torch.linspace(0, len(data) - 1, min(self.images, len(data))).round().long().unique())
        facts = outputs(defended, chosen, how["batch_size"])
        facts["eot_samples"] = how.get("eot_samples", 1) if defended.stochastic else 1
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
                    outcome = evaluate(defended, defended, chosen, attack, Budget(budget.norm, eps), **how)
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


def signs(panel: Panel, facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a panel's figures say of the model alone."""
    found = []
    accuracy, n = facts["accuracy"], facts["n"]

    def sign(code: str, message: str, **figures: Any) -> None:
        found.append({"code": code, "message": f"{message} (n = {n})", **figures, "n": n})

    def higher(code: str, one: str, other: str, words: str) -> None:
        if above(accuracy[one] - accuracy[other], panel.tolerance / n):
            sign(code, f"{words}: {percent(accuracy[one])} against {percent(accuracy[other])}", **{k: accuracy[k] for k in (one, other)})

    def missed(code: str, finder: str, words: str) -> None:
        white = [all(flags) for flags in zip(*(facts["right"][name] for name in ("iterated", "longer", "margin")), strict=True)]
        share = sum(w and not f for w, f in zip(white, facts["right"][finder], strict=True)) / n
        if above(share, panel.tolerance / n):
            sign(code, f"{words} {percent(share)} of the images that iterated attacks missed", missed=share)

    if facts["probabilities"]:
        sign("probabilities", "the model returns probabilities, not logits: a second softmax flattens every loss")
    if facts["random_output"] and facts["eot_samples"] == 1:
        sign(
            "random_output_one_draw",
            "two passes over one image differ, but the attacks average no draws; set eot_samples, on a model that says it is stochastic",
            eot_samples=1,
        )  # fmt: skip
    if above(facts["zero_gradients"], panel.zero_gradients):
        sign("zero_gradients", f"{percent(facts['zero_gradients'])} of the images have a gradient of zero", share=facts["zero_gradients"])
    higher("one_step_beats_iterated", "iterated", "one_step", "an iterated attack leaves more images right than one step does")
    higher("more_steps_help_the_model", "longer", "iterated", "a longer attack leaves more images right")
    higher("larger_eps_helps_the_model", "larger", "iterated", f"a ball {panel.larger:g} times as large leaves more images right")
    if above(accuracy["unbounded"], panel.unbounded):
        sign(
            "unbounded_attack_fails", f"in a ball without bounds {percent(accuracy['unbounded'])} of the images stay right",
            unbounded=accuracy["unbounded"],
        )  # fmt: skip
    missed("queries_beat_gradients", "queries", "queries alone break")
    missed("random_draws_beat_gradients", "random", "random draws break")
    if "strongest" in accuracy and above(accuracy["iterated"] - accuracy["strongest"], panel.gap):
        sign(
            "autoattack_far_below_pgd", f"AutoAttack leaves {percent(accuracy['strongest'])} right, PGD {percent(accuracy['iterated'])}",
            strongest=accuracy["strongest"], iterated=accuracy["iterated"],
        )  # fmt: skip
    return found


def compared(panel: Panel, facts: Mapping[str, Any], record: Mapping[str, Any], robust: Mapping[int, bool]) -> list[dict[str, Any]]:
    """What an evaluation's own outcome says beside the panel's; `robust`: the verdict by image index. For the ball of the panel only."""
    shared = [i for i, index in enumerate(facts["ids"]) if index in robust]
    if not shared or (record["config"]["budget"]["norm"], record["config"]["budget"]["eps"]) != (facts["norm"], facts["eps"]):
        return []
    n, found = len(shared), []
    ours = [robust[facts["ids"][i]] for i in shared]
    right = {name: [flags[i] for i in shared] for name, flags in facts["right"].items()}
    iterated = sum(right["iterated"]) / n
    white = record["config"]["threat_model"]["sees"] == "defended"
    random = sum(o and not r for o, r in zip(ours, right["random"], strict=True)) / n
    if white and above(random, panel.tolerance / n):
        found.append(
            {
                "code": "random_draws_beat_the_attack",
                "message": f"random draws in the ball break {percent(random)} of the images that the attack missed (n = {n})",
                "missed": random, "n": n,
            }
        )  # fmt: skip
    if not white and above(iterated - sum(ours) / n, panel.tolerance / n):
        found.append(
            {
                "code": "black_box_beats_white_box",
                "message": f"without seeing the model the attacker leaves {percent(sum(ours) / n)} right, PGD that sees it "
                f"{percent(iterated)} (n = {n})",
                "black_box": sum(ours) / n, "white_box": iterated, "n": n,
            }
        )  # fmt: skip
    if white and str(record["choices"]["attack"]).startswith(STRONGEST) and above(iterated - sum(ours) / n, panel.gap):
        found.append(
            {
                "code": "autoattack_far_below_pgd",
                "message": f"{record['choices']['attack']} leaves {percent(sum(ours) / n)} right, PGD {percent(iterated)} (n = {n})",
                "strongest": sum(ours) / n, "iterated": iterated, "n": n,
            }
        )  # fmt: skip
    return found


def warnings_of(record: Mapping[str, Any], classes: int, stochastic: bool) -> list[dict[str, Any]]:
    """What a record's own figures and settings say, without any panel.

    collapsed: clean accuracy is at or below chance, so robust accuracy says nothing.
    random_output_one_draw: two passes over one image may differ, but the attack averages no draws (EOT, Athalye et al. 2018).
    transfer_only: the attacker did not see the defended model, so the figure is no bound on what a white-box attacker reaches.
    """
    found = []
    if record["clean_accuracy"] <= 1 / classes:
        found.append(
            {
                "code": "collapsed",
                "message": f"clean accuracy {percent(record['clean_accuracy'])} is at or below chance, {percent(1 / classes)}",
                "clean_accuracy": record["clean_accuracy"],
                "chance": 1 / classes,
            }
        )
    samples = record["eot_samples"]
    if stochastic and samples == 1:
        found.append(
            {
                "code": "random_output_one_draw",
                "message": "the model's output is random, but eot_samples is 1; raise it",
                "eot_samples": samples,
            }
        )
    if record["source"] is not None and record["source"]["fingerprint"] != record["run"]["fingerprint"]:
        found.append(
            {
                "code": "transfer_only",
                "message": "the attacker did not see the defended model; threat_model=white may find more",
                "sees": record["config"]["threat_model"]["sees"],
            }
        )
    return found


def above(share: float, limit: float) -> bool:
    """Whether a share of the images exceeds a limit, by more than rounding."""
    return share > limit + 1e-9


def percent(share: float) -> str:
    return f"{100 * share:.2f} %"
