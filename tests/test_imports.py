"""Who may import whom, read from the syntax trees, so that each wing can be understood and replaced alone."""

import ast
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import robustbench_lab

PACKAGE = Path(robustbench_lab.__file__).parent
# From the ground up: a wing imports from the floors below its own, and from itself. The ground's modules may import each other.
FLOORS = (
    ("errors", "startup", "knobs", "intervals", "output", "progress", "randomness", "devices", "threats"),
    ("storage",),
    ("settings", "backbones", "datasets", "transforms"),
    ("models",),
    ("fronts", "attacks", "tables"),
    ("defenses", "metrics", "figures"),
    ("training",),
    ("evaluation", "report"),
    ("contract", "multirun", "new"),
    ("jobs", "library"),
    ("__main__",),
)
FLOOR = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
WITHOUT_TORCH = ("settings", "storage", "tables", "figures", "report", "new")
WITH_HYDRA = ("__main__", "multirun", "settings", "tables", "jobs")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {name_of(path): path.read_text() for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem != "__init__"}


def imported(source: str, module: str) -> set[str]:
    """Every module, with the names taken from it, that the source of `module` imports, wherever in the file, also for types alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*module.split(".")[: -node.level], *filter(None, [node.module])]) if node.level else str(node.module)
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def inside(name: str, *parents: str) -> bool:
    return any(name == parent or name.startswith(f"{parent}.") for parent in parents)


def forbidden(module: str, names: set[str]) -> set[str]:
    """Those of the names that `module`, such as attacks.pgd, must not import."""
    wing = module.partition(".")[0]
    ours = {name.removeprefix("robustbench_lab.") for name in names if name.startswith("robustbench_lab.")}
    bad = set()
    for name in ours:
        other = name.partition(".")[0]
        if other in FLOOR and other != wing and not (FLOOR[other] < FLOOR[wing] or FLOOR[other] == FLOOR[wing] == 0):
            bad.add(name)
        if wing == other == "defenses" and not inside(name, "defenses.base", module) and name != "defenses":
            bad.add(name)  # one defense does not know another
        if wing == other == "jobs" and not inside(name, module) and name != "jobs" and module != "jobs.reproduce":
            bad.add(name)  # a verb is one file; reproduce writes tables and report as the two verbs do
    if wing not in WITH_HYDRA:
        bad |= {name for name in names if inside(name, "hydra", "omegaconf")}
    if wing in WITHOUT_TORCH:
        bad |= {name for name in names if inside(name, "torch", "torchvision")}
    return bad


def circles(sources: Mapping[str, str]) -> list[set[str]]:
    """The groups of modules that import each other, by way of others too."""
    graph = {
        module: {
            other
            for name in imported(source, f"robustbench_lab.{module}")
            if (other := name.removeprefix("robustbench_lab.")) in sources and other != module
        }
        for module, source in sources.items()
    }

    def reached(module: str) -> set[str]:
        seen: set[str] = set()
        todo = [module]
        while todo:
            for other in graph[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    far = {module: reached(module) for module in graph}
    tied = {frozenset(other for other in far[module] if module in far[other]) for module in far if module in far[module]}
    return [set(group) for group in tied]


@pytest.mark.parametrize("module", SOURCES)
def test_no_forbidden_import(module):
    assert not forbidden(module, imported(SOURCES[module], f"robustbench_lab.{module}"))


def test_every_module_has_a_floor():
    assert {module.partition(".")[0] for module in SOURCES} == set(FLOOR)


def test_no_circle():
    assert not circles(SOURCES)


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("attacks.pgd", "from robustbench_lab.defenses.base import Defense"),
        ("attacks.pgd", "def f():\n    import robustbench_lab.training.loop"),
        ("attacks.pgd", "from ..jobs import train"),
        ("attacks.pgd", "from .. import defenses"),
        ("attacks.pgd", "from omegaconf import DictConfig"),
        ("attacks.pgd", "from robustbench_lab.tables.grid import Table"),
        ("knobs", "from robustbench_lab.settings.conf import CONF"),
        ("storage.files", "from robustbench_lab.settings.conf import CONF"),
        ("defenses.trades", "from robustbench_lab.defenses.feature_matching import FullpleLoss"),
        ("defenses.trades", "from robustbench_lab.defenses import feature_matching"),
        ("defenses.trades", "from . import feature_matching"),
        ("defenses.trades", "from robustbench_lab.training.loop import fit"),
        ("metrics.base", "from robustbench_lab.jobs.evaluate import job"),
        ("backbones.mlp", "from robustbench_lab.attacks import pgd"),
        ("datasets.base", "import robustbench_lab.defenses.base"),
        ("training.loop", "if TYPE_CHECKING:\n    from hydra.utils import instantiate"),
        ("training.loop", "from robustbench_lab.evaluation.loop import evaluate"),
        ("evaluation.loop", "from robustbench_lab.report.page import page"),
        ("tables.cells", "import torch.nn"),
        ("tables.cells", "from robustbench_lab.jobs.tables import write"),
        ("report.page", "import torch"),
        ("figures.curves", "def draw():\n    from torch import Tensor"),
        ("report.sections", "from omegaconf import DictConfig"),
        ("storage.records", "from torch import Tensor"),
        ("settings.build", "import torchvision"),
        ("jobs.train", "from robustbench_lab.jobs.evaluate import job"),
        ("jobs.train", "from robustbench_lab.library.evaluating import evaluate"),
        ("library.runs", "from robustbench_lab.jobs.evaluate import job"),
        ("library.runs", "from hydra import compose"),
    ],
)
def test_a_planted_violation_is_seen(module, planted):
    assert forbidden(module, imported(planted, f"robustbench_lab.{module}"))


@pytest.mark.parametrize(
    "planted",
    [
        {"a": "from robustbench_lab.b import f", "b": "from robustbench_lab.a import g"},
        {"a": "import robustbench_lab.b", "b": "from robustbench_lab import c", "c": "def f():\n    from .a import g"},
        {"a": "if TYPE_CHECKING:\n    from robustbench_lab.b import f", "b": "from robustbench_lab.a import g"},
    ],
)
def test_a_planted_circle_is_seen(planted):
    assert circles({**planted, "d": "from robustbench_lab.a import g"}) == [set(planted)]


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("attacks.pgd", "from robustbench_lab.threats import Budget\nfrom .gradients import GradientAttack\nimport torch"),
        ("defenses.trades", "from robustbench_lab.defenses.base import Batch\nfrom . import base\nimport robustbench_lab.attacks.pgd"),
        ("jobs.train", "import torch, hydra, omegaconf\nfrom robustbench_lab.training.loop import fit"),
        ("jobs.tables", "import pandas\nfrom robustbench_lab.settings.conf import compose"),
    ],
)
def test_what_is_allowed_passes(module, allowed):
    assert not forbidden(module, imported(allowed, f"robustbench_lab.{module}"))


def test_help_tables_report_and_ls_do_not_load_torch():
    """Not by way of another module either: they answer in a second."""
    modules = "robustbench_lab.__main__, robustbench_lab.jobs.tables, robustbench_lab.jobs.report, robustbench_lab.jobs.ls"
    code = f"import sys, {modules}; print(sorted({{'torch', 'torchvision', 'sklearn'}} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
