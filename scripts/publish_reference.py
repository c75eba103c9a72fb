#!/usr/bin/env python3
"""Copy a measured table and the records behind it to outputs/reference/, where git tracks them.

    python scripts/publish_reference.py efficient_defenses/table1 [--profile quick] [--suffix nvidia-h200]

Writes the table's .md, .csv and .tex, and its figure, anew from the records, and copies for each run and evaluation behind its cells
run.json, metrics.jsonl, record.json and outcome.npz, and the pictures behind a figure where there are some (not the weights). What was
published before stays until all of it is there. Stops if a cell is missing, or if a model was trained or attacked with uncommitted changes
in the code.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from robustbench_lab.jobs.tables import table_file, write
from robustbench_lab.settings.conf import compose, plain, project_path
from robustbench_lab.storage.files import read_json
from robustbench_lab.storage.records import OUTCOME_FILE, RECORD_FILE, RUN_FILE
from robustbench_lab.tables.cells import cells_of
from robustbench_lab.tables.drawing import kind_of
from robustbench_lab.tables.reading import read_table, reshaped


def publish(name: str, profile: str, suffix: str, allow_changes: bool, reference: Path) -> Path:
    output_root = Path(plain(compose("tables", [])[0], "output_root")["output_root"])
    table = reshaped(read_table(name), profile)
    written = table_file(table, output_root)
    target = reference / written.relative_to(output_root / "tables")
    target = target.with_name(target.name + (f"-{suffix}" if suffix else ""))
    cells = cells_of(table, output_root)
    if missing := [f"{cell.row}, {cell.column}" for cell in cells if cell.missing]:
        command = f"make reproduce-tables TABLES={name}" + (f" PROFILE={profile}" if table.reshaped else "")
        raise SystemExit(f"error: {name} misses {len(missing)} cells, the first is {missing[0]}; run {command}")
    runs = {run.fingerprint: run for cell in cells for run in cell.runs}
    for taught in list(runs.values()):
        if (teacher := taught.source) is not None:
            runs.setdefault(teacher.fingerprint, teacher)
    made_by = [record for cell in cells for record in cell.records] + [
        read_json(run.folder(output_root) / RUN_FILE) for run in runs.values()
    ]
    if not allow_changes and any("+changes" in str(record["commit"]) for record in made_by):
        raise SystemExit("error: records were made with uncommitted changes in the code; commit and measure again, or --allow-changes")
    write(table, cells, output_root)
    kinds = ("md", "csv", "tex", *(("png", "svg") if table.figure else ()))
    if absent := [kind for kind in kinds if not written.with_name(f"{written.name}.{kind}").exists()]:
        raise SystemExit(f"error: {name} could not be drawn: {', '.join(absent)} are missing")
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent) as beside:  # what is published stays until all of the new is there
        new = Path(beside) / target.name
        new.mkdir()
        for kind in kinds:
            shutil.copy(written.with_name(f"{written.name}.{kind}"), new)
        for run in runs.values():
            copy(run.folder(output_root), new / "runs", (RUN_FILE, "metrics.jsonl"))
        drawn_from = kind_of(table.figure).files if table.figure else ()
        for folder in (one.evaluation.folder(output_root) for cell in cells for one in cell.measurements):
            pictures = [name for name in drawn_from if (folder / name).exists()]
            copy(folder, new / "runs" / folder.parent.parent.name / "evaluate", (RECORD_FILE, OUTCOME_FILE, *pictures))
        shutil.rmtree(target, ignore_errors=True)
        new.rename(target)
    return target


def copy(folder: Path, into: Path, names: tuple[str, ...]) -> None:
    (into / folder.name).mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(folder / name, into / folder.name / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table")
    parser.add_argument("--profile", default="paper", choices=("paper", "quick"))
    parser.add_argument("--suffix", default="", help="for figures of another machine, such as a GPU's name")
    parser.add_argument("--allow-changes", action="store_true", help="take records that were made with uncommitted changes")
    args = parser.parse_args()
    print(publish(args.table, args.profile, args.suffix, args.allow_changes, Path(project_path("outputs/reference"))))
