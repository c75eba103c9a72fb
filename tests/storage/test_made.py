"""What pages were made from: any change of it is seen, and nothing else."""

import os

import pytest

from robustbench_lab.storage import made
from robustbench_lab.storage.made import content_of


@pytest.fixture
def folders(tmp_path):
    for name in ("out/runs/a/run.json", "out/runs/a/model.safetensors", "code/x.py", "code/__pycache__/x.pyc"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "seen"),
    [("out/runs/a/run.json", True), ("code/x.py", True), ("out/runs/a/model.safetensors", False), ("code/__pycache__/x.pyc", False)],
)
def test_content_is_seen_whatever_the_clock_says(folders, name, seen):
    before, path = content_of(folders / "out", [folders / "code"]), folders / name
    assert content_of(folders / "out", [folders / "code"]) == before
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_text("[]")
    os.utime(path, ns=times)
    assert (content_of(folders / "out", [folders / "code"]) != before) == seen


@pytest.mark.parametrize("name", ["out/runs/a/run.json", "code/x.py", "out/runs/a/model.safetensors"])
def test_a_file_that_goes_or_comes_is_seen(folders, name):
    before = content_of(folders / "out", [folders / "code"])
    (folders / name).rename((folders / name).with_name("other.json"))
    assert content_of(folders / "out", [folders / "code"]) != before


def test_another_library_is_seen(folders, monkeypatch):
    before = content_of(folders / "out", [])
    monkeypatch.setattr(made, "distributions", list)
    assert content_of(folders / "out", []) != before
