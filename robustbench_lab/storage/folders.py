"""The folders of training runs and evaluations: the one answer to whether something is finished, speaks of these weights, or is damaged.

A run is finished when its last file, run.json, is there and sound; its weights may be gone all the same (a published run has none). A
record counts when it is sound, speaks of the evaluation that is asked for, and of the weights that its runs have now.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.storage.failures import write_error
from robustbench_lab.storage.files import locked, read_arrays, write_json
from robustbench_lab.storage.packs import Pack
from robustbench_lab.storage.records import (
    CHECKPOINT_FILE,
    ERROR_FILE,
    METRICS_FILE,
    MODEL_FILE,
    OUTCOME_FILE,
    PARTIAL_FILE,
    RECORD_FILE,
    RUN_FILE,
    read_record,
    read_run,
    sound,
)

log = logging.getLogger("robustbench_lab")

Content = Mapping[str, Any]  # of run.json or record.json


class Missing(LabError):
    """It was never made, or its file is gone."""


class Clash(LabError):
    """A folder has the name of what is asked for, and holds something else."""


def nothing_differs(content: Content) -> str | None:
    return None


def existing(parent: Path, fingerprint: str, last_file: str) -> Path | None:
    """The folder of this content; of several, which two processes with other words for it may make side by side, a finished one."""
    found = sorted(parent.glob(f"*-{fingerprint}"), key=lambda folder: (not (folder / last_file).exists(), folder))
    return found[0] if found else None


@dataclass(frozen=True)
class Folder:
    """path: where it is, or will be. differs: how a content differs from what is asked for, such as `training.epochs: 30 != 20`; None
    where it does not."""

    path: Path
    differs: Callable[[Content], str | None] = field(default=nothing_differs, compare=False)

    @property
    def name(self) -> str:
        return self.path.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time works in the folder; a second one waits for it, and says so."""
        with locked(self.path, log.info):
            yield

    @contextmanager
    def leaving_error(self) -> Iterator[None]:
        """Leave the error of a failed job in the folder; the next attempt takes it away."""
        path = self.path / ERROR_FILE
        path.unlink(missing_ok=True)
        try:
            yield
        except Exception as error:
            if not write_error(path, error):
                log.warning("the error could not be written to %s either", path)
            raise

    def _own(self, content: Content, file: str) -> None:
        """Raises Clash where the content is that of something else with the same name: the names are hashes, and short."""
        where = self.path / file
        try:
            difference = self.differs(content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise LabError(f"{where} is damaged ({error!r}); repeat the job with force=true") from error
        if difference is not None:
            raise Clash(f"{where} is of something else with the same name: {difference}; move one of the two to another output_root")


@dataclass(frozen=True)
class RunFolder(Folder):
    """A training run."""

    @property
    def weights(self) -> Path:
        return self.path / MODEL_FILE

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT_FILE

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json, read once. Raises Missing, Clash, or LabError for a damaged one."""
        path = self.path / RUN_FILE
        if not path.exists():
            raise Missing(f"{path} is not there: the run is not trained")
        content = read_run(path)
        self._own(content, RUN_FILE)
        return content

    @property
    def digest(self) -> str:
        """Of the weights. Raises as `record` does."""
        return str(self.record["model_digest"])

    @property
    def trained(self) -> bool:
        """Whether the run is finished, whatever became of its weights. Raises Clash."""
        return self._problem() is None

    @property
    def usable(self) -> bool:
        """Whether the run is finished and its weights are there; a word to the log where only that is missing. Raises Clash."""
        problem = self._problem()
        if problem is None and not self.weights.exists():
            problem = f"{self.weights} is gone"
        if problem is not None and (self.path / RUN_FILE).exists():
            log.warning("trained again: %s", problem)
        return problem is None

    def _problem(self) -> str | None:
        """Why run.json does not count."""
        try:
            _ = self.record
        except Clash:
            raise
        except LabError as error:
            return str(error)
        return None

    def afresh(self) -> RunFolder:
        """The same folder, whose files are read anew."""
        return RunFolder(self.path, self.differs)

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file. Raises LabError where it is damaged."""
        path = self.path / METRICS_FILE
        try:
            rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("expected an object a line")
        except (OSError, ValueError) as error:
            raise LabError(f"{path} cannot be read ({error}); train with force=true") from error
        return rows

    def finish(self, record: Content) -> None:
        """Write run.json, the last file, and take the checkpoint away."""
        write_json(self.path / RUN_FILE, record)
        self.checkpoint.unlink(missing_ok=True)

    def panel_file(self, key: str) -> Path:
        return self.path / "panel" / f"{key}.json"

    def crafted_file(self, name: str) -> Path:
        return self.path / "crafted" / f"{name}.npz"

    @cached_property
    def pack(self) -> Pack:
        """The evaluations that are published with the run, in two files."""
        return Pack(self.path)

    def evaluation(self, name: str, fingerprint: str, differs: Callable[[Content], str | None] = nothing_differs) -> EvaluationFolder:
        parent = self.path / "evaluate"
        found = existing(parent, fingerprint, RECORD_FILE)
        return EvaluationFolder(found or parent / (self.pack.named(fingerprint) or name), differs, self.pack)

    def evaluations(self) -> list[EvaluationFolder]:
        """Those that have a record, by name. Raises LabError where what is packed is damaged."""
        names = {path.parent.name for path in self.path.glob(f"evaluate/*/{RECORD_FILE}")} | set(self.pack.records)
        return [EvaluationFolder(self.path / "evaluate" / name, pack=self.pack) for name in sorted(names)]


@dataclass(frozen=True)
class EvaluationFolder(Folder):
    """An evaluation of a run, whose folder it lies in, or where it is packed."""

    pack: Pack | None = field(default=None, compare=False)

    @property
    def file(self) -> Path:
        """What has the record, or will have it."""
        own = self.path / RECORD_FILE
        return self.pack.records_file if self.pack is not None and self._packed and not own.exists() else own

    @property
    def _packed(self) -> bool:
        return self.pack is not None and self.name in self.pack.records

    @property
    def made(self) -> bool:
        """Whether there is a record, of whatever worth."""
        return self._packed or self.file.exists()

    def read(self) -> dict[str, Any]:
        """The record, whatever weights it speaks of. Raises Missing, or LabError for one that is damaged."""
        if not self.made:
            raise Missing(f"{self.file} is not there: it was not evaluated")
        if self.pack is not None and self.file == self.pack.records_file:
            return sound(copy.deepcopy(self.pack.records[self.name]), self.file)
        return read_record(self.file)

    @property
    def partial(self) -> Path:
        """What an interrupted evaluation leaves."""
        return self.path / PARTIAL_FILE

    def record(self, digests: Mapping[str, str]) -> dict[str, Any]:
        """The record, if it counts: it speaks of weights of these digests, by the part (run, source) that has them.

        Raises Missing, Clash, or LabError for one that is damaged or speaks of other weights.
        """
        record = self.read()
        self._own(record, self.file.name)
        self.check_weights(record, digests)
        return record

    def check_weights(self, record: Content, digests: Mapping[str, str]) -> None:
        """Raises LabError where a record of this folder speaks of weights of other digests."""
        for part, digest in digests.items():
            about = record.get(part)
            if not isinstance(about, Mapping) or about.get("model_digest") != digest:
                name = about.get("name", "its run") if isinstance(about, Mapping) else "its run"
                raise LabError(f"{self.path / RECORD_FILE} speaks of other weights than {name} has now; evaluate again")

    def finished(self, digests: Mapping[str, str]) -> dict[str, Any] | None:
        """The record, if it counts and the outcome beside it can be read; None where there is something to do, and why in the log."""
        try:
            record = self.record(digests)
            if self.arrays(OUTCOME_FILE) is None:
                raise LabError(f"{self.path / OUTCOME_FILE} is gone")
        except Clash:
            raise
        except LabError as error:
            if not isinstance(error, Missing):
                log.warning("made anew: %s", error)
            return None
        return record

    def arrays(self, name: str) -> dict[str, Any] | None:
        """One of its files of arrays; None where there is none. Raises LabError where it is damaged."""
        path = self.path / name
        if path.exists():
            return read_arrays(path)
        return self.pack.arrays(self.name, name) if self.pack is not None and not (self.path / RECORD_FILE).exists() else None

    def begin(self) -> None:
        """What was said before does not count from now on."""
        (self.path / RECORD_FILE).unlink(missing_ok=True)

    def finish(self, record: Content) -> None:
        """Write record.json, the last file, and take the partial outcome away."""
        write_json(self.path / RECORD_FILE, record)
        self.partial.unlink(missing_ok=True)


class OutputFolder:
    """Every run under an output folder, by its fingerprint; each run.json is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def runs(self) -> dict[str, RunFolder]:
        found: dict[str, RunFolder] = {}
        for path in sorted((self.root / "runs").glob("*"), key=lambda path: (not (path / RUN_FILE).exists(), path)):
            found.setdefault(path.name.rpartition("-")[2], RunFolder(path))
        return dict(sorted(found.items(), key=lambda item: item[1].path))

    def trained(self) -> Iterator[RunFolder]:
        """The finished runs, by name; damaged ones are passed over."""
        return (run for run in self.runs.values() if run.trained)

    def digests(self, parts: Mapping[str, str]) -> dict[str, str]:
        """Of the weights that runs, named by their fingerprints, have now. Raises LabError where one is not trained or damaged."""
        for fingerprint in parts.values():
            if fingerprint not in self.runs:
                raise Missing(f"{self.root / 'runs'} has no run {fingerprint}")
        return {part: self.runs[fingerprint].digest for part, fingerprint in parts.items()}
