"""Imports that must not exist, read from the syntax trees, so that each part can be understood and replaced alone."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import robustbench_lab

PACKAGE = Path(robustbench_lab.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str, module: str) -> set[str]:
    """Every module, with the names taken from it, that the source of `module` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])]) if node.level else node.module
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def inside(name: str, parents: tuple[str, ...]) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


WITHOUT_TORCH = (
    "jobs.tables", "jobs.report", "claims", "expansion", "grid", "latex", "overrides", "pages", "planning", "profiles", "published_figures",
    "records", "table_checks", "units", "verbs",
)  # fmt: skip
# multirun holds Hydra's own callback
WITH_HYDRA = ("__main__", "config", "expansion", "grid", "jobs", "multirun", "overrides", "profiles", "table_checks", "verbs")


def forbidden(module: str, names: set[str]) -> set[str]:
    """Those of the names that `module`, such as attacks.pgd, must not import."""
    package, _, file = module.partition(".")
    rules: list[str] = []
    if package == "metrics":
        rules += ["attacks", "defenses", "training", "jobs", "config"]
    if package == "attacks":
        rules += ["defenses", "training", "jobs", "config"]
    if package == "defenses":
        rules += ["training", "jobs", "config"]
    if package in ("backbones", "datasets", "transforms"):
        rules += ["attacks", "defenses"]
    bad = {name for name in names if inside(name, tuple(f"robustbench_lab.{rule}" for rule in rules))}
    if package == "defenses" and file != "base":
        # Names of a module that is itself imported count once: robustbench_lab.defenses.base.Batch is base.
        bad |= {
            name
            for name in names
            if inside(name, ("robustbench_lab.defenses",))
            and not inside(name, ("robustbench_lab.defenses.base", f"robustbench_lab.defenses.{file}"))
            and name != "robustbench_lab.defenses"
        }
    if package not in WITH_HYDRA:
        bad |= {name for name in names if inside(name, ("hydra", "omegaconf"))}
    if module in WITHOUT_TORCH or package == "figures":
        bad |= {name for name in names if inside(name, ("torch", "torchvision"))}
    return bad


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_forbidden_import(path):
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
    assert not forbidden(module, imported(path.read_text(), f"robustbench_lab.{module}"))


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("attacks.pgd", "from robustbench_lab.defenses.base import Defense"),
        ("attacks.pgd", "def f():\n    import robustbench_lab.training"),
        ("attacks.pgd", "from robustbench_lab import config"),
        ("attacks.pgd", "from ..jobs import train"),
        ("attacks.pgd", "from .. import defenses"),
        ("attacks.pgd", "from omegaconf import DictConfig"),
        ("defenses.trades", "from robustbench_lab.defenses.feature_matching import FullpleLoss"),
        ("defenses.trades", "from robustbench_lab.defenses import feature_matching"),
        ("defenses.trades", "from . import feature_matching"),
        ("defenses.trades", "from robustbench_lab.training import fit"),
        ("defenses.base", "import robustbench_lab.config"),
        ("metrics.measures", "from robustbench_lab.jobs.evaluate import job"),
        ("backbones.mlp", "from robustbench_lab.attacks import pgd"),
        ("datasets.base", "import robustbench_lab.defenses.base"),
        ("transforms.augmentation", "from robustbench_lab.attacks.gradients import Attack"),
        ("training", "if TYPE_CHECKING:\n    from hydra.utils import instantiate"),
        ("jobs.tables", "import torch.nn"),
        ("jobs.report", "import torch"),
        ("figures.charts", "def draw():\n    from torch import Tensor"),
        ("figures.sections", "from omegaconf import DictConfig"),
        ("records", "from torch import Tensor"),
    ],
)
def test_a_planted_violation_is_seen(module, planted):
    assert forbidden(module, imported(planted, f"robustbench_lab.{module}"))


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("attacks.pgd", "from robustbench_lab.threats import Budget\nfrom .gradients import Attack\nimport torch"),
        ("defenses.trades", "from robustbench_lab.defenses.base import Batch\nfrom . import base\nimport robustbench_lab.attacks.pgd"),
        ("jobs.train", "import torch, hydra, omegaconf\nfrom robustbench_lab.training import fit"),
        ("jobs.tables", "import pandas\nfrom robustbench_lab.config import compose"),
    ],
)
def test_what_is_allowed_passes(module, allowed):
    assert not forbidden(module, imported(allowed, f"robustbench_lab.{module}"))


def test_help_tables_and_report_do_not_load_torch():
    """Not by way of another module either: they answer in a second."""
    modules = "robustbench_lab.__main__, robustbench_lab.jobs.tables, robustbench_lab.jobs.report"
    code = f"import sys, {modules}; print(sorted({{'torch', 'torchvision', 'sklearn'}} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
