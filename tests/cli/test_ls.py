"""`ls`: what there is, with a line each."""

import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lab.settings.conf import CONF, choices
from robustbench_lab.settings.yaml_files import summary


def test_groups_and_what_is_finished(lab, trained, outputs):
    ended = lab("ls")
    assert ended.status == 0
    lines = dict(line.split(maxsplit=1) for line in ended.out.splitlines() if line.startswith("  "))
    assert lines["attack"] == str(len(choices("attack")))
    assert f"1 finished run in {outputs / 'runs'}" in ended.out


def test_choices_with_a_line_each(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    ended = lab("ls", "defense", "attack", "backbone")
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.startswith("  ")}
    assert lines["standard"].split()[1:3] == ["1", "run"]
    assert "No defense: cross-entropy on the training images" in lines["standard"]
    assert lines["small_cnn"].split()[1:3] == ["1", "run"]
    assert lines["fgsm"].split()[1:3] == ["1", "record"]
    assert set(choices("defense")) <= lines.keys()


def test_runs_and_tables(lab, trained, tiny):
    assert "robust" not in lab("ls", "runs").out
    lab("evaluate", *tiny, "attack=fgsm", "panel=none", "budget.eps=0.3")
    _, line = lab("ls", "runs").out.splitlines()
    assert line.split()[0] == trained.name
    assert "(fgsm, linf 0.3, n = 40)" in line
    assert "fm/table1" in lab("ls", "table").out


@pytest.mark.parametrize(("words", "said"), [(["attak"], "did you mean attack?"), (["seed=1"], "seed=1: expected one of")])
def test_what_is_no_group(lab, words, said):
    ended = lab("ls", *words)
    assert ended.status == 2
    assert said in ended.err


@pytest.mark.parametrize("group", ["attack", "backbone", "dataset", "defense", "front", "metric", "panel", "training"])
def test_every_choice_says_what_it_is(group):
    for name in choices(group):
        assert len(summary(CONF / group / f"{name}.yaml")) > 3, name


def test_it_needs_neither_torch_nor_a_composed_config(tmp_path: Path) -> None:
    code = (
        "import sys; from robustbench_lab.jobs.ls import main; main(['attack', 'runs', 'table'])\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"ROBUSTBENCH_LAB_OUTPUTS": str(tmp_path), "PYTHONPATH": str(CONF.parent)},
    )
    assert done.returncode == 0, done.stderr
    assert "autoattack" in done.stdout
