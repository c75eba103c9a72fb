"""The scripts that a person runs by hand: that they run, and what they refuse."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.models import Defended

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, timeout=120)


def test_the_benchmark_prints_every_row_with_its_ratio():
    ended = script("benchmark.py", "train", "--batch", "4", "--steps", "1", "--repeats", "1", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    whole, defenses = ([line for line in part.splitlines() if line.startswith("|")] for part in ended.stdout.split("\n\n| defense"))
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in whole]
    assert [row[0].split(",")[0] for row in rows[2:]] == ["plain loop (fp32)", *["ours"] * 3, *["floor"] * 3]
    assert rows[2][4] == "1.00"
    assert all(float(entry) > 0 for row in rows[2:] for entry in row[1:])
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in defenses[1:]]
    assert [row[0] for row in rows[:4]] == ["standard", "adversarial_training", "adversarial_training_pni", "fm"]
    assert {"pni", "pni_input", "pni_activation_a", "pni_activation_b", "learn2perturb", "adv_bnn", "rse"} == {row[0] for row in rows[4:]}
    assert (rows[0][2], rows[0][4]) == ("1.00", "1.00")
    assert all(float(entry) > 0 for row in rows for entry in (row[2], row[4]))


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
    ended = script("publish_reference.py", "smoke/digits")
    assert ended.returncode == 1
    assert "smoke/digits misses 10 cells, the first is undefended, clean; run make reproduce-tables" in ended.stderr
    ended = script("publish_reference.py", "efficient_defenses/table1", "--profile", "quick")
    assert "the first is CNN+ReLU, CNN+ReLU; run make reproduce-tables TABLES=efficient_defenses/table1 PROFILE=quick" in ended.stderr


def test_a_run_that_tables_share_counts_once(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    seconds = importlib.import_module("reference_seconds")
    for table in ("a/one", "a/two", "b/one"):
        for name, file, took in (("shared", "run.json", 3600), (table[-3:], "run.json", 60), ("shared/evaluate/pgd", "record.json", 7)):
            folder = tmp_path / table / "runs" / name
            folder.mkdir(parents=True)
            (folder / file).write_text(json.dumps({"schema": 1, "commit": "c0ffee", "seconds": took}))
    seconds.main(["a/*"], tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "Made by `python scripts/reference_seconds.py 'a/*'`."
    assert lines[6:] == [
        "| a/one | 2 | 3660 | 1 | 7 | 1.0 |",
        "| a/two | 2 | 3660 | 1 | 7 | 1.0 |",
        "| all of them, each once | 3 | 3720 | 1 | 7 | 1.0 |",
    ]
    with pytest.raises(SystemExit, match=r"nothing in .* matches c/.*; there are a/one, a/two, b/one"):
        seconds.main(["c/*"], tmp_path)


@pytest.mark.parametrize(("page", "name"), [("seconds.md", "reference_seconds.py"), ("findings.md", "efficient_defenses_findings.py")])
def test_a_published_page_is_what_its_command_prints(page, name):
    path = SCRIPTS.parent / "outputs" / "reference" / "efficient_defenses" / page
    command = re.search(rf"`python scripts/{name}(.*)`", path.read_text())
    assert command is not None
    ended = script(name, *shlex.split(command[1]))
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == path.read_text()


REFERENCE = sorted((SCRIPTS.parent / "outputs" / "reference").glob("**/record.json"))


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: "/".join(path.parts[-5:-1]))
def test_a_published_record_was_made_by_committed_code(path):
    record = json.loads(path.read_text())
    assert record["commit"]
    assert "+changes" not in record["commit"]
    assert "+changes" not in json.loads((path.parents[2] / "run.json").read_text())["commit"]
