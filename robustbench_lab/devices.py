"""The device that a job runs on."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from robustbench_lab.errors import LabError

log = logging.getLogger("robustbench_lab")

LOOK_EVERY = 1.0  # seconds between looks for a free GPU

_held: dict[int, tuple[torch.device, FileLock]] = {}  # by process, for a forked one does not hold its parent's GPU


def device_of(name: str) -> torch.device:
    """The device that `device=` names. Raises LabError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "free":
        return _free_gpu()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise LabError(f"device: expected auto, free, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise LabError(f"device: expected auto, free, cpu, cuda or cuda:N, got {name!r}")
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise LabError(f"device: {name!r} is not there ({count} CUDA devices found); use device=cpu or device=auto")
    return device


def _free_gpu() -> torch.device:
    """The first GPU that no other process on this machine got in this way, held until this one ends; the CPU where there is none.

    Waits, and says so once, while all are taken. The processes of one user see each other's. Raises LabError where locks cannot be written.
    """
    if os.getpid() in _held:
        return _held[os.getpid()][0]
    folder, user = Path(tempfile.gettempdir()), os.getuid() if hasattr(os, "getuid") else 0
    names = [getattr(torch.cuda.get_device_properties(index), "uuid", index) for index in range(torch.cuda.device_count())]
    locks = [FileLock(folder / f"robustbench_lab-{user}-gpu-{name}.lock") for name in names]  # whichever of them CUDA_VISIBLE_DEVICES shows
    waiting = False
    while locks:
        for index, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            except OSError as error:
                problem = f"device=free: cannot lock {lock.lock_file}: {error.strerror or error}"
                raise LabError(f"{problem}; name a folder that can be written with the environment variable TMPDIR") from error
            _held[os.getpid()] = torch.device("cuda", index), lock
            return _held[os.getpid()][0]
        if not waiting:
            log.info("device=free: other processes hold all %d GPUs; waiting until one of them ends", len(locks))
            waiting = True
        time.sleep(LOOK_EVERY)
    return torch.device("cpu")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({torch.get_num_threads()} threads)"
