"""The scripts that a person runs by hand: that they run, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[1] / "scripts"


def script(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, SCRIPTS / name, *arguments], capture_output=True, text=True, timeout=120)


def test_the_benchmark_prints_every_row_with_its_ratio():
    ended = script("benchmark.py", "train", "--batch", "4", "--steps", "1", "--repeats", "1", "--device", "cpu")
    assert ended.returncode == 0, ended.stderr
    rows = [[entry.strip() for entry in line.strip("|").split("|")] for line in ended.stdout.splitlines() if line.startswith("|")]
    assert [row[0].split(",")[0] for row in rows[2:]] == ["plain loop (fp32)", *["ours"] * 3, *["floor"] * 3]
    assert rows[2][4] == "1.00"
    assert all(float(entry) > 0 for row in rows[2:] for entry in row[1:])


def test_publish_refuses_a_table_with_missing_cells(monkeypatch, tmp_path):
    monkeypatch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(tmp_path))
    ended = script("publish_reference.py", "smoke/digits")
    assert ended.returncode == 1
    assert "smoke/digits misses 10 cells, the first is undefended, clean; run make reproduce-tables" in ended.stderr


REFERENCE = sorted((SCRIPTS.parent / "outputs" / "reference").glob("**/record.json"))


@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: "/".join(path.parts[-5:-1]))
def test_a_published_record_was_made_by_committed_code(path):
    record = json.loads(path.read_text())
    assert record["commit"]
    assert "+changes" not in record["commit"]
    assert "+changes" not in json.loads((path.parents[2] / "run.json").read_text())["commit"]
