"""The plugin enrols a package's choices, in a run that asks for it, and changes no other.

Each run is a process of its own: pytester forgets at its end what was imported meanwhile, and torch can be imported only once.
"""

import os
from pathlib import Path

import pytest

from robustbench_lab.new.writing import main

pytest_plugins = "pytester"
PLUGIN = "robustbench_lab.contract.pytest_plugin"
CHECKOUT = str(Path(__file__).parents[2])

NO_SEARCH = """
from dataclasses import dataclass
from robustbench_lab.attacks.base import Attack

@dataclass(frozen=True, kw_only=True)
class Lazy(Attack):
    def search(self, model, x, y, budget, rng):
        return x.clone()
"""
NO_FILES = """
from dataclasses import dataclass
from typing import ClassVar
from robustbench_lab.datasets.base import Dataset
from robustbench_lab.errors import MissingFiles

@dataclass(frozen=True, kw_only=True)
class Absent(Dataset):
    name: ClassVar[str] = "absent"

    def _read(self, split, root, **how):
        raise MissingFiles(f"there is no {root}/absent.npz")
"""

NET = """
from torch import nn

def net(classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
"""


@pytest.fixture
def mylab(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Path:
    """A package with an attack as `new` writes it, in the current folder."""
    monkeypatch.delenv("ROBUSTBENCH_LAB_PACKAGES", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(pytester.path), CHECKOUT]))
    main(["attack", "right", "--package", "mylab"])
    (pytester.path / "mylab" / "tests" / "test_attack_right.py").unlink()
    capsys.readouterr()
    return pytester.path / "mylab"


def choice(mylab: Path, group: str, name: str, text: str, code: str = "") -> None:
    path = mylab / "conf" / group / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    (mylab / f"{name}.py").write_text(code)


def test_each_clause_of_each_choice_is_a_test(pytester: pytest.Pytester, mylab: Path) -> None:
    """Of choices that are right, that break clauses, that cannot be built, that need words, and whose files are not there."""
    choice(mylab, "attack", "lazy", "_target_: mylab.lazy.Lazy", NO_SEARCH)
    choice(mylab, "attack", "nowhere", "_target_: mylab.nowhere.Nothing")
    choice(mylab, "attack", "unclosed", "_target_: [")
    choice(mylab, "attack", "nan", "_target_: mylab.lazy.Lazy")
    choice(mylab, "backbone", "theirs", "defaults: [callable]", NET)
    knobs = "classes: 2\nchannels: 1\nsize: 4\ntrain_size: null\ntest_size: null\nsubset_seed: 0\nbudget: {norm: linf, eps: 0.1}\n"
    head = "# python -m robustbench_lab train dataset=absent\n_target_: mylab.absent.Absent\n"
    choice(mylab, "dataset", "absent", head + knobs, NO_FILES)
    words = "backbone=theirs backbone.call=mylab.theirs.net 'backbone.arguments={classes: ${dataset.classes}}'"
    pytester.makeini(f"[pytest]\nrobustbench_lab_packages = mylab\nrobustbench_lab_words =\n  {words}\n")

    ended = pytester.runpytest_subprocess("-p", PLUGIN, "-v", "-rs", "-k", "not has_one_result")
    failed = ["breaks_images[linf]", "breaks_images[l2]", "is_told_that_queries_give_no_gradient"]
    outcomes = ended.parseoutcomes()
    told = [line.rpartition(" ")[0].split(" ")[:2] for line in ended.outlines if line.startswith("robustbench_lab::")]
    results = {nodeid.removeprefix("robustbench_lab::"): result for nodeid, result in told}
    assert {key: outcomes[key] for key in ("passed", "failed", "skipped")} == {
        "passed": sum(result == "PASSED" for result in results.values()),
        "failed": len(failed) + 3,
        "skipped": 7,
    }
    assert {name for name, result in results.items() if result == "FAILED"} == {
        *(f"attack::{name}[can_be_built]" for name in ("nowhere", "unclosed", "nan")),
        *(f"attack::lazy[{name}]" for name in failed),
    }
    assert results["attack::right[breaks_images[linf]]"] == "PASSED"
    assert results["attack::lazy[stays_inside_and_leaves_all_as_it_was[linf-0.3]]"] == "PASSED"
    assert results["backbone::theirs[maps_usual_images_to_logits]"] == "PASSED"
    assert results["dataset::absent[asks_for_every_knob]"] == "PASSED"
    assert results["dataset::absent[reads_the_same_twice]"] == "SKIPPED"
    assert outcomes["deselected"] > 0
    ended.stdout.fnmatch_lines(
        ["attack=lazy: breaks_images[[]linf]: it did no more to the images than noise would", "(the clause: It finds*"]
    )
    ended.stdout.fnmatch_lines(["attack._target_: *mylab.nowhere.Nothing*"])
    ended.stdout.fnmatch_lines(["SKIPPED * there is no */absent.npz"])
    ended.stdout.no_fnmatch_line("*demand(*")  # the way to it is no news


def test_a_package_that_is_not_there(pytester: pytest.Pytester, mylab: Path) -> None:
    ended = pytester.runpytest_subprocess("-p", PLUGIN, "--robustbench-lab", "otherlab")
    assert ended.ret == pytest.ExitCode.USAGE_ERROR
    ended.stderr.fnmatch_lines(["ERROR: --robustbench-lab otherlab: expected a package that can be imported; run `python -m pytest`*"])


def test_a_package_without_a_choice(pytester: pytest.Pytester, mylab: Path) -> None:
    """Green, it would say that something had been tried."""
    (mylab / "conf" / "attack" / "right.yaml").unlink()
    ended = pytester.runpytest_subprocess("-p", PLUGIN, "--robustbench-lab", "mylab")
    assert ended.ret == pytest.ExitCode.USAGE_ERROR
    ended.stderr.fnmatch_lines(["ERROR: --robustbench-lab mylab: expected a choice in */mylab/conf, such as attack/mine.yaml, *, got none"])


def test_installed_and_named_it_is_one_plugin_which_leaves_a_run_that_does_not_ask(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = pytester.path / "site" / "a_distribution-1.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: a-distribution\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[pytest11]\n{PLUGIN} = {PLUGIN}\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(installed.parent), CHECKOUT]))
    monkeypatch.delenv("ROBUSTBENCH_LAB_PACKAGES", raising=False)
    unchanged = "assert 'torch' not in sys.modules and 'ROBUSTBENCH_LAB_PACKAGES' not in os.environ"
    pytester.makepyfile(
        f"import os, sys\ndef test(pytestconfig):\n    assert not pytestconfig.getini('robustbench_lab_packages')\n    {unchanged}"
    )
    for words in ([], ["-p", PLUGIN]):
        pytester.runpytest_subprocess(*words).assert_outcomes(passed=1)
    pyproject = Path(CHECKOUT, "pyproject.toml").read_text()
    assert f'[project.entry-points.pytest11]\n"{PLUGIN}" = "{PLUGIN}"\n' in pyproject
