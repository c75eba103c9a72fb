"""The scripts that a person runs by hand: that they run, and what they refuse."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fake_records
import numpy as np
import pytest

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.models.defended import Defended
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.reading import read_table

SCRIPTS = Path(__file__).parents[2] / "scripts"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, timeout=300)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`benchmark("distances", "--scale", "0.01")`: what scripts/benchmark.py prints, on the CPU."""
    monkeypatch.syspath_prepend(SCRIPTS)

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, "--device", "cpu"])
        importlib.import_module("benchmark").main()
        return capsys.readouterr().out

    return call


def test_the_benchmark_prints_every_row_with_its_ratio(benchmark):
    printed = benchmark("train", "--backbone", "small_cnn", "--batch", "32", "--steps", "1", "--repeats", "1")
    whole, defenses = ([line for line in part.splitlines() if line.startswith("|")] for part in printed.split("\n\n| defense"))
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in whole]
    assert [row[0].split(",")[0] for row in rows[2:]] == ["plain loop (fp32)", *["ours"] * 3, *["floor"] * 3]
    assert rows[2][4] == "1.00"
    assert all(float(entry) > 0 for row in rows[2:] for entry in row[1:])
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in defenses[1:]]
    assert [row[0] for row in rows[:4]] == ["standard", "adversarial_training", "adversarial_training_pni", "fm"]
    assert {"pni", "pni_input", "pni_activation_a", "pni_activation_b", "learn2perturb", "adv_bnn", "rse"} == {row[0] for row in rows[4:]}
    assert rows[0][2:4] == ["1", "1.00"]
    assert rows[0][5] == "1.00"
    assert {row[0]: int(row[2]) for row in rows}["pni"] == 1 + 1 + 2  # the labels, a step of the search, both halves of the loss
    assert all(float(entry) > 0 for row in rows for entry in row[3:])


def test_the_benchmark_of_distances_agrees_with_scikit_learn(benchmark):
    printed = benchmark("distances", "--scale", "0.01")
    assert "100 images against 600" in printed
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")]
    assert [row[0] for row in rows[2:]] == ["ours", "scikit-learn"]
    assert rows[3][2] == "1.00"
    assert float(rows[2][3]) < 1e-5


def test_the_attack_benchmark_prints_every_peer(
    digits: tuple[ImageSet, ImageSet], digits_model: Defended, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the digits, a few images each; what it measures there means nothing."""
    for peer in ("foolbox", "art", "pyautoattack"):
        pytest.importorskip(peer, reason="the parity extra is not installed")
    monkeypatch.syspath_prepend(SCRIPTS)
    benchmark = importlib.import_module("benchmark_attacks")
    monkeypatch.setattr(benchmark, "trained", lambda name, device: (digits_model, digits[1]))
    benchmark.attacks(["pgd20", "deepfool"], scale=0.02, repeats=1, device="cpu")
    rows = [
        [entry.strip() for entry in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines() if line.startswith("|")
    ]
    assert [row[1] for row in rows[2:]] == ["Foolbox", "ART", "ours", "ours, search in bf16", "Foolbox", "ART", "ours"]
    assert "PGD-20; undefended CIFAR-10 ResNet-20; linf 0.03137; n = 5" in rows[2][0]
    for row in rows[2:]:
        assert float(row[4]) > 0
        assert bool(row[5]) == bool(row[6]) == row[1].startswith("ours")
    assert "(aim 8)" in rows[4][5]
    with pytest.raises(SystemExit, match=r"error: --only: expected some of pgd20, .*, got pgd2"):
        benchmark.attacks(["pgd2"], 1, 1, "cpu")
    digits_model._fast.clear()
    digits_model.requires_grad_(False)


def test_publish_refuses_a_table_with_missing_cells(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(tmp_path))
    monkeypatch.syspath_prepend(SCRIPTS)
    publish = importlib.import_module("publish_reference").publish
    with pytest.raises(SystemExit, match="smoke/digits misses 10 cells, the first is undefended, clean; run make reproduce-tables"):
        publish("smoke/digits", "paper", "", False, tmp_path)
    command = "make reproduce-tables TABLES=efficient_defenses/table1 PROFILE=quick"
    with pytest.raises(SystemExit, match=rf"the first is CNN\+ReLU, CNN\+ReLU; run {command}"):
        publish("efficient_defenses/table1", "quick", "", False, tmp_path)


@pytest.fixture
def figure_with_one_picture(written, monkeypatch, tmp_path) -> list[Path]:
    """A measured table of planes, of which only the first row's evaluation has one; the folders of its evaluations."""
    monkeypatch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.syspath_prepend(SCRIPTS)
    name = written(columns=[{"label": "FGSM"}], figure={"kind": "planes"}, published={"kind": "none"})
    cells = cells_of(read_table(name), tmp_path / "outputs")
    fake_records.fill_plausibly(cells, tmp_path / "outputs")
    folders = [cell.evaluation.folder(tmp_path / "outputs") for cell in cells]
    x, y = np.meshgrid(np.linspace(0, 1, 11), np.linspace(0, 1, 11))
    points = np.stack([x.ravel(), y.ravel()], 1)
    labels = np.arange(len(points)) % 2
    np.savez(folders[0] / "plane.npz", probability=x, points=points, labels=labels, extra=points, extra_labels=labels)
    for folder in folders:
        np.savez(folder / "outcome.npz", robust=np.zeros(3))
    return folders


def test_publish_copies_pictures_where_there_are_some(figure_with_one_picture, tmp_path):
    publish = importlib.import_module("publish_reference").publish
    target = publish("paper/grid", "paper", "", True, tmp_path / "reference")
    assert target == tmp_path / "reference" / "paper" / "grid"
    first, second = (target / "runs" / folder.parents[1].name / "evaluate" / folder.name for folder in figure_with_one_picture)
    assert {file.name for file in first.iterdir()} == {"record.json", "outcome.npz", "plane.npz"}
    assert {file.name for file in second.iterdir()} == {"record.json", "outcome.npz"}
    assert {file.name for file in first.parents[1].iterdir()} == {"run.json", "metrics.jsonl", "evaluate"}
    assert {file.name for file in target.iterdir()} == {"grid.md", "grid.csv", "grid.tex", "grid.png", "grid.svg", "runs"}


def test_publish_leaves_what_was_published_until_all_is_there(figure_with_one_picture, tmp_path):
    publish = importlib.import_module("publish_reference").publish
    before = tmp_path / "reference" / "paper" / "grid" / "of_before.md"
    before.parent.mkdir(parents=True)
    before.touch()
    outcome = figure_with_one_picture[1] / "outcome.npz"
    outcome.rename(outcome.with_name("elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"outcome\.npz"):
        publish("paper/grid", "paper", "", True, tmp_path / "reference")
    assert [path.name for path in (tmp_path / "reference").rglob("*")] == ["paper", "grid", "of_before.md"]
    outcome.with_name("elsewhere").rename(outcome)
    publish("paper/grid", "paper", "", True, tmp_path / "reference")
    assert not before.exists()
    assert [path.name for path in (tmp_path / "reference" / "paper").iterdir()] == ["grid"]


def test_a_run_that_tables_share_counts_once(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    seconds = importlib.import_module("reference_seconds")
    for table in ("a/one", "a/two", "b/one"):
        for name, file, took in (("shared", "run.json", 3600), (table[-3:], "run.json", 60), ("shared/evaluate/pgd", "record.json", 7)):
            folder = tmp_path / table / "runs" / name
            folder.mkdir(parents=True)
            record = {"schema": 1, "commit": "c0ffee", "seconds": took, "choices": {"dataset": f"set of {name[-3:]}"}}
            (folder / file).write_text(json.dumps(record))
    seconds.main(["a/*"], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "Made by `python scripts/reference_seconds.py 'a/*'`."
    assert lines[6:] == [
        "| a/one | 2 | 3660 | 1 | 7 | 1.0 |",
        "| a/two | 2 | 3660 | 1 | 7 | 1.0 |",
        "| all of them, each once | 3 | 3720 | 1 | 7 | 1.0 |",
        "",
        "Trained on set of one, set of red, set of two; what was not measured, or is published elsewhere, is not in the total.",
    ]
    with pytest.raises(SystemExit, match=r"nothing in .* matches c/.*; there are a/one, a/two, b/one"):
        seconds.main(["c/*"], tmp_path)


def test_a_point_of_the_plane_is_judged_by_its_column_and_row(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    findings = importlib.import_module("efficient_defenses_findings")
    probability = np.zeros((11, 11))
    probability[2, 9] = 0.8  # row: y, column: x
    points = np.array([[0.9, 0.2], [0.88, 0.21], [0.2, 0.9], [0.9, 0.2], [0.5, 0.5]])
    wrong = findings.wrong(probability, points, labels=np.array([1, 1, 1, 0, 0]))
    assert wrong.tolist() == [False, False, True, True, False]


def test_figures_of_the_same_images_leave_out_what_one_row_lacks(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    findings = importlib.import_module("efficient_defenses_findings")
    monkeypatch.setattr(findings, "REFERENCE", tmp_path)
    for name, robustness in {"gda": [1, 2, np.nan, 4], "standard": [np.nan, 3, 3, 5], "vat": [np.nan, np.nan, np.nan, 1]}.items():
        folder = tmp_path / "table" / "runs" / name / "evaluate" / "pgd-1"
        folder.mkdir(parents=True)
        choices = {"dataset": "mnist", "defense": name}
        (folder / "record.json").write_text(json.dumps({"schema": 1, "run": {"choices": choices}}))
        sizes = {"metric.empirical_robustness": np.array(robustness), "metric.training_set_distance": 10 * np.array(robustness)}
        np.savez(folder / "outcome.npz", **sizes)
    assert list(findings.of_the_same_images("table", "pgd-*", of=("gda", "standard"))) == [
        "- mnist, gda: 3.0000, 30.000 (n = 2)",
        "- mnist, standard: 4.0000, 40.000 (n = 2)",
    ]
    assert len(list(findings.of_the_same_images("table", "pgd-*"))) == 3


def test_costs_stand_beside_the_undefended_runs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    findings = importlib.import_module("efficient_defenses_findings")
    monkeypatch.setattr(findings, "REFERENCE", tmp_path)
    for name, images, took in (("gda", 400, (8, 8, 40, 8)), ("standard", 100, (9, 2))):
        folder = tmp_path / "table" / "runs" / name
        folder.mkdir(parents=True)
        choices = {"dataset": "mnist", "defense": name}
        (folder / "run.json").write_text(json.dumps({"schema": 1, "choices": choices, "seconds": sum(took)}))
        epochs = [json.dumps({"seconds": seconds, "images_per_second": images / seconds}) for seconds in took]
        (folder / "metrics.jsonl").write_text("\n".join(epochs) + "\n")
    assert list(findings.costs("table")) == [
        "- mnist, gda: 4 epochs of 400 images; 64 s, 5.8 times; 32 s, 8.0 times",
        "- mnist, standard: 2 epochs of 100 images; 11 s, 1.0 times; 4 s, 1.0 times",
    ]


@pytest.mark.parametrize(("page", "name"), [("seconds.md", "reference_seconds.py"), ("findings.md", "efficient_defenses_findings.py")])
def test_a_published_page_is_what_its_command_prints(page, name):
    path = SCRIPTS.parent / "outputs" / "reference" / "efficient_defenses" / page
    command = re.search(rf"`python scripts/{name}(.*)`", path.read_text())
    assert command is not None
    ended = script(name, *shlex.split(command[1]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == path.read_text()


def test_every_published_record_was_made_by_committed_code():
    records = sorted((SCRIPTS.parent / "outputs" / "reference").glob("**/record.json"))
    assert records
    commits = {path: json.loads(path.read_text())["commit"] for record in records for path in (record, record.parents[2] / "run.json")}
    assert not {str(path): commit for path, commit in commits.items() if not commit or "+changes" in commit}
