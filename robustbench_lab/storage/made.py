"""What pages were made from, so that those need not be made again whose records, settings and code are the same as then."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from importlib.metadata import distributions
from pathlib import Path

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import SCHEMA, read_json, write_json

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
        if not isinstance(entry, Mapping) or entry.get("from") != self.made_from or not entry.get("files"):
            return False
        return bool(entry["files"] == {file: _digest(self.output_root / file) for file in entry["files"]})

    def note(self, name: str, files: Iterable[Path]) -> None:
        """It has been made, and is these files."""
        self._known[name] = {"from": self.made_from, "files": {str(file.relative_to(self.output_root)): _digest(file) for file in files}}

    def store(self) -> None:
        write_json(self.output_root / FILE, {**self._known, "schema": SCHEMA})


def content_of(output_root: Path, sources: Iterable[Path]) -> str:
    """A digest of what pages depend on: runs and their evaluations, the files of `sources` (code, settings, tables), and every library."""
    found = blake2b(digest_size=16)
    for path in sorted((output_root / "runs").rglob("*")):
        found.update(f"{path}\0{_digest(path) if path.suffix in READ else None}\0".encode(errors="surrogateescape"))
    for path in (path for folder in sources for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts):
        found.update(f"{path}\0{_digest(path)}\0".encode(errors="surrogateescape"))
    libraries = sorted({f"{library.name} {library.version}" for library in distributions()})
    found.update("\0".join([sys.version, *libraries]).encode())
    return found.hexdigest()


def _digest(path: Path) -> str | None:
    """None of what is no file."""
    try:
        return blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError:
        return None
