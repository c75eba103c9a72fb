"""What killed processes leave is taken away by the next command that touches the folder; what lives is left alone."""

import os
import subprocess
import sys
import time

import fake_records as fake
import pytest

from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of, run_at_words
from robustbench_lab.storage import files
from robustbench_lab.storage.files import locked, sweep, write_bytes
from robustbench_lab.storage.folders import RunFolder


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_write_takes_away_what_no_living_process_was_writing(tmp_path, dead):
    (tmp_path / f".table1.md.{dead}.partial").write_text("half")
    (tmp_path / f".other.csv.{os.getppid()}.partial").write_text("half of somebody who lives")
    (tmp_path / ".hidden").write_text("a user's own")
    write_bytes(tmp_path / "table2.md", b"whole")
    assert {path.name for path in tmp_path.iterdir()} == {f".other.csv.{os.getppid()}.partial", ".hidden", "table2.md"}


def test_a_number_that_another_process_has_by_now_is_known_by_its_age(tmp_path):
    path = tmp_path / f".a.{os.getppid()}.partial"
    path.write_text("half")
    sweep(tmp_path)
    assert path.exists()
    os.utime(path, (time.time() - 2 * files.ABANDONED,) * 2)
    sweep(tmp_path)
    assert not path.exists()


def test_what_is_swept_while_it_is_written_is_written_again(tmp_path, monkeypatch):
    """A machine that shares the disk does not know this process."""
    fsync, swept = os.fsync, []

    def sweeping(descriptor: int) -> None:
        fsync(descriptor)
        if not swept:
            swept.extend(tmp_path.glob(".*.partial"))
            swept[0].unlink()

    monkeypatch.setattr(os, "fsync", sweeping)
    write_bytes(tmp_path / "file", b"whole")
    assert swept
    assert (tmp_path / "file").read_bytes() == b"whole"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def left(tmp_path, dead):
    """A finished run with an evaluation, and what a kill may leave beside them."""
    run, evaluation = run_at_words([]), evaluation_of(*compose("evaluate", []), [])
    fake.train(run, tmp_path)
    folder = fake.evaluate(evaluation, tmp_path, 9, 5)
    run_folder = run.at(tmp_path)
    left = [run_folder.checkpoint, folder / "outcome.partial.npz", run_folder.path / f".run.json.{dead}.partial"]
    left += [run_folder.path / ".hydra" / f".config.yaml.{dead}.partial", run_folder.path / "panel" / f".x.json.{dead}.partial"]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("left")
    return run_folder, left


def test_what_is_left_beside_a_finished_run_and_a_record_is_taken_away(left):
    run, paths = left
    run.tidy()
    assert not any(path.exists() for path in paths)
    assert (run.path / "run.json").exists()


def test_what_is_left_where_another_process_works_stays(left):
    run, (checkpoint, partial, *_) = left
    with locked(run.path), locked(partial.parent):
        RunFolder(run.path).tidy()
        assert checkpoint.exists()
        assert partial.exists()


def test_what_an_interrupted_training_needs_stays(left):
    run, (checkpoint, partial, *_) = left
    (run.path / "run.json").unlink()
    (partial.parent / "record.json").unlink()
    run.tidy()
    assert checkpoint.exists()
    assert partial.exists()
