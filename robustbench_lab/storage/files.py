"""Results on disk: written whole or not at all, read without executing anything, and where they came from.

A file appears under its name only when it is complete (written beside, flushed, renamed), so that the existence of a run's or an
evaluation's last file means that it is finished.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import zipfile
import zlib
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from robustbench_lab.errors import LabError

SCHEMA = 1


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


def write_text(path: Path, text: str) -> None:
    """As UTF-8; what is no letter, such as a byte of a file's name that is not UTF-8, by its number."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def file_digest(path: Path) -> str:
    """A hash over a file's bytes: what names a file of weights that someone else made."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def to_json(content: object) -> str:
    """JSON with non-finite numbers as strings ("inf", "nan"): every reader takes it."""
    return json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n"


def to_json_line(content: object) -> str:
    """The same on one line."""
    return json.dumps(_plain(content), ensure_ascii=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: object) -> None:
    write_text(path, to_json(content))  # to JSON's readers the number of a letter is that letter


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


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """All arrays, or those of these names. Raises LabError, naming the file, when it is damaged; never unpickles."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if names is None or name in names}
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise LabError(f"{path} cannot be read ({error}); delete it, or repeat the job with force=true") from error


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
