"""Write papers' tables from the records there are: a pure function of records and conf/table/."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from robustbench_lab.errors import LabError
from robustbench_lab.figures.of_tables import drawn
from robustbench_lab.figures.paper import files_of
from robustbench_lab.settings.conf import output_root_of
from robustbench_lab.storage.files import remove, write_bytes, write_text
from robustbench_lab.tables.cells import Cell, filled
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.pages import grid, latex, markdown
from robustbench_lab.tables.reading import chosen_tables
from robustbench_lab.tables.view import View, view_of

log = logging.getLogger("robustbench_lab")

FEW_HAVE = ("ours_std", "seeds", "published_std", "quoted_from")  # columns of the CSV that only some tables fill


def main(cfg: DictConfig) -> None:
    output_root = output_root_of(cfg)
    for table, cells in filled(chosen_tables(cfg.tables, cfg.table_profile), output_root):
        write(table, cells, output_root)


def write(table: Table, cells: list[Cell], output_root: Path) -> Path:
    """Write the table in Markdown, CSV and LaTeX, and its figure if it has one, print its grid, and return the Markdown file."""
    base, view = table_file(table, output_root), view_of(table, cells, output_root)
    path = base.with_name(base.name + ".md")
    write_text(base.with_name(base.name + ".csv"), csv_of(cells))
    write_text(base.with_name(base.name + ".tex"), latex(view))
    pictures = _write_figure(table, cells, output_root)
    write_text(path, markdown(view, pictures=bool(pictures)))
    tell(view)
    log.info("written: %s", ", ".join([str(path), ".csv", ".tex", *pictures]))
    return path


def csv_of(cells: Sequence[Cell]) -> str:
    """A line for each cell."""
    frame = pd.DataFrame([cell.fields() for cell in cells])
    frame = frame.drop(columns=[name for name in FEW_HAVE if frame[name].isna().all()])
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, float_format="%.8g", lineterminator="\n")
    return buffer.getvalue()


def tell(view: View) -> None:
    """Print the table's grid."""
    print(f"{view.title}\n({view.about_profile})\n\n{grid(view)}\n")


def _write_figure(table: Table, cells: Sequence[Cell], output_root: Path) -> list[str]:
    """Draw the table's figure, if it has one, and return the suffixes of its files; one of earlier records does not stay."""
    base = table_file(table, output_root)
    files = [base.with_name(base.name + suffix) for suffix in (".png", ".svg")]
    try:
        figure = drawn(table, cells, output_root)
    except LabError as error:
        log.warning("%s has no figure: %s", table.name, error)
        figure = None
    if figure is None:
        for file in files:
            remove(file)
        return []
    for file, content in zip(files, files_of(figure), strict=True):
        write_bytes(file, content)
    return [file.suffix for file in files]


def table_file(table: Table, output_root: Path) -> Path:
    """Where the table is written, without its suffix: a table that a profile has reshaped stands apart from the real one."""
    return output_root / "tables" / table.profile / table.name if table.reshaped else output_root / "tables" / table.name
