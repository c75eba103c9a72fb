"""A package of somebody else's: an attack, a defense, a dataset of points, a figure and a table of all of them, trained in a moment."""

from pathlib import Path

ATTACKS = '''
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.knobs import Share
from robustbench_lab.models.defended import cross_entropy
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


@dataclass(frozen=True, kw_only=True)
class Uphill(Attack):
    """One step along the gradient; share: of the ball's radius that it goes."""

    share: Share

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        start = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(cross_entropy(model(start), y).sum(), start)
        return budget.project(x + self.share * budget.eps * budget.steepest(gradient), x)
'''
DEFENSES = '''
from dataclasses import dataclass

from torch import Tensor

from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.knobs import NotNegative


@dataclass(frozen=True, kw_only=True)
class Noisy(Defense):
    """Standard training on points with Gaussian noise of this standard deviation."""

    std: NotNegative

    def augmented(self, batch: Batch) -> Tensor:
        return (batch.x + self.std * batch.rng.normal(*batch.x.shape[1:])).clamp(0, 1)
'''
DATASETS = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from robustbench_lab.datasets.base import Dataset, ImageSet, Split


@dataclass(frozen=True, kw_only=True)
class Sides(Dataset):
    """Points of the square left (label 0) and right (label 1) of its middle, 0.1 away from it or more; 200 in each split."""

    name: ClassVar[str] = "sides"
    has_classes: ClassVar[int | None] = 2

    def _read(self, split: Split, root: Path, *, download: bool, workers: int) -> ImageSet:
        points = torch.rand(200, 2, 1, 1, generator=torch.Generator().manual_seed(int(split == "test")))
        labels = torch.arange(200) % 2
        points[:, 0, 0, 0] = 0.4 * points[:, 0, 0, 0] + 0.6 * labels
        return ImageSet(points, labels, torch.arange(200))
'''
FIGURES = """
from dataclasses import dataclass

from matplotlib.figure import Figure

from robustbench_lab.tables.drawing import TableFigure


@dataclass(frozen=True)
class Dots(TableFigure):
    size: int

    def draw(self, table, cells, output_root):
        figure = Figure()
        figure.subplots().plot([cell.value for cell in cells], "o", markersize=self.size)
        return figure
"""
WORDS = ["dataset=sides", "backbone=mlp_toy", "training=plane", "training.epochs=10", "training.batch_size=20"]
CODE = {"attacks": ATTACKS, "defenses": DEFENSES, "datasets": DATASETS, "figures": FIGURES}
CHOICES = {
    "attack/uphill": """
# python -m robustbench_lab evaluate attack=uphill
# One step, all the way. Source: none, for it is a test's.
_target_: NAME.attacks.Uphill
share: 1
""",
    "attack/uphill_half": """
# python -m robustbench_lab evaluate attack=uphill_half
# Half of it.
defaults: [uphill]
share: 0.5
""",
    "defense/noisy": """
# python -m robustbench_lab train defense=noisy
_target_: NAME.defenses.Noisy
std: 0.05
""",
    "dataset/sides": """
# python -m robustbench_lab train dataset=sides
# Points left and right of the middle.
defaults:
  - /normalise@normalise: none
  - _self_
_target_: NAME.datasets.Sides
classes: 2
channels: 2
size: 1
train_size: null
test_size: 50
subset_seed: 0
budget: {norm: l2, eps: 0.2}
""",
    "figure/dots": """
# figure: {kind: dots}
_target_: NAME.figures.Dots
size: 3
""",
    "table/theirs/sides": """
# python -m robustbench_lab reproduce 'tables=[theirs/sides]'
title: "Sides (%)"
source: ours
profile: smoke
corner: defense
metric: robust_accuracy
overrides: [WORDS, panel=none]
rows:
  - {label: standard, overrides: [defense=standard]}
  - {label: noisy, overrides: [defense=noisy]}
columns:
  - {label: clean, metric: clean_accuracy, overrides: [attack=uphill]}
  - {label: one step, overrides: [attack=uphill]}
  - {label: half a step, overrides: [attack=uphill_half]}
figure: {kind: dots}
""",
}


def write(folder: Path, name: str = "theirlab") -> Path:
    """The package `name` in a folder, which is to be in sys.path; its own folder."""
    package = folder / name
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    for module, code in CODE.items():
        (package / f"{module}.py").write_text(code)
    for choice, text in CHOICES.items():
        write_choice(package / "conf", choice, text.replace("NAME", name).replace("WORDS", ", ".join(WORDS)))
    return package


def write_choice(conf: Path, choice: str, text: str) -> Path:
    """A file of a folder of choices: `attack/mine`."""
    path = conf / f"{choice}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.lstrip("\n"))
    return path
