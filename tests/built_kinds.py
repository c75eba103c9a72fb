"""What the choices of a config group are objects of."""

from typing import Any

from robustbench_lab.attacks.base import Attack
from robustbench_lab.backbones.base import Backbone
from robustbench_lab.backbones.density import Density
from robustbench_lab.datasets.base import Dataset
from robustbench_lab.defenses.base import Defense
from robustbench_lab.evaluation.panel import Panel
from robustbench_lab.models.front import Front
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.threats import Budget, ThreatModel
from robustbench_lab.training.imported import Imported
from robustbench_lab.training.recipe import Recipe

KINDS: dict[str, Any] = {
    "attack": Attack,
    "backbone": Backbone | Density,
    "budget": Budget,
    "dataset": Dataset,
    "defense": Defense,
    "front": Front,
    "normalise": FirstLayer,
    "panel": Panel,
    "threat_model": ThreatModel,
    "training": Recipe | Imported,
}
NEEDED = {  # what choices do not say by themselves
    ("dataset", "image_folder"): ["dataset.path=/x", "dataset.classes=2"],
    ("backbone", "callable"): ["backbone.call=torchvision.models.squeezenet1_1", "backbone.arguments={num_classes: 10}"],
    ("defense", "sfm"): ["defense.width=4", "defense.levels=2"],  # for images of 8 pixels
    ("defense", "sfm_quick"): ["defense.width=4", "defense.levels=2"],
    ("defense", "sfm_tiny_imagenet"): ["defense.width=4", "defense.levels=2"],
    ("normalise", "mean_std"): ["dataset.normalise.mean=[0.5]", "dataset.normalise.std=[0.25]"],
}
