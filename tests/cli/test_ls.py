"""`ls`: what there is, with a line each."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lab.settings.conf import CONF, choice_file, choices, groups
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


def test_nothing_is_finished_yet(lab, outputs):
    assert lab("ls", "runs").out == f"0 finished runs in {outputs / 'runs'}\n"
    assert not outputs.exists()


def test_runs_of_another_folder(lab_in, trained, outputs, tmp_path):
    """Counted by what they are made of; a group after another has a line between."""
    ended = lab_in(tmp_path / "other", "ls", "runs", f"output_root={outputs}", "training")
    assert (ended.status, ended.err) == (0, "")
    runs, _, training = ended.out.partition("\n\n")
    assert runs == f"1 finished run in {outputs / 'runs'}\n  {trained.name}"
    assert training.startswith(f"training: {len(choices('training'))} choices\n")
    assert re.findall(r"^  (\w+)  +(\d+ runs?)  ", training, re.MULTILINE) == [("digits", "1 run")]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("attak", r"^error: attak: expected one of attack, .*, runs; did you mean attack\?"),
        ("seed=1", r"^error: seed=1: expected one of attack, .*, runs"),
        ("output_root=", r"^error: output_root: expected a path, a text, got ''"),
        ("--all", r"^error: --all: expected one of attack"),
    ],
)
def test_other_words_are_refused(word, said, lab):
    ended = lab("ls", word)
    assert ended.status == 2
    assert re.search(said, ended.err)
    assert ended.err.count("\n") == 1


def test_its_help(lab):
    assert "ls [GROUP ...] [output_root=FOLDER]" in lab("ls", "--help").out
    assert re.search(r"^  ls +list ", lab("--help").out, re.MULTILINE)


@pytest.mark.parametrize("group", groups())
def test_every_choice_says_what_it_is(group):
    """In a sentence, before it names its source."""
    for name in choices(group):
        told = summary(choice_file(group, name))
        assert told.endswith("."), name
        assert not told.startswith("Source"), name
        assert "python -m" not in told, name


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("# python -m robustbench_lab evaluate attack=x\n# One. Two.\na: 1  # Three.", "One."),
        ("# python -m robustbench_lab train x=y\n#   z=1\n# By A et al. 2019,\n# at .02. Two.", "By A et al. 2019, at .02."),
        ("# @package _global_\n# make x\n#\n# One\n#\n# Two.", "One"),
        ("# figure: {kind: x}\na: 1", ""),
        ("a: 1\n# One.", ""),
    ],
)
def test_the_first_sentence_behind_the_command(header, sentence, tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(header)
    assert summary(path) == sentence


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
