"""What the choices of a config group are objects of."""

from robustbench_lab.attacks.base import Attack
from robustbench_lab.backbones.base import Backbone
from robustbench_lab.datasets.base import Dataset
from robustbench_lab.defenses.base import Defense
from robustbench_lab.evaluation.panel import Panel
from robustbench_lab.models.front import Front
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.threats import Budget, ThreatModel
from robustbench_lab.training.recipe import Recipe

KINDS: dict[str, type] = {
    "attack": Attack,
    "backbone": Backbone,
    "budget": Budget,
    "dataset": Dataset,
    "defense": Defense,
    "front": Front,
    "normalise": FirstLayer,
    "panel": Panel,
    "threat_model": ThreatModel,
    "training": Recipe,
}
