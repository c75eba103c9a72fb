#!/usr/bin/env python3
"""Publish measured tables in outputs/reference/, where git tracks them, with the records behind them.

    python scripts/publish_reference.py efficient_defenses/table1 [--profile quick] [--suffix nvidia-h200] [--replace]
                                        [--partial]
    python scripts/publish_reference.py     every published page anew, from the records that are there

outputs/reference is an output folder like others: for each run behind a table's cells run.json and metrics.jsonl (not the weights), the
records and outcomes of its evaluations packed beside them, with the arrays that the table's metrics and its figure are read from, each
once; and the table's .md, .csv and .tex, and its figure, in tables/. With a suffix, such as a GPU's name, it is a folder of its own
within: other weights under the same names. Nothing is written until all of it is there. A cell that is published already need not be in
the output folder. Stops if a cell is in neither (--partial publishes what there is, if only what is known at a smaller size, and the page
says what is missing), if a model was trained or attacked with uncommitted changes in the code, and, without --replace, where a run is
published with other weights. Published pages that show the table's figures at a smaller size are written anew.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from robustbench_lab.jobs.tables import table_file, write
from robustbench_lab.settings.conf import compose, plain, project_path
from robustbench_lab.settings.identity import Run
from robustbench_lab.storage.files import write_bytes
from robustbench_lab.storage.folders import Missing, RunFolder
from robustbench_lab.storage.packs import Files
from robustbench_lab.storage.records import METRICS_FILE, OUTCOME_FILE, RUN_FILE
from robustbench_lab.tables.cells import Cell, cells_of
from robustbench_lab.tables.drawing import kind_of
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.reading import published_tables, read_table, reshaped
from robustbench_lab.tables.view import command_of

Packed = dict[Path, dict[str, tuple[dict[str, Any], Files]]]  # evaluations with their arrays, by the folder of their run


def publish(
    table: Table, output_root: Path, reference: Path, allow_changes: bool = False, replace: bool = False, partial: bool = False
) -> list[Path]:
    """The files of the table's page, and of those that its figures stand on, too."""
    here, there = cells_of(table, output_root), cells_of(table, reference)
    cells = [cell for cell in here if not cell.missing]
    anew = {run.fingerprint for run in runs_behind(cells) if _published_otherwise(run.at(output_root), reference)}
    missing = [
        f"{cell.row}, {cell.column}"
        for cell, known in zip(here, there, strict=True)
        if cell.missing and (known.missing or any(run.fingerprint in anew for run in cell.runs))
    ]
    if missing and not partial:
        command = command_of(table)
        raise SystemExit(f"error: {table.name} misses {len(missing)} cells, the first is {missing[0]}; run {command}")
    runs = [run.at(output_root) for run in runs_behind(cells)]
    made_by = [*(record for cell in cells for record in cell.records), *(run.record for run in runs)]
    if not allow_changes and any("+changes" in str(record["commit"]) for record in made_by):
        raise SystemExit("error: records were made with uncommitted changes in the code; commit and measure again, or --allow-changes")
    packed = packed_of(table, cells, output_root, reference)
    for run in runs:
        there = RunFolder(reference / "runs" / run.name)
        if _published_otherwise(run, reference):
            if not replace:
                remedy = "--replace takes away what was measured of those, and its tables need it anew"
                raise SystemExit(f"error: {run.name} is published with other weights; {remedy}")
            shutil.rmtree(there.path)
        for name in (RUN_FILE, METRICS_FILE):
            write_bytes(there.path / name, (run.path / name).read_bytes())
    for folder, evaluations in packed.items():
        RunFolder(folder).pack.add(evaluations)
    pages = rewrite(table, reference)
    for other in published_tables(reference):
        if any(entry.table == table.name for entry in other.smaller):
            pages += rewrite(other, reference)
    return pages


def runs_behind(cells: Sequence[Cell]) -> list[Run]:
    """The attacked runs, the attackers' and their teachers, each once."""
    runs = {run.fingerprint: run for cell in cells for run in cell.runs}
    for run in list(runs.values()):
        while (teacher := run.teacher) is not None:
            run = runs.setdefault(teacher.fingerprint, teacher)
    return list(runs.values())


def packed_of(table: Table, cells: Sequence[Cell], output_root: Path, reference: Path) -> Packed:
    """What is to be packed. Raises SystemExit where an outcome is gone."""
    found: Packed = {}
    of_metrics = [file for metric in table.metrics for file in metric.files]
    wanted = dict.fromkeys((OUTCOME_FILE, *of_metrics, *(kind_of(table.figure).files if table.figure else ())))
    for one in (one for cell in cells for one in cell.measurements):
        run = one.evaluation.run.at(output_root)
        folder = one.evaluation.within(run)
        files = {name: arrays for name in wanted if (arrays := folder.arrays(name)) is not None}
        if OUTCOME_FILE not in files:
            raise SystemExit(f"error: {folder.path / OUTCOME_FILE} is gone; evaluate again with force=true")
        if not _published_otherwise(run, reference):
            before = RunFolder(reference / "runs" / run.name).pack
            for name in before.files(folder.name):  # what another table needs stays
                files.setdefault(name, before.arrays(folder.name, name) or {})
        found.setdefault(reference / "runs" / run.name, {})[folder.name] = (folder.read(), files)
    return found


def _published_otherwise(run: RunFolder, reference: Path) -> bool:
    """Whether it is published with other weights."""
    return published_digest(RunFolder(reference / "runs" / run.name)) not in (None, run.digest)


def published_digest(run: RunFolder) -> str | None:
    try:
        return run.digest
    except Missing:
        return None


def rewrite(table: Table, reference: Path) -> list[Path]:
    """The table's page anew, from the published records."""
    write(table, cells_of(table, reference), reference)
    base = table_file(table, reference)
    kinds = ("md", "csv", "tex", *(("png", "svg") if table.figure else ()))
    if absent := [kind for kind in kinds if not base.with_name(f"{base.name}.{kind}").exists()]:
        raise SystemExit(f"error: {table.name} could not be drawn: {', '.join(absent)} are missing")
    return [base.with_name(f"{base.name}.{kind}") for kind in kinds]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", nargs="?", help="none: write every published page anew")
    parser.add_argument("--profile", default="paper", choices=("paper", "quick"))
    parser.add_argument("--suffix", default="", help="for figures of another machine, such as a GPU's name")
    parser.add_argument("--allow-changes", action="store_true", help="take records that were made with uncommitted changes")
    parser.add_argument("--partial", action="store_true", help="publish the cells that there are; the page says which are missing")
    parser.add_argument("--replace", action="store_true", help="take away what is published of a run that has other weights now")
    args = parser.parse_args()
    reference = Path(project_path("outputs/reference")) / args.suffix
    if args.table is None:
        for table in published_tables(reference):
            rewrite(table, reference)
        return
    output_root = Path(plain(compose("tables", [])[0], "output_root")["output_root"])
    table = reshaped(read_table(args.table), args.profile)
    print(*publish(table, output_root, reference, args.allow_changes, args.replace, args.partial), sep="\n")


if __name__ == "__main__":
    main()
