"""From an evaluation's config to the protocol that it asks by, and the names of what it keeps for others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from robustbench_lab.evaluation.keepers.base import Keeper
from robustbench_lab.evaluation.keepers.examples import Examples
from robustbench_lab.evaluation.keepers.plane import Plane
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.metrics.base import Measure
from robustbench_lab.settings.build import build
from robustbench_lab.settings.identity import Evaluation, fingerprint

ALWAYS = (Examples, Plane)  # kept of every evaluation, where there is something to keep
# Of an evaluation's config, what no attack finds other images by.
OF_THE_JUDGE = ("threat_model", "metric", "keep", "verdict_draws", "attack_misclassified", "without_noise")


def protocol_of(config: Mapping[str, Any], batch_size: int) -> Protocol:
    """The protocol of an evaluation's resolved config, with its metrics and keepers. Raises LabError for a wrong knob."""
    return Protocol(
        seed=config["attack_seed"],
        batch_size=batch_size,
        draws=config["verdict_draws"],
        eot_samples=config["eot_samples"],
        precision=config["search_precision"],
        misclassified=config.get("attack_misclassified", False),
        measures={name: build(entry, f"metric.{name}", Measure) for name, entry in config.get("metric", {}).items()},
        keepers=[
            *(keeper() for keeper in ALWAYS),
            *(build(entry, f"keep.{name}", Keeper) for name, entry in config.get("keep", {}).items()),
        ],
    )


def crafted_name(evaluation: Evaluation, digest: str) -> str:
    """The name of what the attack finds on the source, weights of this digest: for everything that it depends on."""
    images = evaluation.run.config["dataset"]  # the attacked run's: the source may have learned from others
    content = {name: part for name, part in evaluation.config.items() if name not in OF_THE_JUDGE} | {"digest": digest, "dataset": images}
    return f"{evaluation.choices['attack']}-{fingerprint(content)}"
