#!/usr/bin/env python3
"""Add up what published tables took: the seconds of training and of attacking behind them, as a table in Markdown.

    python scripts/reference_seconds.py 'efficient_defenses/table[1-4]' 'efficient_defenses/figure*'

From the records in outputs/reference. A run or an evaluation that several tables share counts once in the total.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from robustbench_lab.settings.conf import project_path
from robustbench_lab.tables.cells import filled
from robustbench_lab.tables.reading import published_tables

Seconds = Mapping[tuple[str, ...], float]  # by name


def rows(tables: Mapping[str, tuple[Seconds, Seconds]]) -> Iterable[str]:
    yield "| table | trained runs | s of training | evaluations | s of attacking | hours |"
    yield "|---|---|---|---|---|---|"
    whole: tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]] = ({}, {})
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
    published = {table.name: table for table in published_tables(reference) if not table.reshaped}
    chosen = [table for name, table in published.items() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        raise SystemExit(f"error: nothing in {reference} matches {' '.join(patterns)}; there are {', '.join(published) or 'no tables'}")
    found: dict[str, tuple[Seconds, Seconds]] = {}
    used = set()
    for table, cells in filled(chosen, reference):
        training, attacking = {}, {}
        for one in (one for cell in cells for one in cell.measurements if one.record is not None):
            for run in one.runs:
                while run is not None:
                    training[(run.name,)] = run.at(reference).record["seconds"]
                    used.add(run.choices["dataset"])
                    run = run.teacher  # type: ignore[assignment]
            attacking[one.evaluation.run.name, one.evaluation.name] = one.record["seconds"]  # type: ignore[index]
        found[table.name] = training, attacking
    print(f"# What the published tables took\n\nMade by `python scripts/reference_seconds.py {shlex.join(patterns)}`.\n")
    print("\n".join(rows(found)))
    print(f"\nTrained on {', '.join(sorted(used))}; what was not measured, or is published elsewhere, is not in the total.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", help="names or globs, such as efficient_defenses/table1")
    main(parser.parse_args().tables, Path(project_path("outputs/reference")))
