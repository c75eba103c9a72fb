"""The rules behind a panel's signs (sources: evaluation/panel.py): what its figures say of the model, and of an evaluation beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from robustbench_lab.evaluation.panel import Panel

STRONGEST = ("autoattack", "strongest")  # how the names of attacks begin that are held against PGD


WORDS = {
    "one_step": "one step",
    "iterated": "iterated",
    "longer": "iterated, more steps",
    "margin": "iterated, on the margin",
    "larger": "iterated, larger ball",
    "unbounded": "iterated, no bound",
    "queries": "queries only",
    "random": "random draws",
    "strongest": "AutoAttack",
}


def panel_lines(facts: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A panel's figures and signs, for a person to read."""
    accuracies = {"clean": facts["clean_accuracy"]} | {WORDS[name]: accuracy for name, accuracy in facts["accuracy"].items()}
    return [
        *(f"  {words:<24}{100 * share:7.2f} %" for words, share in {**accuracies, "gradient of zero": facts["zero_gradients"]}.items()),
        f"  {'probabilities':<24}{'yes' if facts['probabilities'] else 'no':>7}",
        f"  {'random output':<24}{'yes' if facts['random_output'] else 'no':>7}",
        "",
        *([f"warning {sign['code']}: {sign['message']}" for sign in found] or ["no sign of hidden gradients (which proves nothing)"]),
    ]


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


def with_signs(panel: Panel, facts: Mapping[str, Any], record: Mapping[str, Any], robust: Mapping[int, bool]) -> list[dict[str, Any]]:
    """A record's warnings, and after them the signs of its panel whose codes are none of theirs; robust: the verdict by image index."""
    found = {sign["code"]: sign for sign in [*signs(panel, facts), *compared(panel, facts, record, robust)]}
    said = {warning["code"] for warning in record["warnings"]}
    return [*record["warnings"], *(sign for code, sign in found.items() if code not in said)]


def warnings_of(record: Mapping[str, Any], classes: int, stochastic: bool) -> list[dict[str, Any]]:
    """What a record's own figures and settings say, without any panel.

    collapsed: clean accuracy is at or below chance, so robust accuracy says nothing.
    random_output_one_draw: two passes over one image may differ, but the attack averages no draws (EOT, Athalye et al. 2018).
    random_output_judged_once: the same, and each verdict is of one draw, so that images count as robust by luck.
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
    samples = record.get("eot_samples", 1)
    if stochastic and samples == 1:
        found.append(
            {
                "code": "random_output_one_draw",
                "message": "the model's output is random, but eot_samples is 1; raise it",
                "eot_samples": samples,
            }
        )
    draws = record["config"]["verdict_draws"]
    if stochastic and draws == 1:
        found.append(
            {
                "code": "random_output_judged_once",
                "message": "the model's output is random, but verdict_draws is 1: an image may count as robust by luck; raise it",
                "verdict_draws": draws,
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
