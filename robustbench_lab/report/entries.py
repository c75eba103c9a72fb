"""Records and runs, read as far as the report needs them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from robustbench_lab.report.charts import Point
from robustbench_lab.storage.folders import EvaluationFolder

UNSAID = dict.fromkeys(
    ("forward_per_attacked_image", "backward_per_attacked_image", "device", "platform", "commit", "command", "finished_at", "versions")
)  # what a record of an older version may lack, and a page can do without


@dataclass(frozen=True)
class Ball:
    """Where an attack may go."""

    norm: str
    eps: float

    @classmethod
    def of(cls, budget: Mapping[str, Any]) -> Ball:
        return cls(str(budget["norm"]), float(budget["eps"]))  # a record has "inf" for infinity

    def __str__(self) -> str:
        levels = 255 * self.eps
        if math.isinf(self.eps):
            return f"{self.norm}, no bound"
        if self.norm != "l0" and len(f"{self.eps:g}") > 5 and abs(levels - round(levels)) < 1e-6:
            return f"{self.norm} {round(levels)}/255"
        return f"{self.norm} {self.eps:g}"


@dataclass(frozen=True)
class Panel:
    """What a panel measured on `n` images of one model: accuracies in percent, by the names of conf/panel/."""

    key: str
    ball: Ball
    n: int
    accuracy: Mapping[str, float]

    @classmethod
    def of(cls, panel: Mapping[str, Any]) -> Panel:
        shares = {"clean": panel["clean_accuracy"], **panel["accuracy"]}
        return cls(str(panel["key"]), Ball.of(panel), int(panel["n"]), {name: 100 * float(share) for name, share in shares.items()})


@dataclass(frozen=True)
class Entry:
    """A record and its folder, read as far as the page needs it; accuracies in percent."""

    folder: EvaluationFolder
    record: Mapping[str, Any]
    run: str
    fingerprint: str
    dataset: str
    backbone: str
    defense: str
    seed: int
    attack: str
    threat_model: str
    white: bool
    ball: Ball
    n: int
    split: str
    clean: float
    robust: Point
    seconds: float | None
    warnings: Sequence[Mapping[str, str]]
    panel: Panel | None

    @classmethod
    def of(cls, folder: EvaluationFolder, record: Mapping[str, Any]) -> Entry:
        """Of a record that is sound: it has what every record has."""
        trained, config, choices = record["run"], record["config"], record["choices"]
        low, high = record["robust_interval"]
        return cls(
            folder=folder,
            record={**UNSAID, **record},
            run=str(trained["fingerprint"]),
            fingerprint=str(record["fingerprint"]),
            dataset=str(trained["choices"]["dataset"]),
            backbone=backbone_of(trained),
            defense=str(trained["choices"]["defense"]),
            seed=int(trained["seed"]),
            attack=str(choices["attack"]),
            threat_model=str(choices["threat_model"]),
            white=config["threat_model"]["sees"] == "defended",
            ball=Ball.of(config["budget"]),
            n=int(record["n"]),
            split=str(config.get("split", "test")),
            clean=100 * record["clean_accuracy"],
            robust=Point(100 * record["robust_accuracy"], 100 * low, 100 * high),
            seconds=record.get("seconds"),
            warnings=[{"code": str(warning["code"]), "message": str(warning.get("message", ""))} for warning in record["warnings"]],
            panel=Panel.of(record["panel"]) if record.get("panel") else None,
        )


def backbone_of(trained: Mapping[str, Any]) -> str:
    """By its choice; of a callable by its name, which the run's name has."""
    choice = str(trained["choices"]["backbone"])
    return str(trained["name"]).split("-")[1] if choice == "callable" and "-" in str(trained["name"]) else choice


@dataclass(frozen=True)
class Trained:
    """A finished training run: its run.json and its epochs."""

    name: str
    record: Mapping[str, Any]
    epochs: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, name: str, record: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> Trained:
        return cls(name, {**UNSAID, "config": {}, "seconds": None, "epochs": None, "parameters": None, **record}, epochs)


@dataclass(frozen=True)
class Foreign:
    """A run that someone else has trained, by its fingerprint, and its verdicts."""

    key: str
    run: Trained
    entries: Sequence[Entry]

    @property
    def title(self) -> str:
        choices, told = self.run.record["choices"], self.run.record["imported"]
        defense = "" if choices["defense"] == "standard" else f", {choices['defense']}"
        network = backbone_of({"choices": choices, "name": self.run.name})
        return f"{told['file'] or network} as {network} on {choices['dataset']}{defense}"
