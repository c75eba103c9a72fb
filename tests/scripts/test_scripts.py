"""The scripts that a person runs by hand: that they run, and what they refuse."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fake_records
import numpy as np
import pytest

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.jobs.tables import csv_of, table_file
from robustbench_lab.models.defended import Defended
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.tables.cells import cells_of, filled
from robustbench_lab.tables.pages import latex, markdown
from robustbench_lab.tables.reading import published_tables, read_table, reshaped
from robustbench_lab.tables.view import view_of

SCRIPTS = Path(__file__).parents[2] / "scripts"
REFERENCE = SCRIPTS.parent / "outputs" / "reference"


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


def test_the_benchmark_of_deep_defense_prints_a_ratio_for_each_network(benchmark):
    printed = benchmark("deep_defense", "--batch", "4", "--repeats", "1")
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("| deep")]
    assert [row[0] for row in rows] == ["deep_defense_mlp", "deep_defense_lenet", "deep_defense_convnet"]
    assert all(float(ratio) > 0 for *_, ratio, _ in rows)
    assert all(1 <= float(iterations) <= 5 for *_, iterations in rows)


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


def publisher(name: str, outputs: Path, reference: Path, profile: str = "paper", **how: bool) -> list[Path]:
    module = importlib.import_module("publish_reference")
    return module.publish(reshaped(read_table(name), profile), outputs, reference, allow_changes=True, **how)


def test_publish_refuses_a_table_with_missing_cells(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(SCRIPTS)
    with pytest.raises(SystemExit, match="smoke/digits misses 10 cells, the first is undefended, clean; run make reproduce-tables"):
        publisher("smoke/digits", tmp_path, tmp_path)
    command = "make reproduce-tables TABLES=efficient_defenses/table1 PROFILE=quick"
    with pytest.raises(SystemExit, match=rf"the first is CNN\+ReLU, CNN\+ReLU; run {command}"):
        publisher("efficient_defenses/table1", tmp_path, tmp_path, "quick")


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
        fake_records.outcome(folder)
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_publish_packs_each_run_and_evaluation_once(figure_with_one_picture, tmp_path):
    outputs, reference = tmp_path / "outputs", tmp_path / "reference"
    pages = publisher("paper/grid", outputs, reference)
    assert {path.name for path in pages} == {"grid.md", "grid.csv", "grid.tex", "grid.png", "grid.svg"}
    runs = [folder.parents[1].name for folder in figure_with_one_picture]
    assert sorted(path.name for path in (reference / "runs").iterdir()) == sorted(runs)
    for run in runs:
        files = {path.name for path in (reference / "runs" / run).iterdir()}
        assert files == {"run.json", "metrics.jsonl", "evaluations.jsonl", "evaluations.npz"}
    first, second = (RunFolder(reference / "runs" / folder.parents[1].name).pack.files(folder.name) for folder in figure_with_one_picture)
    assert (first, second) == (["outcome.npz", "plane.npz"], ["outcome.npz"])
    before = contents(reference)
    publisher("paper/grid", outputs, reference)
    assert contents(reference) == before, "the same again is the same"
    publisher("paper/grid", reference, reference)
    assert contents(reference) == before, "and from what is published"


def test_publish_adds_to_what_is_published(figure_with_one_picture, tmp_path):
    """Rows that were measured elsewhere need not be measured again; what is missing in both is told, or said on the page."""
    outputs, reference = tmp_path / "outputs", tmp_path / "reference"
    first, second = (folder.parents[1] for folder in figure_with_one_picture)
    second.rename(tmp_path / second.name)
    with pytest.raises(SystemExit, match="paper/grid misses 1 cells"):
        publisher("paper/grid", outputs, reference)
    assert not reference.exists()
    pages = publisher("paper/grid", outputs, reference, partial=True)
    assert "Missing cells" in pages[0].read_text()
    first.rename(tmp_path / first.name)
    (tmp_path / second.name).rename(second)
    publisher("paper/grid", outputs, reference)
    assert "Missing cells" not in pages[0].read_text()
    assert {path.name for path in (reference / "runs").iterdir()} == {first.name, second.name}


def test_publish_tells_what_is_known_at_a_smaller_size(written, monkeypatch, tmp_path):
    """On a page without a figure of its own, which follows when the smaller table is published."""
    monkeypatch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.syspath_prepend(SCRIPTS)
    outputs, reference = tmp_path / "outputs", tmp_path / "reference"
    grid = tmp_path / "table" / "paper" / "grid.yaml"
    written(profile="quick", title="A small one", overrides=["backbone=mlp", "attack=fgsm"], published={"kind": "none"})
    small = grid.parents[1] / "quick" / "small.yaml"
    small.parent.mkdir()
    grid.rename(small)
    name = written(smaller=[{"table": "quick/small", "rows": {"plain": ["plain"]}, "columns": {"FGSM": "FGSM"}}])
    (page, *_) = publisher(name, outputs, reference, partial=True)
    assert "smaller size" not in page.read_text()
    cells = cells_of(read_table("quick/small"), outputs)
    fake_records.fill_plausibly(cells, outputs)
    for cell in cells:
        fake_records.outcome(cell.evaluation.folder(outputs))
    pages = publisher("quick/small", outputs, reference)
    assert page in pages
    assert "| [quick/small](../quick/small.md) |" in page.read_text()
    assert (page.parent / "../quick/small.md").resolve() in pages


def test_publish_takes_along_what_metrics_are_read_from(written, monkeypatch, tmp_path):
    """One evaluation stands behind both columns, of which the last does not look at the ray."""
    monkeypatch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.syspath_prepend(SCRIPTS)
    columns = [{"label": "eps", "metric": {"name": "eps_at_accuracy", "at": 50}}, {"label": "clean", "metric": "clean_accuracy"}]
    words = ["attack=fgsm", "attack_misclassified=true", "keep=[ray]"]
    name = written(overrides=words, columns=columns, published={"kind": "none"})
    cells = cells_of(read_table(name), tmp_path / "outputs")
    fake_records.fill_plausibly(cells, tmp_path / "outputs")
    for cell in cells:
        folder = cell.evaluation.folder(tmp_path / "outputs")
        fake_records.outcome(folder)
        fake_records.ray(folder, [0.2, 0.7], 8)
    publisher(name, tmp_path / "outputs", tmp_path / "reference")
    assert cells_of(read_table(name), tmp_path / "reference")[0].value == cells_of(read_table(name), tmp_path / "outputs")[0].value > 0


def test_publish_leaves_what_was_published_until_all_is_there(figure_with_one_picture, tmp_path):
    outputs, reference = tmp_path / "outputs", tmp_path / "reference"
    outcome = figure_with_one_picture[1] / "outcome.npz"
    outcome.rename(outcome.with_name("elsewhere"))
    with pytest.raises(SystemExit, match=r"outcome\.npz is gone"):
        publisher("paper/grid", outputs, reference)
    assert not reference.exists()


def test_publish_refuses_other_weights_of_a_published_run(figure_with_one_picture, tmp_path):
    outputs, reference = tmp_path / "outputs", tmp_path / "reference"
    publisher("paper/grid", outputs, reference)
    before = contents(reference)
    for folder in figure_with_one_picture:
        for path in (folder / "record.json", folder.parents[1] / "run.json"):
            path.write_text(path.read_text().replace("weights of", "other weights of"))
    with pytest.raises(SystemExit, match=r"is published with other weights; --replace takes away"):
        publisher("paper/grid", outputs, reference)
    assert contents(reference) == before
    publisher("paper/grid", outputs, reference, replace=True)
    assert b"other weights of" in contents(reference)[f"runs/{figure_with_one_picture[0].parents[1].name}/run.json"]


def test_every_published_page_is_what_its_records_give(tmp_path):
    """But for pictures, whose bytes hang on the version of what draws them: they are there."""
    for page, cells in filled(published_tables(REFERENCE), REFERENCE):
        base, written = table_file(page, REFERENCE), table_file(page, tmp_path)
        view = view_of(page, cells, REFERENCE)
        pictures = base.with_suffix(".png").exists() and base.with_suffix(".svg").exists()
        assert pictures == bool(page.figure), page.name
        assert base.with_suffix(".md").read_text() == markdown(view, pictures=pictures), page.name
        assert base.with_suffix(".tex").read_text() == latex(view), page.name
        assert base.with_suffix(".csv").read_text() == csv_of(cells), written
    assert len(published_tables(REFERENCE)) > 20


def test_a_run_that_tables_share_counts_once(monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    seconds = importlib.import_module("reference_seconds")
    seconds.main(["efficient_defenses/table[23]"], REFERENCE)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "Made by `python scripts/reference_seconds.py 'efficient_defenses/table[23]'`."
    two, three, total = ([entry.strip() for entry in line.strip("|").split("|")] for line in lines[6:9])
    assert (two[0], three[0], total[0]) == ("efficient_defenses/table2", "efficient_defenses/table3", "all of them, each once")
    assert two[1:3] == three[1:3] == total[1:3], "both speak of the same runs"
    assert int(total[3]) == int(two[3]) + int(three[3])
    assert lines[-1] == "Trained on mnist; what was not measured, or is published elsewhere, is not in the total."
    with pytest.raises(SystemExit, match=r"nothing in .* matches c/.*; there are deep_defense/"):
        seconds.main(["c/*"], REFERENCE)


def test_a_point_of_the_plane_is_judged_by_its_column_and_row(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    findings = importlib.import_module("efficient_defenses_findings")
    probability = np.zeros((11, 11))
    probability[2, 9] = 0.8  # row: y, column: x
    points = np.array([[0.9, 0.2], [0.88, 0.21], [0.2, 0.9], [0.9, 0.2], [0.5, 0.5]])
    wrong = findings.wrong(probability, points, labels=np.array([1, 1, 1, 0, 0]))
    assert wrong.tolist() == [False, False, True, True, False]


def evaluated(who: str, **arrays: np.ndarray) -> SimpleNamespace:
    folder = SimpleNamespace(name="pgd-1", arrays=lambda file: arrays if file == "outcome.npz" else None)
    return SimpleNamespace(who=who, record={}, folder=folder)


def test_figures_of_the_same_images_leave_out_what_one_row_lacks(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    findings = importlib.import_module("efficient_defenses_findings")
    rows = {"gda": [1, 2, np.nan, 4], "standard": [np.nan, 3, 3, 5], "vat": [np.nan, np.nan, np.nan, 1]}
    found = [
        evaluated(f"mnist, {name}", **{"metric.empirical_robustness": np.array(row), "metric.training_set_distance": 10 * np.array(row)})
        for name, row in rows.items()
    ]
    monkeypatch.setattr(findings, "behind", lambda table: found)
    assert list(findings.of_the_same_images("table", "pgd-*", of=("gda", "standard"))) == [
        "- mnist, gda: 3.0000, 30.000 (n = 2)",
        "- mnist, standard: 4.0000, 40.000 (n = 2)",
    ]
    assert len(list(findings.of_the_same_images("table", "pgd-*"))) == 3


def test_costs_stand_beside_the_undefended_runs(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    findings = importlib.import_module("efficient_defenses_findings")
    found = []
    for name, images, took in (("gda", 400, (8, 8, 40, 8)), ("standard", 100, (9, 2))):
        epochs = [{"seconds": seconds, "images_per_second": images / seconds} for seconds in took]
        run = SimpleNamespace(epochs=lambda epochs=epochs: epochs, record={"seconds": sum(took)})
        found.append(SimpleNamespace(who=f"mnist, {name}", run=run))
    monkeypatch.setattr(findings, "behind", lambda table: found)
    assert list(findings.costs("table")) == [
        "- mnist, gda: 4 epochs of 400 images; 64 s, 5.8 times; 32 s, 8.0 times",
        "- mnist, standard: 2 epochs of 100 images; 11 s, 1.0 times; 4 s, 1.0 times",
    ]


@pytest.mark.parametrize(("page", "name"), [("seconds.md", "reference_seconds.py"), ("findings.md", "efficient_defenses_findings.py")])
def test_a_published_page_is_what_its_command_prints(page, name):
    path = REFERENCE / "tables" / "efficient_defenses" / page
    command = re.search(rf"`python scripts/{name}(.*)`", path.read_text())
    assert command is not None
    ended = script(name, *shlex.split(command[1]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == path.read_text()


def test_every_published_record_was_made_by_committed_code():
    runs = [RunFolder(path.parent) for path in sorted(REFERENCE.rglob("runs/*/run.json"))]
    made_by = {run.path: run.record["commit"] for run in runs}
    made_by |= {evaluation.path: evaluation.read()["commit"] for run in runs for evaluation in run.evaluations()}
    assert len(made_by) > len(runs) > 50
    assert not {str(path): commit for path, commit in made_by.items() if not commit or "+changes" in commit}
