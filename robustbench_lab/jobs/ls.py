"""`python -m robustbench_lab ls [GROUP ...]`: the choices there are, with a line each, the tables, and the runs that are finished."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from robustbench_lab.errors import LabError
from robustbench_lab.report.entries import Entry
from robustbench_lab.settings.conf import choice_file, choices, groups, path_of, project_path
from robustbench_lab.settings.overrides import RUN_GROUPS
from robustbench_lab.settings.packages import taken, whose
from robustbench_lab.settings.verbs import check_environment
from robustbench_lab.settings.yaml_files import read_yaml, summary
from robustbench_lab.storage.folders import EvaluationFolder, OutputFolder, RunFolder
from robustbench_lab.tables.checks import file_of
from robustbench_lab.tables.reading import table_names

USAGE = "python -m robustbench_lab ls [GROUP ...] [output_root=FOLDER] [--config-dir=FOLDER]"
RUNS = "runs"  # beside the groups


def main(arguments: Sequence[str]) -> None:
    """Print it. Raises LabError for a group that is not there, with the nearest, and for other words."""
    if {"-h", "--help"} & {*arguments}:
        print(f"{USAGE}\n\nGROUP: {', '.join([*groups(), RUNS])}; without one, how many choices each has, and where runs are.")
        return
    words = taken(arguments)
    check_environment()
    known, asked = [*groups(), RUNS], [word for word in words if not word.startswith("output_root=")]
    for word in asked:
        if word not in known:
            near = get_close_matches(word, known, 1)
            raise LabError(f"{word}: expected one of {', '.join(known)}{f'; did you mean {near[0]}?' if near else ''} ({USAGE})")
    roots = [word.partition("=")[2] for word in words if word not in asked]
    usual = os.environ.get("ROBUSTBENCH_LAB_OUTPUTS") or project_path("outputs")
    output = OutputFolder(path_of(roots[-1] if roots else usual, "output_root"))
    if not asked:
        print("\n".join(_overview(output)))
    for number, group in enumerate(asked):
        lines = _runs(output) if group == RUNS else _tables() if group == "table" else _choices(group, output)
        print("\n".join(["", *lines] if number else lines))


def _overview(output: OutputFolder) -> list[str]:
    rows = []
    for group in groups():
        files = [file_of(name) for name in table_names()] if group == "table" else [_file(group, choice) for choice in choices(group)]
        others = Counter(filter(None, map(whose, files)))
        told = f"{len(files) - others.total()} of robustbench_lab" + "".join(f", {count} of {name}" for name, count in others.items())
        rows.append((group, str(len(files)), told if others else ""))
    more = f"python -m robustbench_lab ls attack lists the attacks; so for each group, and for {RUNS}"
    return [*_aligned(rows), _finished([*output.trained()], output), more]


def _choices(group: str, output: OutputFolder) -> list[str]:
    used = _used(group, output)
    what = "record" if group == "attack" else "run"
    files = {choice: _file(group, choice) for choice in sorted(choices(group))}
    counts = {choice: _counted(used[choice], what) if used[choice] else "" for choice in files}
    rows = [(choice, counts[choice], _from(path), summary(path)) for choice, path in files.items()]
    return [f"{group}: {_counted(len(files), 'choice')}", *_aligned(rows)]


def _used(group: str, output: OutputFolder) -> Counter[str]:
    """How many finished runs have a choice of what belongs to a run, and how many of their records one of attacks."""
    if group in RUN_GROUPS:
        return Counter(str(run.record.get("choices", {}).get(group)) for run in output.trained())
    if group == "attack":
        return Counter(record.name.rsplit("-", 2)[0] for run in output.trained() for record in _records(run))
    return Counter()


def _tables() -> list[str]:
    files = {name: file_of(name) for name in table_names()}
    titles = {name: str(content.get("title", "")) for name, path in files.items() if isinstance(content := read_yaml(path), dict)}
    rows = [(name, _from(path), titles.get(name, "")) for name, path in files.items()]
    return [f"table: {_counted(len(files), 'table')}", *_aligned(rows)]


def _runs(output: OutputFolder) -> list[str]:
    runs = list(output.trained())
    return [_finished(runs, output), *_aligned([(run.name, *_told(run)) for run in runs])]


def _finished(runs: Sequence[RunFolder], output: OutputFolder) -> str:
    return f"{_counted(len(runs), 'finished run')} in {output.root / RUNS}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _told(run: RunFolder) -> tuple[str, str]:
    """Clean accuracy, of the record with the most images; and the lowest of records that count, in the ball that most of these are of."""
    entries = []
    for folder in _records(run):
        with suppress(LabError):
            entries.append(Entry.of(folder, folder.record({"run": run.digest})))
    entries = [entry for entry in entries if entry.split == "test"]
    if not entries:
        return "", ""
    clean = max(entries, key=lambda entry: entry.n).clean
    inside = [entry for entry in entries if math.isfinite(entry.ball.eps) and not entry.record["config"].get("without_noise")]
    if not inside:
        return f"clean {clean:.2f} %", ""
    ball = Counter(entry.ball for entry in inside).most_common(1)[0][0]
    best = min((entry for entry in inside if entry.ball == ball), key=lambda entry: entry.robust.value)
    return f"clean {clean:.2f} %", f"robust {best.robust.value:.2f} % ({best.attack}, {ball}, n = {best.n:,})"


def _records(run: RunFolder) -> list[EvaluationFolder]:
    try:
        return run.evaluations()
    except LabError:
        return []


def _file(group: str, choice: str) -> Path:
    path = choice_file(group, choice)
    assert path is not None
    return path


def _from(path: Path) -> str:
    return f"[{whose(path)}]" if whose(path) else ""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows as indented lines, each column as wide as its longest entry; a terminal's line is cut where the terminal ends."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 10_000
    lines = ["  " + "  ".join(entry.ljust(wide) for entry, wide in zip(row, widths, strict=True) if wide).rstrip() for row in rows]
    return [line if len(line) <= width else f"{line[: width - 3]}..." for line in lines]
