"""Many evaluations of one run in two files, as they are published: a line for each record, and all arrays in one archive.

evaluations.jsonl: {"name": the evaluation's folder, "record": what its record.json says} a line, by name. evaluations.npz: each array once,
named by a digest of it, because evaluations of one model have many in common; and `names`, which says in JSON which array is
`<evaluation>/<file>/<array>`. What lies in a folder of its own beside them counts before them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import SCHEMA, read_arrays, to_json_line, write_arrays, write_bytes

RECORDS = "evaluations.jsonl"
ARRAYS = "evaluations.npz"
NAMES = "names"

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

    def files(self, evaluation: str) -> list[str]:
        """The files of an evaluation that have arrays here."""
        return sorted({name.split("/")[1] for name in self._names if name.startswith(f"{evaluation}/")})

    def arrays(self, evaluation: str, file: str) -> dict[str, np.ndarray] | None:
        """The arrays of one file of an evaluation; None where there is none. Raises LabError where the archive is damaged."""
        prefix = f"{evaluation}/{file}/"
        names = {name.removeprefix(prefix): digest for name, digest in self._names.items() if name.startswith(prefix)}
        if not names:
            return None
        stored = read_arrays(self.folder / ARRAYS, set(names.values()))
        return {name: stored[digest] for name, digest in names.items()}

    @cached_property
    def _names(self) -> dict[str, str]:
        """Of all arrays: their digests."""
        path = self.folder / ARRAYS
        if not path.exists():
            return {}
        try:
            return {str(name): str(digest) for name, digest in json.loads(read_arrays(path, {NAMES})[NAMES].tobytes()).items()}
        except (ValueError, AttributeError) as error:
            raise LabError(f"{path} is damaged ({error}); take the file from where it was published") from error

    def add(self, evaluations: Mapping[str, tuple[Mapping[str, Any], Files]]) -> None:
        """Pack evaluations, record and arrays by name, beside what is packed already; one of the same name is replaced."""
        records = {**self.records, **{name: dict(record) for name, (record, _) in evaluations.items()}}
        names = {name: digest for name, digest in self._names.items() if name.partition("/")[0] not in evaluations}
        arrays = read_arrays(self.folder / ARRAYS, set(names.values())) if names else {}
        for name, (_, files) in evaluations.items():
            for file, content in files.items():
                for key, array in content.items():
                    digest = _digest(array)
                    names[f"{name}/{file}/{key}"], arrays[digest] = digest, array
        told = np.frombuffer(json.dumps(dict(sorted(names.items()))).encode(), np.uint8)
        write_arrays(self.folder / ARRAYS, **{NAMES: told}, **dict(sorted(arrays.items())))
        lines = [to_json_line({"name": name, "record": records[name]}) for name in sorted(records)]
        write_bytes(self.records_file, "".join(lines).encode(errors="backslashreplace"))
        for read in ("records", "_names"):  # anew when asked for
            self.__dict__.pop(read, None)


def _digest(array: np.ndarray) -> str:
    total = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=12)
    total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read ({error})") from error
