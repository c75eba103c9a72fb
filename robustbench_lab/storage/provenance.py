"""Where a result came from: device, versions, commit, command, time."""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from robustbench_lab.output import command_line

PACKAGES = ("robustbench_lab", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "scikit-learn", "safetensors")


def provenance(device: str) -> dict[str, Any]:
    """Where a result came from: device, versions, commit, command, time."""
    return {
        "device": device,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "command": command_line(sys.argv[0].partition(" ")[2], sys.argv[1:]) if sys.argv[0].startswith("robustbench_lab ") else None,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@functools.cache
def commit() -> str | None:
    """The commit of the checkout that this code runs from, with "+changes" where code or configs were edited or added.

    None outside a checkout. Read once, and first when a job starts: what is edited later did not make its result.
    """
    here = Path(__file__).resolve().parents[2]
    if not (here / "conf").is_dir():  # installed: the repository around it, if any, is not this one
        return None
    questions = (["rev-parse", "HEAD"], ["status", "--porcelain", "--", "robustbench_lab", "conf", "pyproject.toml"])
    try:
        head, changes = (
            subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, timeout=10, check=True).stdout.strip()
            for words in questions
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+changes" if changes else "")
