"""What tables need: the distinct trainings and evaluations, which of them are finished, and how long the others may take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.settings.identity import Evaluation, Run
from robustbench_lab.settings.images import Images, other_images
from robustbench_lab.settings.overrides import train_overrides
from robustbench_lab.storage.files import say_once
from robustbench_lab.storage.folders import EvaluationFolder, OutputFolder, RunFolder
from robustbench_lab.storage.records import RECORD_FILE, RUN_FILE
from robustbench_lab.tables.cells import Cell


@dataclass(frozen=True)
class Job:
    """A training or an evaluation: the verb and its words, and the file that is there when it is finished.

    needs: the fingerprints of the runs that must be trained before. seconds: what like jobs took; None if there are none.
    counts: whether its result is there now, and could be used.
    """

    verb: str
    name: str
    words: list[str]
    file: Path
    needs: frozenset[str]
    fingerprint: str
    finished: bool
    seconds: float | None
    counts: Callable[[], bool] = lambda: False


@dataclass(frozen=True)
class Plan:
    """Every distinct job behind some tables' cells: runs by fingerprint, evaluations by the run's and their own."""

    runs: dict[str, Job]
    evaluations: dict[tuple[str, str], Job]

    @property
    def jobs(self) -> list[Job]:
        """Trainings first."""
        return [*self.runs.values(), *self.evaluations.values()]

    def missing(self, verb: str) -> list[Job]:
        return [job for job in self.jobs if job.verb == verb and not job.finished]

    def behind(self, cells: Iterable[Cell]) -> Plan:
        """The part of it that some of the cells need."""
        keys = dict.fromkeys(key_of(evaluation) for cell in cells for _, evaluation, _ in asked_by(cell))
        evaluations = {key: self.evaluations[key] for key in keys}
        todo, needed = [run for job in evaluations.values() for run in job.needs], set[str]()
        while todo:
            if (run := todo.pop()) not in needed:
                needed.add(run)
                todo += self.runs[run].needs
        return Plan({run: job for run, job in self.runs.items() if run in needed}, evaluations)

    def lines(self, tables: Mapping[str, Iterable[Cell]], full: bool = False) -> Iterator[str]:
        """Of each table, and of all: what is finished, what is missing, and how long that may take; `full`: with every missing job."""
        width = max([len(name) for name in tables], default=0)
        for name, cells in tables.items():
            part = self.behind(cells)
            runs, evaluations, missing = part.missing("train"), part.missing("evaluate"), [job for job in part.jobs if not job.finished]
            yield (
                f"{name:<{width}}  runs {len(part.runs) - len(runs):>3} finished {len(runs):>3} missing  evaluations "
                f"{len(part.evaluations) - len(evaluations):>4} finished {len(evaluations):>4} missing"
                + (f"  {estimate(missing)}" if missing else "")
            )
        for verb, noun, jobs in (("train", "training runs", self.runs), ("evaluate", "evaluations", self.evaluations)):
            missing = self.missing(verb)
            line = f"{len(jobs)} {noun}: {len(jobs) - len(missing)} finished, {len(missing)} missing"
            yield line + (f" ({estimate(missing)})" if missing else "")
            if full:
                yield from (f"  {job.name}{f'  {duration(job.seconds)}' if job.seconds is not None else ''}" for job in missing)


def asked_by(cell: Cell) -> Iterator[tuple[list[str], Evaluation, dict[str, Any] | None]]:
    """The evaluations behind a cell: their words, and the record of each that is finished."""
    for one in cell.measurements:
        yield one.overrides, one.evaluation, one.record


def key_of(evaluation: Evaluation) -> tuple[str, str]:
    return evaluation.run.fingerprint, evaluation.fingerprint


def estimate(jobs: Sequence[Job]) -> str:
    """The time that jobs may take, one after the other, from records of like ones."""
    known = [job.seconds for job in jobs if job.seconds is not None]
    unknown = len(jobs) - len(known)
    if not known:
        return "no estimate"
    return f"about {duration(sum(known))}" + (f" and {unknown} without an estimate" if unknown else "")


def duration(seconds: float) -> str:
    """In the largest fitting units: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def plan_of(cells: Iterable[Cell], output_root: Path, images: Images | None = None) -> Plan:
    """The jobs behind the cells, each once. What was made from other images than these is not finished."""
    there = OutputFolder(output_root)
    costs, folders = Costs(there), Folders(there)
    runs: dict[str, Job] = {}
    evaluations: dict[tuple[str, str], Job] = {}
    for words, evaluation, record in (asked for cell in cells for asked in asked_by(cell)):
        if key_of(evaluation) in evaluations:
            continue
        needs = [run for run in (evaluation.run, evaluation.source) if run is not None]
        for run, described in zip(needs, (train_overrides(words), evaluation.source_words), strict=False):
            if run.fingerprint not in runs:
                for part, its_words in _with_teachers(run, described):
                    if part.fingerprint not in runs:
                        runs[part.fingerprint] = _training(part, list(its_words), folders, costs, images)
        finished = record is not None and all(runs[run.fingerprint].finished for run in needs)
        if finished and images is not None:
            finished = other_images(record or {}, images.of_evaluation(evaluation)) is None
        name = f"{evaluation.run.name} {evaluation.name}"
        evaluations[key_of(evaluation)] = Job(
            "evaluate", name, words, folders.of_evaluation(evaluation) / RECORD_FILE,
            frozenset(run.fingerprint for run in needs), evaluation.fingerprint, finished,
            None if finished else costs.attacking(evaluation), partial(_counts, evaluation, output_root, images),
        )  # fmt: skip
    for fingerprint in {needed for job in evaluations.values() if not job.finished for needed in job.needs}:
        job = runs[fingerprint]
        if job.finished and not job.counts():  # what is measured stays, but the rest needs the weights again
            runs[fingerprint] = replace(job, finished=False)
    return Plan(runs, evaluations)


def _training(run: Run, words: list[str], folders: Folders, costs: Costs, images: Images | None) -> Job:
    needs = frozenset({run.teacher.fingerprint} if run.teacher else ())
    finished = run.fingerprint in costs.trained
    folder, seconds = folders.of_run(run), costs.training(run)
    if finished and images is not None:
        finished = other_images(folders.there.runs[run.fingerprint].record, images.of_run(run)) is None
    return Job(
        "train",
        run.name,
        words,
        folder / RUN_FILE,
        needs,
        run.fingerprint,
        finished,
        seconds,
        lambda: _run_counts(RunFolder(folder, run.differs), run, images),
    )


def _run_counts(folder: RunFolder, run: Run, images: Images | None) -> bool:
    """Whether a run is there now, and of these images."""
    return folder.counts and (images is None or other_images(folder.record, images.of_run(run)) is None)


def _counts(evaluation: Evaluation, output_root: Path, images: Images | None) -> bool:
    """Whether an evaluation's record is there now, of the weights that its runs have now, and of these images."""
    try:
        digests = {part: run.at(output_root).digest for part, run in evaluation.runs.items()}
    except LabError:
        return False
    folder = evaluation.at(output_root)
    if not folder.counts(digests):
        return False
    return images is None or other_images(folder.finished(digests) or {}, images.of_evaluation(evaluation)) is None


def _with_teachers(run: Run, words: Sequence[str]) -> list[tuple[Run, Sequence[str]]]:
    """The runs that a run learns from, and at last itself, each with its words."""
    taught = _with_teachers(run.teacher, run.teacher_words) if run.teacher else []
    return [*taught, (run, words)]


class Folders:
    """Where runs and evaluations are, or will be; what there is is listed once."""

    def __init__(self, there: OutputFolder) -> None:
        self.there = there

    def of_run(self, run: Run) -> Path:
        found = self.there.runs.get(run.fingerprint)
        return found.path if found else self.there.root / "runs" / run.name

    def of_evaluation(self, evaluation: Evaluation) -> Path:
        found = self.there.runs.get(evaluation.run.fingerprint)
        return evaluation.within(found).path if found else self.of_run(evaluation.run) / "evaluate" / evaluation.name


class Costs:
    """What finished jobs took, by what they have in common with one that is to come: the likest ones count."""

    def __init__(self, there: OutputFolder) -> None:
        self._finished = list(there.trained())
        self.trained = {run.name.rpartition("-")[2] for run in self._finished}

    @cached_property
    def _training(self) -> dict[tuple[Any, ...], list[float]]:
        found: dict[tuple[Any, ...], list[float]] = {}
        for run in self._finished:
            with suppress(KeyError, TypeError):
                for key in _like_training(run.record["choices"], run.record["config"]):
                    found.setdefault(key, []).append(float(run.record["seconds"]))
        return found

    @cached_property
    def _attacking(self) -> dict[tuple[Any, ...], list[float]]:
        """Read when something is missing."""
        found: dict[tuple[Any, ...], list[float]] = {}
        for evaluation in (evaluation for run in self._finished for evaluation in _evaluations(run)):
            with suppress(LabError, KeyError, TypeError):
                record = evaluation.read()
                if any(record.get("examples_from_before", ())):
                    continue  # it did not search
                for key in _like_attacking(record["run"]["choices"], record["choices"]["attack"], record["config"]["test_size"]):
                    found.setdefault(key, []).append(float(record["seconds"]))
        return found

    def training(self, run: Run) -> float | None:
        return _median(self._training, _like_training(run.choices, run.config))

    def attacking(self, evaluation: Evaluation) -> float | None:
        size = evaluation.config["test_size"]
        return _median(self._attacking, _like_attacking(evaluation.run.choices, evaluation.choices["attack"], size))


def _evaluations(run: RunFolder) -> list[EvaluationFolder]:
    try:
        return run.evaluations()
    except LabError as error:
        say_once(str(error))
        return []


def _like_training(choices: dict[str, str], config: dict[str, Any]) -> list[tuple[Any, ...]]:
    size, epochs = config["dataset"].get("train_size"), config["training"].get("epochs", 0)
    alike = (choices["dataset"], choices["backbone"], choices["training"], size, epochs)
    return [(*alike, choices["defense"]), alike]


def _like_attacking(choices: dict[str, str], attack: str, size: int | None) -> list[tuple[Any, ...]]:
    alike = (choices["dataset"], choices["backbone"], attack, size)
    return [(*alike, choices["defense"]), alike]


def _median(found: dict[tuple[Any, ...], list[float]], keys: list[tuple[Any, ...]]) -> float | None:
    return next((median(found[key]) for key in keys if key in found), None)
