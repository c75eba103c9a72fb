"""Telling decides nothing about doing: streams that are gone or poor, errors that cannot be told, and what is told at the end."""

import errno
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.utils import get_class
from tqdm import tqdm

import robustbench_lab
from robustbench_lab.errors import LabError
from robustbench_lab.training import making


def no_reader():
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", buffering=1)


STREAMS = {
    "no reader": no_reader,
    "full disk": partial(open, "/dev/full", "w", buffering=1),
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), "ascii", write_through=True),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_tables_are_all_written_whoever_listens(lab, outputs, small_table, stream):
    small_table.write_text(small_table.read_text().replace("title: Small", "title: Small \u00b1 \u03b5"))
    small_table.with_name("second.yaml").write_text(small_table.read_text().replace("title: Small", "title: Second"))
    ended = lab("tables", out=STREAMS[stream](), err=STREAMS[stream]())
    assert ended.status == 0
    assert len(list(outputs.glob("tables/paper/*"))) == 6


@pytest.mark.parametrize("stream", STREAMS)
def test_training_and_its_progress_need_no_listener(lab, outputs, tiny, stream, monkeypatch):
    at_once = lambda delay, mininterval, **options: tqdm(delay=0, mininterval=0, **options)  # noqa: E731
    monkeypatch.setattr("robustbench_lab.progress.tqdm", at_once)
    assert lab("train", *tiny, out=STREAMS[stream](), err=STREAMS[stream]()).status == 0
    assert list(outputs.glob("runs/*/run.json"))


class Speechless(Exception):
    def __str__(self):
        raise ValueError("nothing to say")


NAME = "caf\udce9.png"  # what Python makes of a name that is not UTF-8


@pytest.mark.parametrize(
    "error", [ValueError(f"cannot decode {NAME}"), LabError(f"data.root: {NAME}"), Speechless()], ids=["name", "ours", "str"]
)
def test_an_error_that_is_hard_to_tell_is_in_the_list_and_on_disk(lab, outputs, tiny, error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(making, "fit", fails)
    ended = lab("train", "-m", *tiny, "seed=0,1")
    assert ended.status == 1
    listed = ended.err.rpartition("2 jobs failed:")[2]
    told = "Speechless, whose message cannot be shown" if isinstance(error, Speechless) else r"caf\xe9.png"
    assert listed.count(told) == 2
    assert "Traceback" not in listed
    left = [json.loads(path.read_text())["error"] for path in (*outputs.glob("sweeps/*/*/error.json"), *outputs.glob("runs/*/error.json"))]
    assert len(left) == 4
    assert all(told in one for one in left)
    assert lab("report", "reference=false").status == 0


def test_a_damaged_error_is_in_the_list(lab, outputs, tiny, monkeypatch):
    def damages(path, error, **more):
        path.write_text("{")
        return True

    monkeypatch.setattr("robustbench_lab.multirun.write_error", damages)
    ended = lab("train", "-m", *tiny, "training.optimizer.lr=1e30", "seed=0,1")
    assert ended.status == 1
    assert ended.err.rpartition("2 jobs failed:")[2].count("error.json cannot be read") == 2


def test_a_failed_job_is_listed_with_its_command(lab, tiny):
    words = [*tiny, "threat_model=black_transfer", r"threat_model.overrides=[seed\=1]"]
    ended = lab("evaluate", "-m", *words, "seed=0,1")
    assert ended.status == 1
    commands = [line.removeprefix("- ") for line in ended.err.splitlines() if line.startswith("- python")]
    assert [shlex.split(command)[3:] for command in commands] == [["evaluate", *words, f"seed={seed}"] for seed in (0, 1)]


def test_a_full_disk_in_reproduce_still_ends_with_the_list(lab, outputs, small_table, monkeypatch):
    rows = "rows:\n- {label: broken, overrides: [training.optimizer.lr=1e30]}\n- label: plain\n"
    small_table.write_text(small_table.read_text().replace("rows:\n- label: plain\n", rows))

    def full(path, text):
        raise LabError(f"cannot write {path}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr("robustbench_lab.jobs.tables.write_text", full)
    ended = lab("reproduce", "report=false")
    assert ended.status == 2
    assert f"small.csv: {os.strerror(errno.ENOSPC)}" in ended.err
    assert "not finite in epoch 1" in ended.err.rpartition("1 jobs failed:")[2]


def test_an_interrupt_while_libraries_are_imported_ends_quietly(tmp_path):
    """It comes out of this Hydra's import as another error."""
    interrupted = "try:\n    signal.raise_signal(signal.SIGINT)\nexcept KeyboardInterrupt:\n    raise ImportError('no hydra') from None\n"
    (tmp_path / "hydra.py").write_text(f"import signal\n{interrupted}")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{Path(robustbench_lab.__file__).parents[1]}"}
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        ended = subprocess.run([sys.executable, "-m", "robustbench_lab", "train"], env=environment, cwd=tmp_path, capture_output=True)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"")


ODD = "rows:\n- {label: odd, overrides: ['training.schedule=[1]']}\n- label: plain\n"


def test_a_word_that_hydra_refuses_is_said_with_its_table_before_anything_starts(lab, outputs, small_table):
    """A list where a mapping is: Hydra merges the two, and cannot."""
    small_table.write_text(small_table.read_text().replace("rows:\n- label: plain\n", ODD))
    for verb in ("tables", "reproduce"):
        ended = lab(verb)
        assert ended.status == 2
        assert ended.err.startswith(f"error: {small_table}: odd / clean: Error merging override training.schedule=[1]")
        assert not outputs.exists()


def test_a_word_that_hydra_refuses_only_from_the_launcher_stops_no_other_cell(lab, outputs, small_table, monkeypatch):
    def takes_all(config, key, value):
        *way, last = key.split(".")
        for part in way:
            config[part] = config = dict(config[part])
        config[last] = value

    monkeypatch.setattr("robustbench_lab.tables.expansion.with_value", takes_all)
    small_table.write_text(small_table.read_text().replace("rows:\n- label: plain\n", ODD))
    ended = lab("reproduce", "report=false")
    assert ended.status == 1
    listed = ended.err.rpartition("1 jobs failed:")[2]
    assert "- python -m robustbench_lab train" in listed
    assert f"{small_table}: odd / clean: Error merging override training.schedule=[1]" in listed
    assert "hydra/launcher" not in ended.err
    assert len(list(outputs.glob("runs/*/evaluate/*/record.json"))) == 1, "of the plain row"


@pytest.mark.parametrize("choice", ["slurm", "submitit_slurm"])
@pytest.mark.parametrize("command", ["train -m", "reproduce"])
def test_slurm_where_there_is_none(lab, outputs, small_table, choice, command, monkeypatch):
    monkeypatch.setenv("PATH", "")
    ended = lab(*command.split(), f"hydra/launcher={choice}")
    assert ended.status == 2
    assert "there is no SLURM on this machine" in ended.err
    assert "login node" in ended.err
    assert not outputs.exists()
    assert lab("reproduce", "--dry-run", f"hydra/launcher={choice}").status == 0


def test_a_launcher_that_gives_up_is_named(lab, tiny, monkeypatch):
    def finds_none(*_, **__):
        raise ConnectionError("no cluster\nand what it looked for")

    Plugins.instance()  # it loads the launchers' modules anew
    monkeypatch.setattr(get_class("hydra._internal.core_plugins.basic_launcher.BasicLauncher"), "launch", finds_none)
    ended = lab("train", "-m", *tiny, "seed=0,1")
    assert ended.status == 2
    assert ended.err == "error: the launcher gave up: ConnectionError: no cluster; the same command goes on from what is finished\n"
