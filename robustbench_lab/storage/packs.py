"""Many evaluations of one run in two files, as they are published: a line for each record, and all arrays in one archive.

evaluations.jsonl: {"name": the evaluation's folder, "record": what its record.json says} a line, by name. evaluations.npz: arrays named
`<evaluation>/<file>/<array>`. What lies in a folder of its own beside them counts before them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import SCHEMA, read_arrays, read_arrays_below, to_json_line, write_arrays, write_bytes

RECORDS = "evaluations.jsonl"
ARRAYS = "evaluations.npz"

Files = Mapping[str, Mapping[str, np.ndarray]]  # the arrays of an evaluation, by file


@dataclass(frozen=True)
class Pack:
    """What is packed in a run's folder, each file read once; nothing where there is none."""

    folder: Path

    @property
    def records_file(self) -> Path:
        return self.folder / RECORDS

    @cached_property
    def records(self) -> dict[str, dict[str, Any]]:
        """By the name of the evaluation. Raises LabError, naming file and line, where it is damaged."""
        if not self.records_file.exists():
            return {}
        found = {}
        for number, line in enumerate(_lines(self.records_file), 1):
            try:
                content = json.loads(line)
                name, record = str(content["name"]), content["record"]
                if not isinstance(record, dict) or record.get("schema") != SCHEMA:
                    raise ValueError(f"expected a record of schema {SCHEMA}")
            except (ValueError, KeyError, TypeError) as error:
                raise LabError(f"{self.records_file}:{number} is damaged ({error}); take the file from where it was published") from error
            found[name] = record
        return found

    def named(self, fingerprint: str) -> str | None:
        """The evaluation of this content."""
        return next((name for name in self.records if name.endswith(f"-{fingerprint}")), None)

    def arrays(self, evaluation: str, file: str) -> dict[str, np.ndarray] | None:
        """The arrays of one file of an evaluation; None where there is none. Raises LabError where the archive is damaged."""
        path = self.folder / ARRAYS
        return (read_arrays_below(path, f"{evaluation}/{file}/") or None) if path.exists() else None

    def add(self, evaluations: Mapping[str, tuple[Mapping[str, Any], Files]]) -> None:
        """Pack evaluations, record and arrays by name, beside what is packed already; one of the same name is replaced."""
        records = {**self.records, **{name: dict(record) for name, (record, _) in evaluations.items()}}
        path = self.folder / ARRAYS
        kept = read_arrays(path) if path.exists() else {}
        arrays = {key: array for key, array in kept.items() if key.partition("/")[0] not in evaluations}
        for name, (_, files) in evaluations.items():
            arrays |= {f"{name}/{file}/{key}": array for file, content in files.items() for key, array in content.items()}
        write_arrays(path, **dict(sorted(arrays.items())))
        lines = [to_json_line({"name": name, "record": records[name]}) for name in sorted(records)]
        write_bytes(self.records_file, "".join(lines).encode())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read ({error})") from error
