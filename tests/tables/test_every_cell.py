"""Every cell of every table, in every profile: what it trains and measures would not be refused."""

from collections.abc import Iterable
from itertools import chain

from robustbench_lab.attacks.base import Attack
from robustbench_lab.defenses.base import Defense
from robustbench_lab.evaluation.asked import protocol_of
from robustbench_lab.settings.build import build
from robustbench_lab.settings.identity import Evaluation
from robustbench_lab.settings.overrides import parsed
from robustbench_lab.tables.expansion import Expansion


def evaluations(every: Iterable[tuple[str, ...]], *groups: str) -> list[Evaluation]:
    """What the cells' words about these groups describe, each setting once: all else is the default."""
    cells = {tuple(word for word in words if (parsed(word).package or parsed(word).key_or_group).startswith(groups)) for words in every}
    found = Expansion()
    return [found.evaluation(words) for words in sorted(cells)]


def test_every_training_lasts_until_its_defense_begins(words_of_cells) -> None:
    late = set()
    for run in (evaluation.run for evaluation in evaluations(chain(*words_of_cells.values()), "dataset", "defense", "training", "profile")):
        build(run.config["defense"], "defense", Defense).check_epochs(run.config["training"]["epochs"])
        late |= {run.choices["defense"] for key in ("start_epoch", "noise_start_epoch") if run.config["defense"].get(key)}
    assert {"fm", "pni", "learn2perturb", "adversarial_training_pni"} <= late, "there is something to check"


def test_every_metric_suits_its_attack(words_of_cells) -> None:
    found: set[str] = set()
    for evaluation in evaluations(chain(*words_of_cells.values()), "metric", "attack", "budget"):
        if "metric" in evaluation.config:
            protocol = protocol_of(evaluation.config, batch_size=1)
            protocol.check(build(evaluation.config["attack"], "attack", Attack))
            found |= set(protocol.measures)
    assert {"empirical_robustness_as_published", "training_set_distance_as_published", "perturbation_norm"} <= found
