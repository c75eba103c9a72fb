"""The folders of training runs and evaluations: the one answer to whether something is finished, speaks of these weights, or is damaged.

A run is finished when its last file, run.json, is there and sound; its weights may be gone all the same (a published run has none). It can
be used when its weights are there too, whole, and those that run.json speaks of. A record counts when it is sound, speaks of the evaluation
that is asked for, and of the weights that its runs have now. What is damaged is named and counts as missing.
"""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.storage.failures import write_error
from robustbench_lab.storage.files import (
    Forbidden,
    Missing,
    locked,
    locked_if_free,
    names_in,
    read_arrays,
    remove,
    say_once,
    sweep,
    there,
    write_json,
)
from robustbench_lab.storage.packs import Pack
from robustbench_lab.storage.records import (
    CHECKPOINT_FILE,
    DEFENDED_IMAGES_FILE,
    ERROR_FILE,
    EXAMPLES_FILE,
    EXTRA_FILE,
    FEATURES_FILE,
    METRICS_FILE,
    MODEL_FILE,
    OUTCOME_FILE,
    PARTIAL_FILE,
    PLANE_FILE,
    RAY_FILE,
    RECORD_FILE,
    RUN_FILE,
    check_arrays,
    check_metrics,
    read_epochs,
    read_record,
    read_run,
    sound,
)
from robustbench_lab.storage.weights import check_weights

log = logging.getLogger("robustbench_lab")

Content = Mapping[str, Any]  # of run.json or record.json


class Clash(LabError):
    """A folder has the name of what is asked for, and holds something else."""


def nothing_differs(content: Content) -> str | None:
    return None


def existing(parent: Path, fingerprint: str, last_file: str) -> Path | None:
    """The folder of this content; of several, which two processes with other words for it may make side by side, a finished one."""
    try:
        names = names_in(parent)
    except Forbidden:  # what is asked for may be there all the same; who reads it is told
        return None
    except LabError:  # no folder
        return None
    found = [parent / name for name in names if name.endswith(f"-{fingerprint}")]
    return min(found, key=lambda folder: (not os.path.exists(folder / last_file), folder), default=None)


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
        remove(path)
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
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # the form leaves open what is in a config's parts
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

    @property
    def extra_images(self) -> Path:
        return self.path / EXTRA_FILE

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json, read once. Raises Missing, Clash, or LabError for a damaged one."""
        path = self.path / RUN_FILE
        try:
            content = read_run(path)
        except Missing:
            raise Missing(f"{path} is not there: the run is not trained") from None
        self._own(content, RUN_FILE)
        return content

    @property
    def digest(self) -> str:
        """Of the weights. Raises as `record` does."""
        return str(self.record["model_digest"])

    @property
    def trained(self) -> bool:
        """Whether the run is finished, whatever became of its weights. Raises Clash, or Forbidden."""
        return self._problem(weights=False) is None

    @property
    def usable(self) -> bool:
        """Whether the run is finished and its weights are those that it speaks of; a word to the log where only that is wrong. Raises
        Clash, or Forbidden."""
        problem = self._problem(weights=True)
        if problem is not None and there(self.path / RUN_FILE):
            log.warning("trained again: %s", problem)
        return problem is None

    @property
    def counts(self) -> bool:
        """The same, without a word, of the files as they are now."""
        try:
            return self.afresh()._problem(weights=True) is None
        except LabError:
            return False

    def _problem(self, weights: bool) -> str | None:
        """Why run.json, and the weights beside it, do not count."""
        try:
            digest = self.digest
            if weights:
                check_weights(self.weights, digest)
        except (Clash, Forbidden):
            raise
        except LabError as error:
            return str(error)
        return None

    def check_places(self) -> None:
        """Raises LabError where something that is no file stands where a training will write one: before it, not after hours."""
        _check_places(self.path, (RUN_FILE, MODEL_FILE, CHECKPOINT_FILE, EXTRA_FILE, METRICS_FILE, ERROR_FILE))

    def tidy(self) -> None:
        """Take away what a killed process left: of a finished run the checkpoint and its extra images, of finished evaluations the partial
        outcome, and files that were being written. What another process works in stays as it is."""
        evaluations = [self.path / "evaluate" / name for name in _listed(self.path / "evaluate")]
        _tidy(self.path, RUN_FILE, CHECKPOINT_FILE, EXTRA_FILE)
        for one in evaluations:
            _tidy(one, RECORD_FILE, PARTIAL_FILE)
        for name in ("panel", "crafted", ".hydra"):
            sweep(self.path / name)

    def afresh(self) -> RunFolder:
        """The same folder, whose files are read anew."""
        return RunFolder(self.path, self.differs)

    def epochs(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; none where there is no such file. Raises LabError where it is damaged."""
        path = self.path / METRICS_FILE
        return read_epochs(path) if there(path) else []

    def finish(self, record: Content) -> None:
        """Write run.json, the last file, and take away what training could be resumed from."""
        write_json(self.path / RUN_FILE, record)
        remove(self.checkpoint)
        remove(self.extra_images)

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
        """Those that have a record, by name; what is damaged in the pack is passed over. Raises LabError where the folder of evaluations
        cannot be listed."""
        folder = self.path / "evaluate"
        names = {name for name in names_in(folder) if there(folder / name / RECORD_FILE)} | set(self.pack.records)
        return [EvaluationFolder(self.path / "evaluate" / name, pack=self.pack) for name in sorted(names)]


@dataclass(frozen=True)
class EvaluationFolder(Folder):
    """An evaluation of a run, whose folder it lies in, or where it is packed."""

    pack: Pack | None = field(default=None, compare=False)

    @property
    def file(self) -> Path:
        """What has the record, or will have it."""
        own = self.path / RECORD_FILE
        return self.pack.records_file if self.pack is not None and self._packed and not there(own) else own

    @property
    def _packed(self) -> bool:
        return self.pack is not None and self.name in self.pack.records

    @property
    def made(self) -> bool:
        """Whether there is a record, of whatever worth."""
        return self._packed or there(self.file)

    def read(self) -> dict[str, Any]:
        """The record, whatever weights it speaks of. Raises Missing, or LabError for one that is damaged."""
        if not self.made:
            raise Missing(f"{self.file} is not there: it was not evaluated")
        if self.pack is not None and self.file == self.pack.records_file:
            return sound(copy.deepcopy(self.pack.records[self.name]), f"{self.file}: {self.name}")
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
        """The record, if it counts and the outcome beside it is whole and its own; None where there is something to do, and why in the
        log. Raises Clash, or Forbidden."""
        try:
            record = self.record(digests)
            check_metrics(record, self.file)
            self._check_outcome(record)
            for name in KEPT_FILES:
                self.arrays(name)
        except (Clash, Forbidden):
            raise
        except LabError as error:
            if not isinstance(error, Missing):
                log.warning("made anew: %s", error)
            return None
        return record

    def counts(self, digests: Mapping[str, str]) -> bool:
        """Whether the record that there is now counts, without a word."""
        try:
            check_metrics(self.record(digests), self.file)
        except LabError:
            return False
        return True

    def _check_outcome(self, record: Content) -> None:
        """Raises LabError where the outcome is gone, damaged, or not the one that the record was made from."""
        arrays, path = self.arrays(OUTCOME_FILE), self.path / OUTCOME_FILE
        if arrays is None:
            raise LabError(f"{path} is gone")
        if (len(arrays["index"]), int(arrays["clean"].sum()), int(arrays["robust"].sum())) != tuple(
            record[key] for key in ("n", "clean_correct", "robust_correct")
        ):
            raise LabError(f"{path} is of another outcome than {RECORD_FILE} beside it")

    def arrays(self, name: str) -> dict[str, Any] | None:
        """One of its files of arrays; None where there is none. Raises LabError where it is damaged, or has not what a file of this name
        has."""
        path, arrays = self.path / name, None
        if there(path):
            arrays = read_arrays(path)
        elif self.pack is not None and not there(self.path / RECORD_FILE):
            arrays = self.pack.arrays(self.name, name)
        if arrays is not None:
            check_arrays(name, arrays, path)
        return arrays

    def begin(self) -> None:
        """What was said before does not count from now on. Raises LabError where something that is no file stands where one will be
        written."""
        _check_places(self.path, (RECORD_FILE, OUTCOME_FILE, PARTIAL_FILE, ERROR_FILE, *KEPT_FILES))
        remove(self.path / RECORD_FILE)

    def finish(self, record: Content) -> None:
        """Write record.json, the last file, and take the partial outcome away."""
        write_json(self.path / RECORD_FILE, record)
        remove(self.partial)


KEPT_FILES = (EXAMPLES_FILE, DEFENDED_IMAGES_FILE, FEATURES_FILE, PLANE_FILE, RAY_FILE)  # of an evaluation, where it has them


def _check_places(folder: Path, names: Iterable[str]) -> None:
    for path in (folder / name for name in names):
        if there(path) and not path.is_file():
            raise LabError(
                f"cannot write {path}: something that is no file stands in its place; move it away, or choose another output_root"
            )


def _listed(folder: Path) -> list[str]:
    try:
        return names_in(folder)
    except LabError:
        return []


def _tidy(folder: Path, last_file: str, *files: str) -> None:
    """Take `files` away where the last file is there, and what was being written: asked for again once the folder is ours."""
    left = [name for name in _listed(folder) if name in files or name.endswith(".partial")]
    if not left or not os.path.exists(folder / last_file):
        return
    with suppress(LabError, OSError), locked_if_free(folder) as free:
        if free and os.path.exists(folder / last_file):
            for file in files:
                remove(folder / file)
            sweep(folder, everything=True)


class OutputFolder:
    """Every run under an output folder, by its fingerprint; each run.json is read once."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @cached_property
    def runs(self) -> dict[str, RunFolder]:
        found: dict[str, RunFolder] = {}
        folder = self.root / "runs"
        try:
            paths = [folder / name for name in names_in(folder)]
        except LabError as error:
            say_once(str(error))
            paths = []
        for path in sorted(paths, key=lambda path: (not os.path.exists(path / RUN_FILE), path)):
            found.setdefault(path.name.rpartition("-")[2], RunFolder(path))
        return dict(sorted(found.items(), key=lambda item: item[1].path))

    def trained(self) -> Iterator[RunFolder]:
        """The finished runs, by name; damaged ones, and those that may not be read, are passed over with a word to the log."""
        for run in self.runs.values():
            try:
                _ = run.record
            except Missing:
                continue
            except LabError as error:
                say_once(f"counts as missing: {error}")
                continue
            yield run

    def digests(self, parts: Mapping[str, str]) -> dict[str, str]:
        """Of the weights that runs, named by their fingerprints, have now. Raises LabError where one is not trained or damaged."""
        for fingerprint in parts.values():
            if fingerprint not in self.runs:
                raise Missing(f"{self.root / 'runs'} has no run {fingerprint}")
        return {part: self.runs[fingerprint].digest for part, fingerprint in parts.items()}
