"""How a table looks in LaTeX, from its grid and its cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from robustbench_lab.tables.markdown import PROFILES, footnote_letters, number, origins, short

if TYPE_CHECKING:
    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table


def latex(table: Table, cells: Sequence[Cell]) -> str:
    """A booktabs tabular: ours with its interval, the published figure in brackets, letters for footnotes below it."""
    letters = footnote_letters(cells)
    head = _line(_tex(label) for label in [table.corner, *(column.label for column in table.columns)])
    body = [_line([_tex(row.label), *(_latex_cell(cell, letters) for cell in cells if cell.row == row.label)]) for row in table.rows]
    sizes = sorted({cell.record["n"] for cell in cells if cell.record})
    some = ", of which those that count where figures are not in percent" if table.averages else ""
    about = f"Ours, 95\\% interval in small print, published figure in brackets; n = {', '.join(map(str, sizes)) or '-'} test images{some}."
    notes = [rf"\textsuperscript{{{letter}}} {_tex(code)}" for code, letter in letters.items()]
    notes += [f"{_tex(cell.name)}: {cell.verdict}" for cell in cells if cell.record and cell.value is None]
    notes += [rf"{_tex(cell.name)}: not measured{_tex(f' ({cell.problem})' if cell.problem else '')}" for cell in cells if cell.missing]
    notes += [_tex(line) for line in origins(table, cells)]
    profile = "" if table.profile == "paper" else f"{table.profile.upper()}: NOT A REPRODUCTION. "
    width = len(table.columns) + 1
    return "\n".join(
        [
            f"% {table.title} ({PROFILES[table.profile]}); needs booktabs",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule", head, r"\midrule", *body, r"\bottomrule",
            rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {profile}{about}}} \\",
            *(rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {note}}} \\" for note in notes),
            r"\end{tabular}", "",
        ]
    )  # fmt: skip


def _line(entries: Iterable[str]) -> str:
    """A row; a label that begins with [ or * would else be an argument of what ends the line above."""
    line = " & ".join(entries) + r" \\"
    return "{}" + line if line.startswith(("[", "*")) else line


def _latex_cell(cell: Cell, letters: Mapping[str, str]) -> str:
    text = _tex(short(cell))
    if cell.difference is not None:
        text = text.removesuffix(")") + f", ${cell.difference:+{cell.form}}$" + ("" if cell.band is None else f", {cell.verdict}") + ")"
    if cell.interval is not None:
        text += rf" {{\scriptsize[{', '.join(number(end, cell.form) for end in cell.interval)}]}}"
    marks = ",".join(sorted({letters[flag["code"]] for flag in cell.flags}))
    return text + (rf"\textsuperscript{{{marks}}}" if marks else "")


TEX = str.maketrans(
    {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"}
    | {sign: f"\\{sign}" for sign in "&%_#${}"}
)


def _tex(text: str) -> str:
    return text.translate(TEX)
