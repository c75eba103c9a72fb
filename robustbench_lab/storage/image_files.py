"""Folders of images, one sub-folder a class: which files there are, and a digest of them, by which a result is known to be of other images.

Names are compared in Unicode's composed form (NFC): a Mac writes é as two characters, and both forms look the same.
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from pathlib import Path

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import file_digest

BY_CONTENT = 2**28  # bytes of a split, up to which every one of them is read


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in the order of names; hidden files are none of it. Raises LabError where the folder cannot be read."""
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        raise LabError(f"{folder} cannot be read: {error.strerror or error}; dataset.path must name a folder that may be read") from error
    return [folder / name for name in sorted(names, key=lambda name: (composed(name), name))]


def composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def within(root: object, path: str) -> str:
    """A folder as it is named, however it is written: relative to the data root where it lies within, else absolute."""
    base = os.path.abspath(os.path.expanduser(str(root)))
    whole = os.path.normpath(os.path.join(base, os.path.expanduser(path)))
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
        files = [file for folder in entries(split) if folder.is_dir() for file in entries(folder)]
        sizes = [file.stat().st_size for file in files]
        read = sum(sizes) <= BY_CONTENT
        for file, size in zip(files, sizes, strict=True):
            total.update(os.fsencode(f"{composed(file.parent.name)}/{composed(file.name)}") + f"\0{size}\0".encode())
            if read:
                total.update(file_digest(file).encode())
    except (OSError, LabError):
        return None
    return total.hexdigest()
