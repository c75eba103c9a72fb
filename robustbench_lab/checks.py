"""Reasons to distrust an evaluation, read from its own figures; a record carries them as `warnings`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def warnings_of(record: Mapping[str, Any], classes: int, stochastic: bool) -> list[dict[str, Any]]:
    """Codes with the figures behind them.

    collapsed: clean accuracy is at or below chance, so robust accuracy says nothing.
    random_output_one_draw: two passes over one image may differ, but the attack averages no draws (EOT, Athalye et al. 2018).
    transfer_only: the attacker did not see the defended model, so the figure is no bound on what a white-box attacker reaches.
    """
    found = []
    if record["clean_accuracy"] <= 1 / classes:
        found.append(
            {
                "code": "collapsed",
                "message": f"clean accuracy {100 * record['clean_accuracy']:.2f} % is at or below chance, {100 / classes:.2f} %",
                "clean_accuracy": record["clean_accuracy"],
                "chance": 1 / classes,
            }
        )
    if stochastic and record["config"]["attack"].get("eot_samples", 1) == 1:
        found.append(
            {
                "code": "random_output_one_draw",
                "message": "the model's output is random, but attack.eot_samples is 1; raise it",
                "eot_samples": record["config"]["attack"].get("eot_samples", 1),
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
