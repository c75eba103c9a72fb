"""The command line, called in this process or as a real one, always from a foreign working directory and into folders of its own."""

import io
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import processes
import pytest
import torch
import yaml
from hydra.core.hydra_config import HydraConfig

from robustbench_lab import multirun
from robustbench_lab.__main__ import main

TINY = ["backbone=small_cnn", "training.epochs=3", "training.batch_size=20", "dataset.train_size=200", "dataset.test_size=40", "device=cpu"]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Settings that train in a fraction of a second, 10 steps an epoch, to some 80 % correct."""
    return list(TINY)


@pytest.fixture(scope="session")
def lab_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Ended]:
    """`lab_in(outputs, "train", "seed=1")`: the command, in this process; `out`, `err`: other streams to tell it to, which are not read."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def call(outputs: Path, *arguments: str, out: TextIO | None = None, err: TextIO | None = None) -> Ended:
        root, out, err = logging.getLogger(), out or io.StringIO(), err or io.StringIO()
        handlers, level, threads = root.handlers[:], root.level, torch.get_num_threads()
        torch.set_num_threads(1)  # as the real processes here; and nets this small are no faster on two
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(outputs))
            patch.chdir(elsewhere)
            patch.setattr(sys, "argv", ["robustbench_lab", *arguments])
            patch.setattr(multirun, "_sweeps", [])
            patch.setattr(multirun, "_unwritten", [])
            try:
                main()
                status = 0
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                root.handlers[:], root.level = handlers, level
                HydraConfig.instance().cfg = None
                torch.set_num_threads(threads)
        assert not list(elsewhere.iterdir()), "a command leaves nothing in the working directory"
        return Ended(status, *(stream.getvalue() if isinstance(stream, io.StringIO) else "" for stream in (out, err)))

    return call


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """An output folder that does not exist yet."""
    return tmp_path / "outputs"


@pytest.fixture
def lab(lab_in: Callable[..., Ended], outputs: Path) -> Callable[..., Ended]:
    """`lab("train", "seed=1")`: the command, in this process, into `outputs`."""
    return lambda *arguments, **streams: lab_in(outputs, *arguments, **streams)


@pytest.fixture(scope="session")
def _trained_once(lab_in: Callable[..., Ended], tmp_path_factory: pytest.TempPathFactory) -> Path:
    outputs = tmp_path_factory.mktemp("trained") / "outputs"
    ended = lab_in(outputs, "train", *TINY)
    assert ended.status == 0, ended.err
    return outputs


@pytest.fixture
def trained(_trained_once: Path, outputs: Path) -> Path:
    """`outputs` holds the finished run of `train *tiny`; its folder."""
    shutil.copytree(_trained_once, outputs)
    return next((outputs / "runs").iterdir())


@pytest.fixture
def interrupted(lab: Callable[..., Ended], outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`outputs` holds the run of `train *tiny`, stopped right after its first checkpoint; its folder."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("robustbench_lab.training.making._write_metrics", stop)
        ended = lab("train", *TINY)
    assert ended.status == 130
    folder = next((outputs / "runs").iterdir())
    assert (folder / "checkpoint.safetensors").exists()
    assert not (folder / "run.json").exists()
    return folder


@pytest.fixture
def start(outputs: Path, tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start("train", ..., outputs=folder)`: `python -m robustbench_lab` from scratch, on one thread."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def call(*arguments: str, outputs: Path = outputs) -> subprocess.Popen[str]:
        environment = {**os.environ, "ROBUSTBENCH_LAB_OUTPUTS": str(outputs), "OMP_NUM_THREADS": "1"}
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore interrupts, and what they start does too
        try:
            return subprocess.Popen(
                [sys.executable, "-m", "robustbench_lab", *arguments],
                cwd=elsewhere, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        finally:
            signal.signal(signal.SIGINT, before)

    return call


@pytest.fixture
def forked(outputs: Path, tmp_path: Path) -> Iterator[Callable[..., processes.Started]]:
    """`forked("train", ...)`: the command in a process of its own, on one thread, without waiting for imports."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    every: list[processes.Started] = []

    def call(*arguments: str) -> processes.Started:
        every.append(processes.started(arguments, outputs, elsewhere, tmp_path / f"said{len(every)}"))
        return every[-1]

    yield call
    for started in every:
        started.process.kill()
        started.process.join()


@pytest.fixture
def small_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only table there is, paper/small: clean and FGSM accuracy of `tiny`; its YAML."""
    path = tmp_path / "table" / "paper" / "small.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        yaml.safe_dump(
            {
                "title": "Small", "source": "none", "profile": "smoke", "corner": "defense", "metric": "robust_accuracy",
                "overrides": [*(word for word in TINY if not word.startswith("device")), "attack=fgsm"],
                "rows": [{"label": "plain"}],
                "columns": [{"label": "clean", "metric": "clean_accuracy"}, {"label": "FGSM"}],
            }
        )
    )  # fmt: skip
    monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "table"))
    return path


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[bytes, int]]]:
    """Every file under a folder, with content and time of change; and every folder, so that an empty new one is seen."""

    def take(folder: Path) -> dict[str, tuple[bytes, int]]:
        return {
            str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else (b"", 0)
            for path in sorted(folder.rglob("*"))
        }

    return take
