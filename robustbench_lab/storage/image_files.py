"""Folders of images, one sub-folder a class: which files there are, and a digest of them, by which a result is known to be of other images.

Names are compared in Unicode's composed form (NFC): a Mac writes é as two characters, and both forms look the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from pathlib import Path

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import file_digest

BY_CONTENT = 2**28  # bytes of a split, up to which every one of them is read


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names; hidden files are none of it. Raises LabError where the folder cannot be read."""
    return [folder / name for name in _names(folder)]


def _names(folder: Path) -> list[str]:
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise LabError(f"{folder} cannot be read: {error.strerror or error}; dataset.path must name a folder that may be read") from error
    return sorted(names, key=lambda name: (composed(name), name))


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def behind(root: object, path: str) -> Path:
    """The folder that a path names, which is relative to the data root unless it is absolute or begins with ~."""
    return Path(os.path.abspath(os.path.expanduser(str(root))), os.path.expanduser(path))


def within(root: object, path: str) -> str:
    """A folder as results are named by it, however it is written: relative to the data root where it lies within, else absolute."""
    base, whole = os.path.normpath(behind(root, "")), os.path.normpath(behind(root, path))
    for top, found in ((base, whole), (os.path.realpath(base), os.path.realpath(whole))):
        if os.path.commonpath([top, found]) == top:
            return os.path.relpath(found, top)
    return whole


def digest(split: Path) -> str | None:
    """Of `<split>/<class>/*`: names (so that classes which exchange theirs are noticed) and sizes, and contents where they are at most
    `BY_CONTENT` bytes in all; None where there is no such folder, or something in it cannot be read.

    Limits: in a larger split, a file that was replaced by another one of the same name and size goes unnoticed. When a file was changed
    does not count, for a copy is the same images.
    """
    total = hashlib.blake2b(digest_size=16)
    try:
        files = [f"{folder.name}/{name}" for folder in entries(split) if folder.is_dir() for name in _names(folder)]
        sizes = [_size(f"{split}/{file}") for file in files]
        read = sum(sizes) <= BY_CONTENT
        for file, size in zip(files, sizes, strict=True):
            total.update(os.fsencode(composed(file)) + f"\0{size}\0".encode())
            if read:
                total.update(file_digest(split / file).encode())
    except (OSError, LabError):
        return None
    return total.hexdigest()


def _size(file: str) -> int:
    found = os.stat(file)
    if not stat.S_ISREG(found.st_mode):  # of a pipe, reading might never end
        raise OSError(f"{file} is no file")
    return found.st_size
