"""Results on disk: written whole or not at all, read without executing anything, and where they came from.

A file appears under its name only when it is complete (written beside, flushed, renamed), so that the existence of a run's or an
evaluation's last file means that it is finished.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import platform
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from robustbench_lab.errors import LabError

SCHEMA = 1
MODEL_FILE = "model.safetensors"  # the weights of a training run
RUN_FILE = "run.json"  # the last file of a training run
RECORD_FILE = "record.json"  # the last file of an evaluation
OUTCOME_FILE = "outcome.npz"  # of an evaluation: what happened to each image
EXAMPLES_FILE = "examples.npz"  # of an evaluation: a few images, clean and attacked
FEATURES_FILE = "features.npz"  # of an evaluation that was asked for them: of some images, clean and attacked
PLANE_FILE = "plane.npz"  # of points in the plane: confidence everywhere, and what was trained on
ERROR_FILE = "error.json"
PACKAGES = ("robustbench_lab", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "scikit-learn", "safetensors")


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failing disk into an error that says which file and what to do."""
    try:
        yield
    except OSError as error:
        raise LabError(
            f"cannot write {path}: {error.strerror or error}; make room or choose another folder with output_root (or the environment "
            "variable ROBUSTBENCH_LAB_OUTPUTS). What was complete before is untouched, and the same command goes on from it"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file whole or not at all. Raises LabError when the disk is full or the folder cannot be written."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with storing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def to_json(content: object) -> str:
    """JSON with non-finite numbers as strings ("inf", "nan"): every reader takes it."""

    def plain(value: object) -> object:
        if isinstance(value, Mapping):
            return {str(key): plain(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [plain(entry) for entry in value]
        if isinstance(value, np.generic):
            value = value.item()
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(plain(content), indent=1, ensure_ascii=False) + "\n"


def write_json(path: Path, content: object) -> None:
    write_bytes(path, to_json(content).encode())


def read_json(path: Path) -> dict[str, Any]:
    """Raises LabError, naming the file, when it is damaged or not ours."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read ({error}); delete it, or repeat the job with force=true") from error
    if not isinstance(content, dict) or "schema" not in content:
        raise LabError(f"{path} is damaged: expected an object with a schema; delete it, or repeat the job with force=true")
    if content["schema"] != SCHEMA:
        raise LabError(f"{path} has schema {content['schema']!r}, this version reads {SCHEMA}; repeat the job with force=true")
    return content


def read_record(path: Path) -> dict[str, Any]:
    """An evaluation's record. Raises LabError, naming the file, when it is damaged: when its figures do not follow from its counts."""
    record = read_json(path)
    try:
        sound = "model_digest" in record["run"] and all(
            record[f"{kind}_accuracy"] == record[f"{kind}_correct"] / record["n"]
            and np.allclose(record[f"{kind}_interval"], wilson_interval(record[f"{kind}_correct"], record["n"]), rtol=0, atol=1e-9)
            for kind in ("clean", "robust")
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        sound = False
    if not sound:
        raise LabError(f"{path} is damaged: its figures do not agree with one another; repeat the job with force=true")
    return record


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Raises LabError, naming the file, when it is damaged; never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise LabError(f"{path} cannot be read ({error}); delete it, or repeat the job with force=true") from error


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion (Wilson 1927), as fractions of 1; images are the sample, the model is fixed."""
    z = 1.959963984540054
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # at 0 and 1 rounding may leave p outside


def provenance(device: str) -> dict[str, Any]:
    """Where a result came from: device, versions, commit, command, time."""
    return {
        "device": device,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
        "command": " ".join(["python -m", *sys.argv]) if sys.argv[0].startswith("robustbench_lab ") else None,
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
    here = Path(__file__).resolve().parent.parent
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


@contextmanager
def locked(folder: Path, say: Any = print) -> Iterator[None]:
    """Only one process at a time works in a folder; a second one waits for it, and says so. A killed process frees the lock."""
    with storing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"another process works in {folder}; waiting for it to finish")
            lock.acquire()
        for partial in folder.glob(".*.partial"):  # of a process that was killed while it wrote
            partial.unlink(missing_ok=True)
    try:
        yield
    finally:
        lock.release()


def finished_runs(output_root: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every finished training run with its run.json; damaged ones are passed over."""
    for path in sorted((output_root / "runs").glob(f"*/{RUN_FILE}")):
        with suppress(LabError):
            yield path.parent, read_json(path)
