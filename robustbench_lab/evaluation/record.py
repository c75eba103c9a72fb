"""What the record of an evaluation says of its outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from robustbench_lab.attacks.base import Attack
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.evaluation.warnings import warnings_of
from robustbench_lab.intervals import normal_interval, wilson_interval
from robustbench_lab.settings.identity import Evaluation, Run
from robustbench_lab.storage.files import SCHEMA
from robustbench_lab.storage.provenance import provenance


@dataclass(frozen=True)
class Circumstances:
    """Of the attacked model: its classes, and whether its output is random; eot_samples: passes that the attack averaged for each answer;
    device: where it ran."""

    classes: int
    stochastic: bool
    eot_samples: int
    device: str


def record_of(
    evaluation: Evaluation, outcome: Outcome, stages: list[str], digests: Mapping[str, str], made: Circumstances
) -> dict[str, Any]:
    """The content of record.json; stages: the names of the attack's; digests: of the weights of each part, run and source."""
    config = evaluation.config
    misclassified, metrics = "attack_misclassified" in config, list(config.get("metric", {}))
    record = {
        "schema": SCHEMA,
        "fingerprint": evaluation.fingerprint,
        "run": about_run(evaluation.run, digests["run"]),
        "source": about_run(evaluation.source, digests["source"]) if evaluation.source else None,
        "choices": evaluation.choices,
        "config": config,
        **figures_of(outcome, stages, config["budget"]["norm"], config["verdict_draws"], made, misclassified, metrics),
        **provenance(made.device),
    }
    record["warnings"] = warnings_of(record, made.classes, made.stochastic)
    return record


def figures_of(
    outcome: Outcome,
    stages: list[str],
    norm: str,
    draws: int,
    made: Circumstances,
    misclassified: bool = False,
    metrics: Sequence[str] = (),
) -> dict[str, Any]:
    """What an outcome comes to; norm: of its distances; draws: of the verdict; metrics: the names of its measures."""
    n, robust = len(outcome.ids), int(outcome.robust.sum())
    attacked = int((~np.isnan(outcome.distance)).sum())
    broken = outcome.distance[(outcome.clean_right > 0) & (outcome.right == 0)]
    quantiles = np.quantile(broken, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(broken) else None
    searched = attacked - outcome.reused  # for each stage: images whose examples were there before cost nothing
    forward, backward = (_per_image(passes, searched) for passes in (outcome.forward, outcome.backward))
    return {
        "n": n,
        "clean_correct": int(outcome.clean.sum()),
        "robust_correct": robust,
        "clean_accuracy": float(outcome.clean.mean()),
        "clean_interval": wilson_interval(int(outcome.clean.sum()), n),
        "robust_accuracy": float(outcome.robust.mean()),
        "robust_interval": wilson_interval(robust, n),
        "draws": {"count": draws, "clean_accuracy_mean": float(outcome.clean_right.mean()),
                  "robust_accuracy_mean": float(outcome.right.mean())} if made.stochastic else None,
        **(_counted_as_papers_do(outcome, made.stochastic) if misclassified else {}),
        **({"runs": {"accuracies": outcome.runs.mean(axis=1).tolist()}} if len(outcome.runs) else {}),
        "eot_samples": made.eot_samples,
        "attacked": attacked,
        "examples_from_before": outcome.reused.tolist(),
        "distance_of_broken": {"norm": norm, "quantiles_0_25_50_75_100": quantiles,
                               "mean": float(broken.mean()) if len(broken) else None},
        "forward_per_attacked_image": _total(forward),
        "backward_per_attacked_image": _total(backward),
        "stages": [
            {"attack": name, "survivors": survivors, "forward_per_attacked_image": f, "backward_per_attacked_image": b, "seconds": seconds}
            for name, survivors, f, b, seconds in zip(stages, outcome.survivors(), forward, backward, outcome.seconds.tolist(), strict=True)
        ],
        "metrics": {name: _metric(values) for name, values in zip(metrics, outcome.metrics, strict=True)},
        "seconds": float(outcome.seconds.sum()),
    }  # fmt: skip


def eot_samples_of(attack: Attack, protocol: Protocol, draws: bool) -> int:
    """Passes behind each answer that the attack is given; draws: whether two passes of what it sees may differ."""
    return (protocol.eot_samples if draws else 1) * min(getattr(stage, "eot_samples", 1) for _, stage in attack.stages())


def _counted_as_papers_do(outcome: Outcome, stochastic: bool) -> dict[str, Any]:
    """The share of all images that are right after the attack, where those that were wrong before were attacked too; of draws, the mean."""
    right, n = float(outcome.after.sum()), len(outcome.ids)
    return {
        "attacked_accuracy": right / n,
        "attacked_interval": None if stochastic else wilson_interval(right, n),
        "attacked_misclassified": int((outcome.clean_right == 0).sum()),
    }


def _per_image(passes: np.ndarray, images: np.ndarray) -> list[float | None]:
    return [count / n if n else None for count, n in zip(passes.tolist(), images.tolist(), strict=True)]


def _total(each: list[float | None]) -> float | None:
    """Over the stages, each by the images that it searched; null where none searched any."""
    counted = [passes for passes in each if passes is not None]
    return sum(counted) if counted else None


def _metric(values: np.ndarray) -> dict[str, Any]:
    """Mean over the images that count, n, and its 95 % interval by the normal approximation; nulls where none counts."""
    values = values[~np.isnan(values)]
    if not len(values):
        return {"mean": None, "interval": None, "n": 0}
    mean = float(values.mean())
    low, high = normal_interval(mean, float(values.std(ddof=1)), len(values)) if len(values) > 1 else (math.nan, math.nan)
    return {"mean": mean, "interval": [low, high], "n": len(values)}


def about_run(run: Run, digest: str) -> dict[str, Any]:
    return {"name": run.name, "fingerprint": run.fingerprint, "choices": run.choices, "seed": run.config["seed"], "model_digest": digest}
