"""What tables need: the distinct trainings and evaluations, which of them are finished, and how long the others may take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import Evaluation, Run, run_of
from robustbench_lab.settings.overrides import merged_overrides, train_overrides
from robustbench_lab.storage.files import read_json
from robustbench_lab.storage.records import MODEL_FILE, RECORD_FILE, RUN_FILE, finished_runs
from robustbench_lab.tables.cells import Cell


@dataclass(frozen=True)
class Job:
    """A training or an evaluation: the verb and its words, and the file that is there when it is finished.

    needs: the fingerprints of the runs that must be trained before. seconds: what like jobs took; None if there are none.
    """

    verb: str
    name: str
    words: list[str]
    file: Path
    needs: frozenset[str]
    fingerprint: str
    finished: bool
    seconds: float | None


@dataclass(frozen=True)
class Plan:
    """Every distinct job behind some tables' cells, trainings first."""

    jobs: list[Job]

    def missing(self, verb: str) -> list[Job]:
        return [job for job in self.jobs if job.verb == verb and not job.finished]

    def lines(self) -> Iterator[str]:
        """What is finished, what is missing, and how long that may take."""
        for verb, noun in (("train", "training runs"), ("evaluate", "evaluations")):
            jobs, missing = [job for job in self.jobs if job.verb == verb], self.missing(verb)
            line = f"{len(jobs)} {noun}: {len(jobs) - len(missing)} finished, {len(missing)} missing"
            yield line + (f" ({estimate(missing)})" if missing else "")
            yield from (f"  {job.name}{f'  {duration(job.seconds)}' if job.seconds is not None else ''}" for job in missing)


def estimate(jobs: Sequence[Job]) -> str:
    """The time that jobs may take, one after the other, from records of like ones."""
    known = [job.seconds for job in jobs if job.seconds is not None]
    if not known:
        return "no estimate: nothing like them has run here"
    unknown = len(jobs) - len(known)
    return f"about {duration(sum(known))}, one after the other" + (f"; {unknown} of them without an estimate" if unknown else "")


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


def plan_of(cells: Iterable[Cell], output_root: Path) -> Plan:
    """The jobs behind the cells, each once."""
    cells, costs = list(cells), Costs(output_root)
    trained = {folder.name.rpartition("-")[2] for folder, _ in finished_runs(output_root)}
    runs: dict[str, Job] = {}
    evaluations: dict[tuple[str, str], Job] = {}
    for one in (measurement for cell in cells for measurement in cell.measurements):
        evaluation = one.evaluation
        words = train_overrides(one.overrides)
        for run, described in ((evaluation.run, words), (evaluation.source, evaluation.source_words)):
            if run is not None and run.fingerprint not in runs:
                for part, its_words in _with_teachers(run, described):
                    file, needs = part.folder(output_root) / RUN_FILE, frozenset({part.source.fingerprint} if part.source else ())
                    finished = part.fingerprint in trained
                    runs.setdefault(
                        part.fingerprint,
                        Job("train", part.name, list(its_words), file, needs, part.fingerprint, finished, costs.training(part)),
                    )
        needs = frozenset(run.fingerprint for run in (evaluation.run, evaluation.source) if run is not None)
        evaluations.setdefault(
            (evaluation.run.fingerprint, evaluation.fingerprint),
            Job(
                "evaluate", f"{evaluation.run.name} {evaluation.name}", one.overrides, evaluation.folder(output_root) / RECORD_FILE, needs,
                evaluation.fingerprint, one.record is not None, costs.attacking(evaluation),
            ),
        )  # fmt: skip
    for fingerprint in {needed for job in evaluations.values() if not job.finished for needed in job.needs}:
        if not runs[fingerprint].file.with_name(MODEL_FILE).exists():  # what is measured stays, but the rest needs the weights again
            runs[fingerprint] = replace(runs[fingerprint], finished=False)
    return Plan([*runs.values(), *evaluations.values()])


def _with_teachers(run: Run, words: Sequence[str]) -> list[tuple[Run, Sequence[str]]]:
    """The runs that a run learns from, and at last itself, each with its words; a teacher that no words describe is left to `train`."""
    found: list[tuple[Run, Sequence[str]]] = [(run, words)]
    while (teacher := found[0][0].source) is not None:
        described = merged_overrides(found[0][1], [f"defense={teacher.choices['defense']}"])
        if run_of(*compose("train", described)).fingerprint != teacher.fingerprint:
            break
        found.insert(0, (teacher, described))
    return found


class Costs:
    """What finished jobs took, by what they have in common with one that is to come: the likest ones count."""

    def __init__(self, output_root: Path) -> None:
        self._training: dict[tuple[Any, ...], list[float]] = {}
        self._attacking: dict[tuple[Any, ...], list[float]] = {}
        for folder, run in finished_runs(output_root):
            with suppress(KeyError, TypeError):
                for key in _like_training(run["choices"], run["config"]):
                    self._training.setdefault(key, []).append(float(run["seconds"]))
            for path in (folder / "evaluate").glob(f"*/{RECORD_FILE}"):
                with suppress(LabError, KeyError, TypeError):
                    record = read_json(path)
                    if any(record.get("examples_from_before", ())):
                        continue  # it did not search
                    for key in _like_attacking(record["run"]["choices"], record["choices"]["attack"], record["config"]["test_size"]):
                        self._attacking.setdefault(key, []).append(float(record["seconds"]))

    def training(self, run: Run) -> float | None:
        return _median(self._training, _like_training(run.choices, run.config))

    def attacking(self, evaluation: Evaluation) -> float | None:
        size = evaluation.config["test_size"]
        return _median(self._attacking, _like_attacking(evaluation.run.choices, evaluation.choices["attack"], size))


def _like_training(choices: dict[str, str], config: dict[str, Any]) -> list[tuple[Any, ...]]:
    size, epochs = config["dataset"].get("train_size"), config["training"]["epochs"]
    alike = (choices["dataset"], choices["backbone"], choices["training"], size, epochs)
    return [(*alike, choices["defense"]), alike]


def _like_attacking(choices: dict[str, str], attack: str, size: int | None) -> list[tuple[Any, ...]]:
    alike = (choices["dataset"], choices["backbone"], attack, size)
    return [(*alike, choices["defense"]), alike]


def _median(found: dict[tuple[Any, ...], list[float]], keys: list[tuple[Any, ...]]) -> float | None:
    return next((median(found[key]) for key in keys if key in found), None)
