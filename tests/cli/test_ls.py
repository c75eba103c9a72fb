"""`ls`: every choice says what it is, tables and runs are listed, and what is not there is told."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from robustbench_lab.settings.conf import CONF, choice_file, choices, groups
from robustbench_lab.settings.yaml_files import summary

Lab = Callable[..., Any]


@pytest.mark.parametrize("group", groups())
def test_each_choice_of_ours_says_what_it_is(group: str) -> None:
    for choice in choices(group):
        path = choice_file(group, choice)
        assert path is not None
        told = summary(path)
        assert told.endswith("."), path
        assert not told.startswith("Source"), path
        assert "python -m" not in told, path


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
def test_the_first_sentence_behind_the_command(header: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(header)
    assert summary(path) == sentence


def test_nothing_is_finished_yet(lab: Lab, outputs: Path) -> None:
    ended = lab("ls")
    assert (ended.status, ended.err) == (0, "")
    assert re.search(rf"^  attack +{len([*(CONF / 'attack').glob('*.yaml')])}$", ended.out, re.MULTILINE)
    assert f"0 finished runs in {outputs / 'runs'}\n" in ended.out
    assert lab("ls", "runs").out == f"0 finished runs in {outputs / 'runs'}\n"
    assert not outputs.exists()


def test_a_finished_run_is_counted_without_a_record_and_elsewhere(
    lab: Lab, lab_in: Lab, trained: Path, outputs: Path, tmp_path: Path
) -> None:
    for ended in (lab("ls", "runs", "training"), lab_in(tmp_path / "other", "ls", "runs", f"output_root={outputs}", "training")):
        assert (ended.status, ended.err) == (0, "")
        runs, _, training = ended.out.partition("\n\n")
        assert runs == f"1 finished run in {outputs / 'runs'}\n  {trained.name}"
        assert training.startswith(f"training: {len(choices('training'))} choices\n")
        assert re.search(r"^  digits  +1 run  ", training, re.MULTILINE)
        assert training.count(" run ") == 1


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("atack", r"^error: atack: expected one of attack, .*, runs; did you mean attack\? \(python -m robustbench_lab ls \[GROUP"),
        ("seed=1", r"^error: seed=1: expected one of attack, .*, runs"),
        ("output_root=", r"^error: output_root: expected a path, a text, got ''"),
        ("--all", r"^error: --all: expected one of attack"),
    ],
)
def test_other_words_are_refused(word: str, said: str, lab: Lab) -> None:
    ended = lab("ls", word)
    assert ended.status == 2
    assert re.search(said, ended.err)
    assert ended.err.count("\n") == 1


def test_its_help(lab: Lab) -> None:
    assert "ls [GROUP ...] [output_root=FOLDER]" in lab("ls", "--help").out
    assert "  ls         list choices, tables and finished runs\n" in lab("--help").out
