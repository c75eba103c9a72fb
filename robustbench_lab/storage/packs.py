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
from typing import Any, TypedDict

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import (
    SCHEMA,
    from_json,
    read_arrays,
    read_text,
    say_once,
    there,
    to_json_line,
    write_arrays,
    write_bytes,
)
from robustbench_lab.storage.forms import misfit

RECORDS = "evaluations.jsonl"
ARRAYS = "evaluations.npz"
NAMES = "names"


class Line(TypedDict):
    """Of evaluations.jsonl; a record's own form is looked at when it is asked for (records.sound)."""

    name: str
    record: dict[str, Any]


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
        """By the name of the evaluation: the lines that can be read, with a word to the log where some cannot."""
        return self._read[0]

    @property
    def problem(self) -> str | None:
        """What is wrong with the file of records, naming file and line; None for nothing."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        found: dict[str, dict[str, Any]] = {}
        remedy, wrong = "take the file from where it was published", []
        try:
            lines = read_text(self.records_file).splitlines() if there(self.records_file) else []
        except LabError as error:
            lines, wrong = [], [str(error)]
        for number, line in enumerate(lines, 1):
            try:
                content = from_json(line)
                if (problem := misfit(content, Line)) is not None:
                    raise ValueError(problem)
                if content["record"].get("schema") != SCHEMA:
                    raise ValueError(f"expected a record of schema {SCHEMA}")
            except ValueError as error:
                wrong.append(f"{self.records_file}:{number} is damaged ({error}); {remedy}")
            else:
                found[content["name"]] = content["record"]
        if wrong:
            wrong = [wrong[0] + (f" ({len(wrong) - 1} more lines are)" if wrong[1:] else "")]
            say_once(wrong[0])
        return found, next(iter(wrong), None)

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
        if lacking := names.values() - stored.keys():
            raise LabError(f"{self.folder / ARRAYS} is damaged: it lacks {len(lacking)} arrays; take the file from where it was published")
        return {name: stored[digest] for name, digest in names.items()}

    @cached_property
    def _names(self) -> dict[str, str]:
        """Of all arrays: their digests. Raises LabError where the archive is damaged."""
        path = self.folder / ARRAYS
        if not there(path):
            return {}
        try:
            names: dict[str, str] = from_json(read_arrays(path, {NAMES})[NAMES].tobytes().decode())
            if (problem := misfit(names, dict[str, str])) or (problem := next((n for n in names if n.count("/") < 2), None)):
                raise ValueError(problem)
        except (ValueError, KeyError) as error:
            raise LabError(f"{path} is damaged ({error}); take the file from where it was published") from error
        return names

    def add(self, evaluations: Mapping[str, tuple[Mapping[str, Any], Files]]) -> None:
        """Pack evaluations, record and arrays by name, beside what is packed already; one of the same name is replaced.

        Raises LabError where what is packed already is damaged.
        """
        if self.problem is not None:
            raise LabError(self.problem)
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
        for read in ("records", "_read", "_names"):  # anew when asked for
            self.__dict__.pop(read, None)


def _digest(array: np.ndarray) -> str:
    total = hashlib.blake2b(f"{array.dtype.str}{array.shape}".encode(), digest_size=12)
    total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()
