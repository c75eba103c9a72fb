"""What `new` writes passes its own tests and runs, as the command line makes it."""

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustbench_lab.new.writing import GROUPS

CHECKOUT = str(Path(__file__).parents[2])


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """Another test has a package of this name elsewhere."""
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] == "mylab"]:
        del sys.modules[name]


def test_each_group_s_files_pass_and_run(lab_in: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = tmp_path / "outputs"
    for group in GROUPS:
        ended = lab_in(outputs, "new", group, f"my_{group}", "--package", str(tmp_path / "mylab"))
        assert (ended.status, ended.err) == (0, "")

    monkeypatch.delenv("ROBUSTBENCH_LAB_PACKAGES", raising=False)  # each of their tests says it
    monkeypatch.setenv("PYTHONPATH", CHECKOUT)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "mylab"]
    tested = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert re.search(r"^\d\d passed in ", tested.stdout, re.MULTILINE), tested.stdout

    monkeypatch.setenv("ROBUSTBENCH_LAB_PACKAGES", "mylab")
    monkeypatch.syspath_prepend(tmp_path)
    words = ["dataset=my_dataset", "backbone=my_backbone", "defense=my_defense", "training.epochs=2", "dataset.test_size=100", "device=cpu"]
    ended = lab_in(outputs, "evaluate", "train=true", "attack=my_attack", "panel=none", *words)
    assert ended.status == 0, ended.err
    assert "my_attack-white-" in ended.err
    assert "my_dataset-my_backbone-my_defense-s0-" in ended.err
    ended = lab_in(outputs, "reproduce", "tables=[mylab/my_table]", "--dry-run")
    assert ended.status == 0, ended.err
    assert "4 evaluations: 0 finished, 4 missing" in ended.out + ended.err


def test_a_refusal_is_one_line(lab_in: Callable[..., Any], tmp_path: Path) -> None:
    ended = lab_in(tmp_path, "new", "attack", "pgd", "--package", str(tmp_path / "otherlab"))
    assert ended.status == 2
    assert ended.err.startswith("error: pgd: ")
    assert ended.err.count("\n") == 1
    assert "new attack|defense" in lab_in(tmp_path, "new", "--help").out
    assert "  new        write the files" in lab_in(tmp_path, "--help").out
