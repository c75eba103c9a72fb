"""device=free: processes that start side by side take one GPU each. The GPUs here are faked, the processes are not."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from robustbench_lab import devices
from robustbench_lab.devices import device_of
from robustbench_lab.errors import LabError

HOLDER = """
import torch, types
torch.cuda.device_count = lambda: {count}
torch.cuda.get_device_properties = lambda index: types.SimpleNamespace(uuid=f"GPU-{{index + {first}}}")
from robustbench_lab.devices import device_of
print(device_of("free"), device_of("free"), flush=True)
input()
"""


@pytest.fixture(autouse=True)
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs that nobody holds, GPU-0 and GPU-1; what is logged."""
    lines: list[str] = []
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(devices, "_held", {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=f"GPU-{index}"))
    monkeypatch.setattr(devices.log, "info", lambda message, *values: lines.append(message % values))
    return lines


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """`holder(count=2, first=0)`: a process that holds a free GPU of `count`, named from GPU-`first` on; it, and what it was given."""
    with ExitStack() as stack:

        def start(count: int = 2, first: int = 0) -> tuple[subprocess.Popen[str], str]:
            process = subprocess.Popen(
                [sys.executable, "-c", HOLDER.format(count=count, first=first)],
                env={**os.environ, "TMPDIR": str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout
            return process, process.stdout.readline().strip()

        yield start


def test_each_process_takes_a_gpu_of_its_own_and_a_killed_one_frees_it(holder, monkeypatch, said):
    first, given = holder()
    assert given == "cuda:0 cuda:0", "the same process gets the same GPU again"
    assert holder()[1] == "cuda:1 cuda:1"
    waits = []

    def kill_at_the_second(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            first.kill()
            first.wait()

    monkeypatch.setattr(time, "sleep", kill_at_the_second)
    assert device_of("free") == torch.device("cuda:0")
    assert len(waits) == 2
    assert said == ["device=free: other processes hold all 2 GPUs; waiting until one of them ends"], "once"
    assert device_of("free") == torch.device("cuda:0")


def test_a_gpu_is_known_by_its_uuid_not_by_its_number(holder):
    """The other process sees GPU-1 alone, as number 0."""
    assert holder(count=1, first=1)[1] == "cuda:0 cuda:0"
    assert device_of("free") == torch.device("cuda:0")
    devices._held.clear()  # and its lock with it
    assert device_of("free") == torch.device("cuda:0")


def test_a_forked_process_does_not_hold_its_parents_gpu():
    assert device_of("free") == torch.device("cuda:0")
    child = os.fork()
    if child == 0:
        os._exit(device_of("free").index)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_the_cpu_where_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert device_of("free") == torch.device("cpu")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    (tmp_path / "none").write_text("")
    with pytest.raises(LabError, match=r"^device=free: cannot lock .*/none/.*TMPDIR"):
        device_of("free")


def test_a_real_run_takes_the_cpu_here(lab, outputs, tiny, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert lab("train", *tiny, "device=free", "training.epochs=1").status == 0
    (path,) = outputs.glob("runs/*/run.json")
    assert '"device": "cpu' in path.read_text()
