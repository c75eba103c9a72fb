"""Everything that a report is made from: the records and runs under an output folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.report.entries import Entry, Foreign, Trained
from robustbench_lab.report.pictures import Album, Example, examples_of
from robustbench_lab.report.sections import Section
from robustbench_lab.report.sweeps import SweepArticle, articles_of
from robustbench_lab.settings.conf import choice_file
from robustbench_lab.settings.overrides import parsed
from robustbench_lab.settings.yaml_files import read_yaml
from robustbench_lab.storage.files import names_in, there
from robustbench_lab.storage.folders import EvaluationFolder, Missing, OutputFolder
from robustbench_lab.storage.records import ERROR_FILE, EXAMPLES_FILE, METRICS_FILE, RUN_FILE, read_error
from robustbench_lab.tables.grid import Table

CLASSES = ("dataset", "backbone", "defense", "attack")  # groups whose choices are of several classes
GALLERY, PICTURES = 4, 4  # models of a table, and examples of each, that are shown


@dataclass(frozen=True)
class Gallery:
    """Adversarial examples of one model under one attack."""

    model: str
    entry: Entry
    examples: Sequence[Example]


class Shelf:
    """Every record and run under an output folder, and `problems`: the files that could not be read, with the reason.

    of_the_project: whether these are the results that are published with the code.
    """

    def __init__(self, output_root: Path, of_the_project: bool = False) -> None:
        self.root = output_root
        self.of_the_project = of_the_project
        self.problems: dict[str, str] = {}
        self.entries: list[Entry] = []
        self.trained: dict[str, Trained] = {}
        self._folder = OutputFolder(output_root)
        self._read(output_root / "runs", partial(names_in, output_root / "runs"))
        for fingerprint, run in self._folder.runs.items():
            for evaluation in self._read(run.path / "evaluate", run.evaluations) or []:
                self._list(evaluation)
            if (problem := run.pack.problem) is not None:
                self._problem(run.pack.records_file, problem.removeprefix(str(run.pack.records_file)).strip())
            if (record := self._read(run.path / RUN_FILE, partial(getattr, run, "record"))) is not None:
                epochs = self._read(run.path / METRICS_FILE, run.epochs) or []
                self.trained[fingerprint] = Trained.of(run.name, record, epochs)

    def _list(self, evaluation: EvaluationFolder) -> None:
        path = evaluation.file
        if (record := self._read(path, partial(evaluation.record, {}))) is not None:
            self.entries.append(Entry.of(evaluation, record))

    def of_runs(self) -> dict[str, list[Entry]]:
        """The records of each run that speak of the weights it has now, and of test images."""
        found: dict[str, list[Entry]] = {}
        for entry in filter(self.is_current, self.entries):
            if entry.split != "test":
                continue
            found.setdefault(entry.run, []).append(entry)
        return found

    def is_current(self, entry: Entry) -> bool:
        """Whether the runs that a record speaks of, the attacked and the attacker's, still have the weights that it speaks of."""
        parts = {part: entry.record[part]["fingerprint"] for part in ("run", "source") if entry.record.get(part)}
        try:
            entry.folder.check_weights(entry.record, self._folder.digests(parts))
        except LabError:
            return False
        return True

    @cached_property
    def _classes(self) -> list[dict[str, str]]:
        """The classes behind each record and its run, by group, as far as these tell them."""
        found = set()
        for entry in self.entries:
            run = self.trained[entry.run].record["config"] if entry.run in self.trained else {}
            config = {**run, **entry.record["config"]}
            found.add(tuple((group, str(config[group]["_target_"])) for group in CLASSES if "_target_" in config.get(group, ())))
        return [dict(classes) for classes in found]

    def may_fill(self, table: Table) -> bool:
        """Whether some record is of the classes that some cell's words choose: without one, the table need not be composed. The choices'
        names do not tell: two of them, with other words, may have the same content."""
        chosen = {frozenset(found for word in words if (found := class_of(word)) is not None) for _, _, words in table.words()}
        return any(all(known.get(group, name) == name for group, name in classes) for classes in chosen for known in self._classes)

    def failures(self) -> list[tuple[str, str]]:
        """Jobs that left an error and have not succeeded since: folder and error."""
        folders = [run.path for run in self._folder.runs.values()]
        for folder in [folder / "evaluate" for folder in folders]:
            folders += [folder / name for name in self._read(folder, partial(names_in, folder)) or ()]
        paths = sorted(path for folder in folders if there(path := folder / ERROR_FILE))
        contents = [(path, self._read(path, partial(read_error, path))) for path in paths]
        return [(self._name(path.parent), str(content.get("error", "no message"))) for path, content in contents if content is not None]

    def imported(self) -> list[Foreign]:
        """The runs that someone else has trained, with their verdicts, the lowest first."""
        entries = self.of_runs()
        return [
            Foreign(key, run, sorted(entries.get(key, ()), key=lambda entry: (entry.robust.value, entry.fingerprint)))
            for key, run in self.trained.items()
            if "imported" in run.record
        ]

    def sweeps(self) -> list[SweepArticle]:
        found, problems = articles_of(self.root)
        for folder, reason in problems.items():
            self._problem(folder, reason.removeprefix(str(folder)).strip())
        return found

    def galleries(self, section: Section, album: Album) -> list[Gallery]:
        found = []
        for model, entry in section.strongest_rows(GALLERY):
            path = entry.folder.path / EXAMPLES_FILE
            if (arrays := self._read(path, partial(entry.folder.arrays, EXAMPLES_FILE))) is not None:
                try:
                    examples = examples_of(arrays, entry.dataset, PICTURES, album)
                except LabError as error:
                    self._problem(path, f"is damaged: {error}; repeat the job with force=true")
                    continue
                if examples:
                    found.append(Gallery(model, entry, examples))
        return found

    def _read(self, path: Path, read: Callable[[], Any]) -> Any:
        """What `read` gives of the file; None where it is not there, or cannot be read, which is then a problem."""
        try:
            return read()
        except Missing:
            return None
        except LabError as error:
            self._problem(path, str(error).removeprefix(str(path)).strip())
            return None

    def _problem(self, path: Path, reason: str) -> None:
        self.problems[self._name(path)] = reason

    def _name(self, path: Path) -> str:
        name = os.fsencode(path.relative_to(self.root).as_posix()).decode(errors="replace")  # a page is text, a file's name need not be
        return f"{self.root.name}/{name}" if self.of_the_project else name


@cache
def class_of(word: str) -> tuple[str, str] | None:
    """Group and class of a word that chooses one: the class that its file names, or the file that this one inherits from."""
    override = parsed(word)
    group = override.key_or_group
    if group not in CLASSES or override.package is not None:
        return None
    path = choice_file(group, override.value())
    if path is None:  # who composes the table says so better
        return None
    content = read_yaml(path)
    if "_target_" in content:
        return group, content["_target_"]
    return class_of(f"{group}={next(base for base in content['defaults'] if isinstance(base, str) and base != '_self_')}")
