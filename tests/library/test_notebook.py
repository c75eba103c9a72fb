"""The notebook in examples/: it runs from top to bottom, and what it tells is what its cells show."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "from_a_trained_net_to_a_broken_defense.ipynb"
FIGURES = """
import json
print(json.dumps({
    "robust": {name: globals()[name].robust_accuracy for name in ("plain", "by_pgd", "by_square", "by_bpda")},
    "clean": {name: globals()[name].clean_accuracy for name in ("plain", "by_pgd")},
    "warnings": {name: [warning["code"] for warning in globals()[name].warnings] for name in ("plain", "by_pgd")},
    "signs": [sign["code"] for sign in checked.signs],
}))
"""


def test_the_defense_looks_strong_is_warned_about_and_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient", reason="the dev extra is not installed")
    nbformat = pytest.importorskip("nbformat", reason="the dev extra is not installed")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells), "it is kept without outputs"
    notebook.cells.append(nbformat.v4.new_code_cell(FIGURES))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert sum("text/html" in output.get("data", {}) for output in outputs) == 5, "results are shown as tables"
    told = json.loads(outputs[-1]["text"])
    assert min(told["clean"].values()) > 0.95
    assert told["robust"]["by_pgd"] > 0.9
    assert 0.2 < told["robust"]["plain"] < 0.75
    assert told["robust"]["by_square"] < 0.6
    assert told["robust"]["by_bpda"] < 0.6
    assert told["warnings"]["plain"] == []
    for codes in (told["warnings"]["by_pgd"], told["signs"]):
        assert {"zero_gradients", "unbounded_attack_fails", "queries_beat_gradients"} <= set(codes)
