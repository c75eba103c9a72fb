"""List what there is: groups, the choices of one with a line each, tables, and finished runs. No torch, and no config is composed."""

from __future__ import annotations

import ast
import os
import re
from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import PACKAGE, choice_file, choices, groups, path_of, project_path
from robustbench_lab.settings.packages import taken, whose
from robustbench_lab.settings.yaml_files import read_yaml
from robustbench_lab.storage.folders import OutputFolder, RunFolder

OTHERS = ("runs", "table")  # that are no groups of choices
UNTOLD = ("grid", "hydra", "table")  # folders of conf/ that hold no choices for a command line
ABBREVIATION = re.compile(r"\b(Adv|al|vs|cf|e\.g|i\.e)$")
SENTENCE = re.compile(r"[.:](?=\s+[^a-z\d(]|$)")
LONGEST = 110  # characters of a line's text


def main(arguments: Sequence[str]) -> None:
    """`ls`, `ls GROUP ...`, `ls runs`, `ls table`; output_root=FOLDER. Raises LabError for a group that is not there, with the nearest."""
    asked, root = [], os.environ.get("ROBUSTBENCH_LAB_OUTPUTS") or project_path("outputs")
    for word in taken(arguments):
        key, equals, value = word.partition("=")
        if key == "output_root":
            root = value
        elif equals or word.startswith("-"):
            raise LabError(f"{word}: ls takes names of groups and output_root=FOLDER; `ls` lists the groups")
        else:
            asked.append({"tables": "table", "run": "runs"}.get(word, word))
    known = [group for group in groups() if group not in UNTOLD]
    for name in asked:
        if name not in (*known, *OTHERS):
            near = get_close_matches(name, [*known, *OTHERS], 1)
            raise LabError(f"ls {name}: expected one of {', '.join([*known, *OTHERS])}{f'; did you mean {near[0]}?' if near else ''}")
    folder = OutputFolder(path_of(root, "output_root"))
    if not asked:
        _overview(known, folder)
    for name in asked:
        {"runs": _runs, "table": _tables}.get(name, lambda folder, group=name: _choices(group, folder))(folder)


def _overview(known: Sequence[str], folder: OutputFolder) -> None:
    lines = []
    for group in known:
        names = choices(group)
        foreign = sum(bool(whose(path)) for name in names if (path := choice_file(group, name)) is not None)
        lines.append((group, f"{len(names)} choices" + (f", {foreign} of others" if foreign else "")))
    from robustbench_lab.tables.reading import table_names

    lines.append(("table", f"{len(table_names())} tables"))
    lines.append(("runs", f"{sum(1 for _ in folder.trained())} finished in {folder.root}"))
    _print(lines)
    print("\npython -m robustbench_lab ls GROUP    its choices, with a line each")


def _choices(group: str, folder: OutputFolder) -> None:
    """Those of a group: name, what it is, where it is from if it is not ours, and in how many finished runs or records it is."""
    counted: Counter[str] = Counter()
    if group in ("dataset", "backbone", "defense", "training"):
        counted.update(str(run.record.get("choices", {}).get(group)) for run in folder.trained())
    elif group in ("attack", "threat_model"):
        counted.update(
            name.partition("-")[0] if group == "attack" else name.split("-")[-2] for run in folder.trained() for name in _names(run)
        )
    unit = "run" if group in ("dataset", "backbone", "defense", "training") else "record"
    lines = []
    for name in choices(group):
        path = choice_file(group, name)
        assert path is not None
        foreign = whose(path)
        done = f"{counted[name]} {unit}{'s' * (counted[name] != 1)}" if counted[name] else ""
        notes = ", ".join(filter(None, (f"from {foreign}" if foreign else "", done)))
        lines.append((name, first_sentence(path) + (f"  [{notes}]" if notes else "")))
    _print(lines)


def _names(run: RunFolder) -> list[str]:
    """Of the evaluations of a run."""
    try:
        return [evaluation.name for evaluation in run.evaluations()]
    except LabError:
        return []


def _tables(folder: OutputFolder) -> None:
    from robustbench_lab.settings.yaml_files import read_yaml
    from robustbench_lab.tables.checks import file_of
    from robustbench_lab.tables.reading import table_names

    lines = []
    for name in table_names():
        path = file_of(name)
        try:
            title = str(read_yaml(path).get("title", ""))
        except Exception as error:  # `tables` says it whole
            title = f"cannot be read: {type(error).__name__}"
        foreign = whose(path)
        lines.append((name, _cut(title) + (f"  [from {foreign}]" if foreign else "")))
    _print(lines)


def _runs(folder: OutputFolder) -> None:
    """The finished runs, with the clean accuracy, and the lowest robust one and by which attack, of those that have a record."""
    lines = []
    for run in folder.trained():
        records = []
        for evaluation in run.evaluations():
            try:
                record = evaluation.read()
            except LabError:
                continue
            if "split" not in record["config"]:
                records.append(record)
        seconds = run.record.get("seconds")
        told = [f"{seconds:.0f} s" if seconds else "imported" if "imported" in run.record else ""]
        if records:
            worst = min(records, key=lambda record: record["robust_accuracy"])
            budget = worst["config"]["budget"]
            told.append(f"clean {100 * worst['clean_accuracy']:.2f} %")
            told.append(
                f"lowest {100 * worst['robust_accuracy']:.2f} % ({worst['choices']['attack']}, {budget['norm']} {_eps(budget['eps'])})"
            )
            told.append(f"{len(records)} record{'s' * (len(records) != 1)}")
        lines.append((run.name, ", ".join(filter(None, told))))
    _print(lines or [("no finished runs", f"in {folder.root}")])


def _eps(eps: object) -> str:
    return f"{eps:.4g}" if isinstance(eps, int | float) else str(eps)


def first_sentence(path: Path) -> str:
    """What a choice is, by the header of its file: the first sentence after its command, or, where that names a source alone, the first of
    its class's docstring."""
    header = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        header.append(line.lstrip("# ").rstrip())
    while header and (not header[0] or header[0].startswith(("python -m", "make ", "@package", "figure:", "In short", "dataset.path="))):
        header.pop(0)
    text = _sentence(" ".join(header))
    told = bool(text) and not text.startswith("Source")
    return _cut(text if told or path.parent.name == "training" else _of_class(path) or text)


def _sentence(text: str) -> str:
    """Up to the first full stop or colon that ends one, and not an abbreviation."""
    for end in SENTENCE.finditer(text):
        if not ABBREVIATION.search(text[: end.start()]) and not text[: end.start()].endswith("Source"):
            return text[: end.start()]
    return text.rstrip(".")


def _of_class(path: Path) -> str | None:
    """The first sentence of the docstring of the class that a choice names, or the choice that it is like; read from its source."""
    content = read_yaml(path)
    while "_target_" not in content:
        base = next((entry for entry in content.get("defaults", ()) if isinstance(entry, str) and entry != "_self_"), None)
        file = path.with_name(f"{base}.yaml")
        if base is None or not file.exists():
            return None
        content = read_yaml(file)
    module, _, name = str(content["_target_"]).rpartition(".")
    source = PACKAGE.parent.joinpath(*module.split(".")).with_suffix(".py")
    if not source.exists():
        return None
    nodes = ast.parse(source.read_text(encoding="utf-8")).body
    told = next((ast.get_docstring(node) for node in nodes if isinstance(node, ast.ClassDef) and node.name == name), None)
    return _sentence(" ".join(told.split("\n\n")[0].split())) if told else None


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1].rstrip() + "…"


def _print(lines: Sequence[tuple[str, str]]) -> None:
    width = min(44, max((len(name) for name, _ in lines), default=0))
    for name, text in lines:
        print(f"{name:<{width}}  {text}".rstrip())
