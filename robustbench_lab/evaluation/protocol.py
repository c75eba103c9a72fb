"""How an evaluation asks, whatever the model and the attack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.keepers.base import Keeper
from robustbench_lab.knobs import Count, check, require
from robustbench_lab.metrics.base import Measure


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What an evaluation is told beside models, images, attack and ball.

    seed: of the attack's random numbers, and the verdict's draws. batch_size: images attacked at a time.
    draws: how often a stochastic model is asked for its verdict; eot_samples: passes that the attack averages on one. precision: of the
    search, fp32 or bf16; the verdict is always in full precision.
    misclassified: attack images that are wrong when clean too, as many papers do; they count as broken all the same, and what becomes of
    them stands in the outcome's `after`. measures: metrics beside accuracy, by name; train [M, C, H, W]: the training images, for those
    that ask for them. keepers: what is kept of the images, begun.
    Raises LabError for a knob that is wrong, and for misclassified images with an attack that has more than one verdict (`check`).
    """

    seed: int
    batch_size: int
    draws: int = 1
    eot_samples: int = 1
    precision: str = "fp32"
    misclassified: bool = False
    measures: Mapping[str, Measure] = field(default_factory=dict)
    keepers: Sequence[Keeper] = ()
    train: Tensor | None = None

    def __post_init__(self) -> None:
        check("batch_size", self.batch_size, Count)
        check("verdict_draws", self.draws, Count)
        check("eot_samples", self.eot_samples, Count)
        check("search_precision", self.precision, Literal["fp32", "bf16"])
        check("attack_seed", self.seed, int)
        check("attack_misclassified", self.misclassified, bool)

    def check(self, attack: Attack) -> None:
        """Stop, before anything is loaded, if this attack cannot be asked so."""
        sole = not self.misclassified or len(attack.stages()) == 1
        require(sole, "attack_misclassified", "false for a list of attacks, which has one verdict", True)
        for name, measure in self.measures.items():
            theirs = measure.as_published and attack.minimal_as_published
            if measure.minimal and not (attack.minimal or theirs):
                raise LabError(
                    f"metric.{name} speaks of the smallest perturbation, which attack {type(attack).__name__} does not look for; use one "
                    "that does, such as attack=deepfool budget=box, or leave the metric out"
                )
            if measure.of_wrong_images and not self.misclassified:
                raise LabError(f"metric.{name} counts images that were wrong when clean, too: they need attack_misclassified=true")

    def check_model(self, model: nn.Module) -> None:
        """Stop, before anything is attacked, if a metric says nothing of this model."""
        for name, measure in self.measures.items():
            try:
                measure.check(model)
            except LabError as error:
                raise LabError(f"metric.{name}: {error}") from error

    def facts(self, random_output: bool) -> dict[str, object]:
        """What changes a panel's figures, and so names them; of draws only where the output is random."""
        draws = {"draws": self.draws, "eot_samples": self.eot_samples} if random_output else {}
        return {"seed": self.seed, "precision": self.precision, **draws}
