#!/usr/bin/env python3
"""Add up what published tables took: the seconds of training and of attacking behind them, as a table in Markdown.

    python scripts/reference_seconds.py 'efficient_defenses/table[1-4]' 'efficient_defenses/figure*'

Reads run.json and record.json below outputs/reference/. A run or an evaluation that several tables share counts once in the total.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from robustbench_lab.settings.conf import project_path
from robustbench_lab.storage.files import read_json
from robustbench_lab.storage.records import RECORD_FILE, RUN_FILE

Seconds = Mapping[tuple[str, str], float]  # by name and commit


def seconds_below(folder: Path, name: str) -> dict[tuple[str, str], float]:
    """Of every record with this file name in a table's folder."""
    paths = sorted(folder.rglob(name))
    return {(str(path.parent.relative_to(folder)), record["commit"]): record["seconds"] for path in paths for record in [read_json(path)]}


def rows(tables: Mapping[str, tuple[Seconds, Seconds]]) -> Iterable[str]:
    yield "| table | trained runs | s of training | evaluations | s of attacking | hours |"
    yield "|---|---|---|---|---|---|"
    whole: tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]] = ({}, {})
    for name, parts in tables.items():
        for everything, part in zip(whole, parts, strict=True):
            everything.update(part)
        yield row(name, *parts)
    yield row("all of them, each once", *whole)


def row(name: str, training: Seconds, attacking: Seconds) -> str:
    trained, attacked = sum(training.values()), sum(attacking.values())
    cells = [name, len(training), f"{trained:.0f}", len(attacking), f"{attacked:.0f}", f"{(trained + attacked) / 3600:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def main(patterns: list[str], reference: Path) -> None:
    found = {path.parent.relative_to(reference).as_posix(): path.parent for path in sorted(reference.rglob("runs"))}
    tables = {name: path for name, path in found.items() if any(fnmatchcase(name, pattern) for pattern in patterns)}
    if not tables:
        raise SystemExit(f"error: nothing in {reference} matches {' '.join(patterns)}; there are {', '.join(found) or 'no tables'}")
    print(f"# What the published tables took\n\nMade by `python scripts/reference_seconds.py {shlex.join(patterns)}`.\n")
    print("\n".join(rows({name: (seconds_below(path, RUN_FILE), seconds_below(path, RECORD_FILE)) for name, path in tables.items()})))
    used = {read_json(file)["choices"]["dataset"] for path in tables.values() for file in path.rglob(RUN_FILE)}
    print(f"\nTrained on {', '.join(sorted(used))}; what was not measured, or is published elsewhere, is not in the total.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="names or globs, such as efficient_defenses/table1")
    main(parser.parse_args().tables, Path(project_path("outputs/reference")))
