"""A table's view as Markdown and as LaTeX: templates say what stands where, and letters.py what a text becomes there."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from robustbench_lab.output import one_line
from robustbench_lab.tables.letters import code, first_of_line, line, md, tex
from robustbench_lab.tables.view import View, command_of

BORDER = re.compile(r" (?<!\\)\| ")  # between two cells of a line of a Markdown table


def markdown(view: View, pictures: bool = False) -> str:
    """The page: the grid, every figure with interval, n, difference and verdict, claims, findings, and where it all came from.

    pictures: whether the table's figure stands beside it as a file.
    """
    return _markdown().get_template("table.md.j2").render(view=view, pictures=pictures)


def grid(view: View) -> str:
    """Ours, and behind it the paper's, as a Markdown table; letters point at footnotes."""
    return _markdown().get_template("grid.md.j2").render(view=view).rstrip("\n")


def latex(view: View) -> str:
    """A booktabs tabular: ours with its interval, the published figure in brackets, letters for footnotes below it."""
    return _latex().get_template("table.tex.j2").render(view=view)


def aligned(lines: str) -> str:
    """A Markdown table whose columns are as wide as their widest cell, from lines `| a | b |`: the head, and then the body."""
    rows = [BORDER.split(line.removeprefix("| ").removesuffix(" |")) for line in lines.strip("\n").split("\n")]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    head, *body = ("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows)
    return "\n".join([head, "|" + "|".join("-" * (width + 2) for width in widths) + "|", *body]) + "\n"


@cache
def _markdown() -> Environment:
    environment = Environment(
        loader=PackageLoader("robustbench_lab.tables", "templates"), undefined=StrictUndefined, autoescape=False, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(md=md, line=line, code=code, one_line=one_line, aligned=aligned, command_of=command_of)
    return environment


@cache
def _latex() -> Environment:
    """With other brackets than Jinja's own, which LaTeX is full of."""
    environment = _markdown().overlay(
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>", comment_start_string="<#",
        comment_end_string="#>",
    )  # fmt: skip
    environment.filters = {**environment.filters, "tex": tex, "first_of_line": first_of_line}
    return environment
