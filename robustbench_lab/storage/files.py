"""Results on disk: written whole or not at all, read without executing anything, and where they came from.

A file appears under its name only when it is complete (written beside, flushed, renamed), so that the existence of a run's or an
evaluation's last file means that it is finished. What is read may be anything: each reader here ends in what was read or in a LabError that
names the file, whatever stands under its name.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import reprlib
import stat
import time
import zipfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from robustbench_lab.errors import LabError, printable
from robustbench_lab.storage.forms import misfit

log = logging.getLogger("robustbench_lab")

SCHEMA = 1
LONGEST_TEXT = 2**28  # bytes of a file of JSON: the longest that we write are some MB
LARGEST_ARRAYS = 2**33  # bytes of all arrays of a file together: crafted images (evaluation.crafted.LARGEST) are the most
DEEPEST = 64  # levels of a nested content: what walks through it is a function that calls itself
MOST_DIGITS = 300  # of a whole number: what no float can hold is no count, seed or time of ours
ABANDONED = 24 * 3600.0  # seconds after which a file that is being written is nobody's: no write takes so long
REPEATS = 3  # writes of a file whose half-written form somebody else takes away

MISSING = (FileNotFoundError, NotADirectoryError)


class Missing(LabError):
    """It was never made, or its file is gone."""


class Forbidden(LabError):
    """It is there, and may not be looked at."""


@cache
def say_once(message: str) -> None:
    """A warning about a file that several parts of a command come across."""
    log.warning(message)


def there(path: Path) -> bool:
    """Whether something has this name. What one may not look at counts as there: who reads it is told why not."""
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    except ValueError:  # no name that a file could have
        return False
    return True


def names_in(folder: Path) -> list[str]:
    """What a folder holds, sorted; nothing where there is none. Raises LabError where it cannot be listed."""
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        kind = Forbidden if isinstance(error, PermissionError) else LabError
        raise kind(f"{folder} cannot be listed ({_words(error)}); choose another folder with output_root, or let it be read") from error


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@contextmanager
def reading(path: Path, remedy: str = "delete it, or repeat the job with force=true") -> Iterator[None]:
    """Turn whatever reading a file ends in into an error that names it: Missing, Forbidden, or LabError for a damaged one."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe would wait for ever
            raise ValueError("a folder stands in its place" if stat.S_ISDIR(status.st_mode) else "it is no regular file")
        yield
    except LabError:
        raise
    except MISSING as error:
        raise Missing(f"{path} is not there") from error
    except PermissionError as error:
        raise Forbidden(f"{path} cannot be read ({_words(error)}): let it be read, or choose another output_root") from error
    except Exception as error:  # libraries that meet damage raise a dozen kinds of their own, MemoryError and RecursionError among them
        raise LabError(f"{path} cannot be read ({_words(error)}); {remedy}") from error


def read_text(path: Path) -> str:
    """A file's text. Raises LabError, naming it, for what is no text or longer than any of ours."""
    with reading(path):
        if path.stat().st_size > LONGEST_TEXT:
            raise ValueError(f"{path.stat().st_size:,} bytes, where {LONGEST_TEXT:,} are the most")
        return path.read_bytes().decode("utf-8-sig")


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turn a failing disk into an error that says which file and what to do."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: no name that a file could have
        raise LabError(
            f"cannot write {path}: {_words(error)}; make room or choose another folder with output_root (or the environment "
            "variable ROBUSTBENCH_LAB_OUTPUTS). What was complete before is untouched, and the same command goes on from it"
        ) from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write the file whole or not at all. Raises LabError when the disk is full or the folder cannot be written."""
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        for left in reversed(range(REPEATS)):
            try:
                _write_beside(path, content)
                return
            except FileNotFoundError:
                # The half-written file was taken away: its number is no process of the machine that another command runs on.
                if not left or not path.parent.is_dir():
                    raise


def _write_beside(path: Path, content: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def sweep(folder: Path, everything: bool = False) -> None:
    """Take away what killed processes left half written in a folder; everything: whoever wrote it, in a folder that is locked.

    A file whose process lives is kept, unless it has not been written to for so long that another process must have its number by now.
    """
    with suppress(LabError, OSError):
        for name in names_in(folder):
            if name.startswith(".") and name.endswith(".partial"):
                number = name.split(".")[-2]
                path = folder / name
                if everything or not _lives(number) or time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)


def _lives(number: str) -> bool:
    """Whether a process of this machine has this number."""
    if not number.isdecimal() or int(number) == 0:
        return True  # no name of ours
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def remove(path: Path) -> None:
    """Take a file away, if it is there. Raises LabError where that cannot be, such as for a folder in its place."""
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        what = "a folder stands in its place" if path.is_dir() else _words(error)
        raise LabError(f"cannot take away {path}: {what}; move it away, or choose another output_root") from error


def write_text(path: Path, text: str) -> None:
    """As UTF-8; what is no letter, such as a byte of a file's name that is not UTF-8, by its number."""
    write_bytes(path, text.encode(errors="backslashreplace"))


def file_digest(path: Path) -> str:
    """A hash over a file's bytes: what names a file of weights that someone else made. Raises LabError where it cannot be read."""
    with reading(path, "choose another file"), path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def to_json(content: object) -> str:
    """JSON with non-finite numbers as strings ("inf", "nan"), and bytes that are no text told in letters: every reader takes it."""
    return json.dumps(_plain(content), indent=1, ensure_ascii=False) + "\n"


def to_json_line(content: object) -> str:
    """The same on one line."""
    return json.dumps(_plain(content), ensure_ascii=False) + "\n"


def _plain(value: object) -> object:
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: object) -> None:
    write_text(path, to_json(content))


def from_json(text: str) -> Any:
    """What a text of JSON says. Raises ValueError for what is none, and for what no content of ours is: numbers beyond any float, levels
    beyond count, texts that cannot be written again."""
    try:
        content = json.loads(text, parse_int=_whole, parse_float=_fraction)
    except RecursionError:
        raise ValueError(f"more than {DEEPEST} levels") from None
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(DEEPEST):
        inner = (entry for outer in level for entry in (outer.values() if isinstance(outer, dict) else outer))
        level = [entry for entry in inner if isinstance(entry, dict | list)]
    if level:
        raise ValueError(f"more than {DEEPEST} levels")
    if "\\ud" in text.lower():  # half of a character, which has no place in UTF-8
        json.dumps(content, ensure_ascii=False).encode()
    return content


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _fraction(digits: str) -> float:
    if math.isinf(number := float(digits)):
        raise ValueError(f"a number that no float can hold, {digits[:20]}")
    return number


def read_json(path: Path, form: Any = None) -> dict[str, Any]:
    """A file of JSON with our schema. Raises LabError, naming the file, when it is damaged, not ours, or not of the form (forms.py)."""
    text = read_text(path)
    with reading(path):
        content = from_json(text)
    if not isinstance(content, dict) or "schema" not in content:
        raise LabError(f"{path} is damaged: expected an object with a schema; delete it, or repeat the job with force=true")
    if content["schema"] != SCHEMA:
        raise LabError(f"{path} has schema {reprlib.repr(content['schema'])}, this version reads {SCHEMA}; repeat the job with force=true")
    if form is not None and (problem := misfit(content, form)) is not None:
        raise LabError(f"{path} is damaged: {problem}; repeat the job with force=true")
    return content


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


def read_arrays(path: Path, names: Container[str] | None = None) -> dict[str, np.ndarray]:
    """All arrays, or those of these names. Raises LabError, naming the file, when it is damaged; never unpickles, and takes no memory for
    more than the file has."""
    with reading(path):
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files if names is None or name in names}


def _check_sizes(archive: zipfile.ZipFile) -> None:
    """Raises ValueError where arrays claim more bytes than are there for them."""
    total = 0
    for member in archive.infolist():
        with archive.open(member) as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            claimed = math.prod(shape) * kind.itemsize
            if kind.hasobject or min(shape, default=0) < 0 or claimed != member.file_size - file.tell():
                raise ValueError(f"{member.filename} is no array of the size that it claims")
        # What deflate makes of zeros is a thousandth of them: what claims to be more is not there.
        total += claimed if claimed <= 1100 * (member.compress_size + 1) else LARGEST_ARRAYS + 1
        if total > LARGEST_ARRAYS:
            raise ValueError(f"{member.filename} claims {claimed:,} bytes, more than are there")


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
    try:
        for place in (folder, folder / ".hydra"):
            sweep(place, everything=True)  # of a process that was killed while it wrote
        yield
    finally:
        lock.release()


@contextmanager
def locked_if_free(folder: Path) -> Iterator[bool]:
    """Whether the folder is ours meanwhile; False, at once, where another process works in it or it may not be written to."""
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
