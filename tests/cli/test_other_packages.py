"""Another package's attack, defense, dataset, figure and table, and choices of a folder, through every verb."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_package import WORDS, write_choice

Lab = Callable[..., Any]
RUN = [*WORDS, "device=cpu"]


@pytest.fixture(autouse=True)
def _no_tables_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their folder is replaced by an empty one, others' stay; all of ours take their time to be read."""
    (tmp_path / "tables").mkdir()
    monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "tables"))


def test_a_package_is_trained_evaluated_tabulated_and_reported(lab: Lab, outputs: Path, other_package: Path) -> None:
    """`reproduce` makes what its table misses; the verbs by themselves then find all of it finished."""
    ended = lab("reproduce", "tables=[theirs/sides]", "device=cpu", "reference=false")
    assert ended.status == 0, ended.err
    records = [json.loads(path.read_text()) for path in outputs.glob("runs/*/evaluate/*/record.json")]
    told = {(record["run"]["choices"]["defense"], record["choices"]["attack"]): record for record in records}
    assert {*told} == {(defense, attack) for defense in ("standard", "noisy") for attack in ("uphill", "uphill_half")}
    for defense in ("standard", "noisy"):
        clean, half, whole = (
            told[defense, "uphill"]["clean_accuracy"], told[defense, "uphill_half"]["robust_accuracy"],
            told[defense, "uphill"]["robust_accuracy"],
        )  # fmt: skip
        assert clean >= 0.9
        # A border at 0.5 and sides from 0.1 to 0.4: 0.1 crosses for none, or a few where the border leans; 0.2 for every third.
        assert clean - 0.15 <= half <= clean
        assert 0.45 <= whole <= 0.85
    page = (outputs / "tables" / "theirs" / "sides.md").read_text()
    assert page.count("![Sides (%)](sides.png)") == 1
    for (defense, attack), record in told.items():
        column = "one step" if attack == "uphill" else "half a step"
        robust = f"{100 * record['robust_accuracy']:.2f}"
        assert re.search(rf"^\| {defense} +\| {column} +\| robust accuracy, % +\| {robust} ", page, re.MULTILINE)
    assert "Sides (%)" in (outputs / "report" / "index.html").read_text()

    again = lab("train", *RUN, "defense=noisy")
    assert again.status == 0
    assert "finished already" in again.err
    again = lab("evaluate", *RUN, "defense=noisy", "attack=uphill", "panel=none")
    assert "finished already" in again.err
    assert ", uphill, uphill_half" in lab("evaluate", "--help").out

    listed = lab("ls", "runs", "attack", "defense", "table")
    assert listed.status == 0, listed.err
    assert f"2 finished runs in {outputs / 'runs'}" in listed.out
    accuracies = [f"{100 * told['noisy', 'uphill'][key]:.2f}" for key in ("clean_accuracy", "robust_accuracy")]
    line = r"^  sides-mlp_toy-noisy-s0-\w+ +clean {} % +robust {} % \(uphill, l2 0\.2, n = 50\)$".format(*accuracies)
    assert re.search(line, listed.out, re.MULTILINE)
    assert re.search(r"^  uphill_half +2 records +\[theirlab\]  Half of it\.$", listed.out, re.MULTILINE)
    assert re.search(r"^  noisy +1 run +\[theirlab\]$", listed.out, re.MULTILINE)
    assert re.search(r"^  theirs/sides +\[theirlab\]  Sides \(%\)$", listed.out, re.MULTILINE)
    assert re.search(r"^  pgd  +Projected gradient descent", listed.out, re.MULTILINE)


def test_a_folder_goes_with_the_jobs_of_a_table(lab: Lab, outputs: Path, other_package: Path, tmp_path: Path) -> None:
    """A table of a folder, with an attack of that folder: every verb that is told of it, and no other."""
    table = (other_package / "conf" / "table" / "theirs" / "sides.yaml").read_text()
    words = table.replace("Sides (%)", "Quarter (%)").replace("uphill_half", "uphill_quarter").replace("figure: {kind: dots}\n", "")
    write_choice(tmp_path / "choices", "table/theirs/quarter", words)
    write_choice(tmp_path / "choices", "attack/uphill_quarter", "# A quarter of it.\ndefaults: [uphill]\nshare: 0.25\n")
    folder = f"--config-dir={tmp_path / 'choices'}"
    ended = lab("reproduce", "tables=[theirs/quarter]", "device=cpu", "report=false", folder)
    assert ended.status == 0, ended.err
    assert len([*outputs.glob("runs/*/evaluate/uphill_quarter-*/record.json")]) == 2
    ended = lab("tables", "tables=[theirs/quarter]", f"hydra.searchpath=[file://{tmp_path / 'choices'}]")
    assert "Quarter (%)" in ended.out
    assert lab("report", "reference=false", folder).status == 0
    assert "Quarter (%)" in (outputs / "report" / "index.html").read_text()
    assert f"[{tmp_path / 'choices'}]  A quarter of it." in lab("ls", "attack", folder).out
    ended = lab("evaluate", *RUN, "attack=uphill_quarter")
    assert ended.status == 2
    assert "got 'uphill_quarter'; did you mean uphill" in ended.err


def test_what_their_code_raises_is_told(lab: Lab, outputs: Path, other_package: Path) -> None:
    """By its own words, once, for each job, in a list; not as a process that was killed."""
    path = other_package / "datasets.py"
    path.write_text(path.read_text().replace("labels = torch.arange(200) % 2", "labels = nothing"))
    ended = lab("reproduce", "tables=[theirs/sides]", "device=cpu", "report=false")
    assert ended.status == 1
    listed = ended.err.rpartition("2 jobs failed:")[2]
    assert listed.count("NameError: name 'nothing' is not defined") == 2
    assert "process killed" not in ended.err
    assert [path.parent.name for path in sorted(outputs.glob("sweeps/*/*/error.json"))] == ["0", "1"]


@pytest.mark.parametrize("verb", ["train", "evaluate", "check", "tables", "reproduce", "report", "ls"])
def test_a_package_that_is_not_there_stops_every_verb(verb: str, lab: Lab, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_LAB_PACKAGES", "nowhere")
    ended = lab(verb)
    assert ended.status == 2
    assert ended.err.startswith("error: ROBUSTBENCH_LAB_PACKAGES: ")
    assert ended.err.count("\n") == 1
    assert not outputs.exists()
