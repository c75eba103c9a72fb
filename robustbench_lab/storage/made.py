"""What pages were made from, so that those need not be made again whose records, settings and code are the same as then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from importlib.metadata import distributions
from pathlib import Path

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import LARGEST_ARRAYS, SCHEMA, file_digest, read_json, sweep, write_json
from robustbench_lab.storage.forms import misfit

FILE = ".made.json"  # beside runs/, tables/ and report/
READ = (".json", ".jsonl", ".npz")  # what pages read of runs; of other files, such as weights, they ask at most whether they are there


class Made:
    """The pages of an output folder: of each, by name, what it was made from and the files that it is, both as digests of content."""

    def __init__(self, output_root: Path, made_from: str) -> None:
        self.output_root, self.made_from = output_root, made_from
        try:
            self._known = read_json(output_root / FILE)
        except LabError:  # none yet, or a damaged one
            self._known = {}

    def unchanged(self, name: str) -> bool:
        """Whether it is there as it was made, and would be made the same."""
        entry = self._known.get(name)
        if not isinstance(entry, Mapping) or entry.get("from") != self.made_from or misfit(entry.get("files"), dict[str, str | None]):
            return False
        for folder in {(self.output_root / file).parent for file in entry["files"]}:
            sweep(folder)  # a page that is not written again is the only one that this command touches there
        return bool(entry["files"]) and bool(entry["files"] == {file: _digest(self.output_root / file) for file in entry["files"]})

    def note(self, name: str, files: Iterable[Path]) -> None:
        """It has been made, and is these files."""
        self._known[name] = {"from": self.made_from, "files": {str(file.relative_to(self.output_root)): _digest(file) for file in files}}

    def store(self) -> None:
        write_json(self.output_root / FILE, {**self._known, "schema": SCHEMA})


def content_of(output_root: Path, sources: Iterable[Path]) -> str:
    """A digest of what pages depend on: runs and their evaluations, the files of `sources` (code, settings, tables), and every library."""
    found = blake2b(digest_size=16)
    for path in _everything(output_root / "runs"):
        found.update(_line(path, _digest(path) if path.suffix in READ else None))
    for path in (path for folder in sources for path in _everything(folder) if "__pycache__" not in path.parts):
        found.update(_line(path, _digest(path)))
    libraries = sorted({f"{library.name} {library.version}" for library in distributions()})
    found.update("\0".join([sys.version, *libraries]).encode())
    return found.hexdigest()


def _everything(folder: Path) -> list[Path]:
    """All that lies in a folder, sorted; what may not be listed is passed over."""
    try:
        return sorted(Path(where) / name for where, folders, names in os.walk(folder) for name in (*folders, *names))
    except ValueError:  # no name that a folder could have
        return []


def _line(path: Path, digest: str | None) -> bytes:
    return os.fsencode(path) + f"\0{digest}\0".encode()  # a file's name may hold bytes that are no text


def _digest(path: Path) -> str | None:
    """None of what is no file, may not be read, or is longer than anything that a page reads."""
    try:
        return file_digest(path) if path.stat().st_size <= LARGEST_ARRAYS else None
    except (LabError, OSError, ValueError):
        return None
