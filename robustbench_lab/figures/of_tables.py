"""What the kinds of figures share that a table's cells are drawn as: the table's words around them, and the files behind its cells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robustbench_lab.errors import LabError
from robustbench_lab.tables.drawing import kind_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table


def drawn(table: Table, cells: Sequence[Cell], output_root: Path) -> Figure | None:
    """The figure of a table that has one; None where nothing that it shows is measured. Raises LabError for a damaged file."""
    if not table.figure or not any(cell.figure is not None for cell in cells):
        return None
    try:
        return kind_of(table.figure).draw(table, cells, output_root)
    except (ValueError, TypeError, LookupError, ArithmeticError, MemoryError) as error:  # of what stands in the files, not of their form
        raise LabError(f"{table.name}: no figure can be drawn from what is there ({type(error).__name__}: {error})") from error


def arrays_of(cells: Sequence[Cell], file: str, needed: set[str], output_root: Path) -> dict[str, dict[str, np.ndarray]]:
    """By the cell's name, what this file holds of the cells that have it; of a cell over several seeds, the first one's."""
    found = {}
    for cell in cells:
        if cell.evaluation is None or cell.record is None:
            continue
        folder = cell.evaluation.at(output_root)
        if (arrays := folder.arrays(file)) is not None:
            found[cell.name] = arrays
            if missing := sorted(needed - arrays.keys()):
                raise LabError(f"{folder.path / file} is damaged: it lacks {', '.join(missing)}; evaluate again with force=true")
    return found


def subject_of(table: Table) -> str:
    """The title without the paper's name and the figure's number."""
    subject = table.title.partition(": ")[2] or table.title
    return subject[0].upper() + subject[1:]


def images_of(cells: Sequence[Cell]) -> str:
    """On how many images the cells are measured, as a sentence of the footer."""
    sizes = sorted({record["n"] for cell in cells for record in cell.records})
    return f" n = {', '.join(f'{size:,}' for size in sizes)} test images."


def footer_of(table: Table, about: str = "") -> str:
    """What it is and how it was made; `about` are the sentences of its kind."""
    profile = "" if table.profile == "paper" else f" PROFILE {table.profile.upper()}: NOT A REPRODUCTION."
    return f"{table.title}.{about}{profile}"
