"""What papers claim in words, such as an ordering, held against our figures."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from robustbench_lab.grid import Table
    from robustbench_lab.jobs.tables import Cell

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
COMPARISON = re.compile(r"(?P<left>.+?) (?P<sign><=|>=|<|>) (?P<right>.+)")
SIDE = re.compile(r"(?P<cell>.+? / .+?)(?: (?P<change>[-+*]) (?P<by>\d+(?:\.\d+)?))?")
CHANGES = {"+": operator.add, "-": operator.sub, "*": operator.mul}
Side = float | tuple[str, str, float]  # a number, or a cell's name and what is done to its figure, by how much


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says in words, and the comparisons of our figures that bear it out: all of them must hold.

    holds_if: such as `FM / PGD > undefended / PGD + 10`, where a side is `row / column`, that + or - points or * a factor, or a number.
    evidence: what the paper itself rests it on, in a few words.
    """

    text: str
    source: str
    holds_if: Sequence[str]
    evidence: str | None = None


@dataclass(frozen=True)
class CheckedClaim:
    """A claim of the paper, whether our figures bear it out (holds, does not hold, not measured), and the comparisons that say so."""

    text: str
    source: str
    verdict: str
    detail: str
    evidence: str | None = None  # the paper's own


def sides_of(comparison: str) -> tuple[Side, str, Side] | None:
    """The two sides of a comparison and its sign."""
    if not (match := COMPARISON.fullmatch(comparison)):
        return None

    def side(text: str) -> Side | None:
        try:
            return float(text)
        except ValueError:
            found = SIDE.fullmatch(text)
        return (found["cell"], found["change"] or "+", float(found["by"] or 0)) if found else None

    left, right = side(match["left"]), side(match["right"])
    return None if left is None or right is None else (left, match["sign"], right)


def claims_of(table: Table, cells: Sequence[Cell]) -> list[CheckedClaim]:
    """The paper's claims, each checked on our figures; none where a profile has shortened them."""
    if table.profile != "paper":
        return []
    named = {cell.name: cell for cell in cells}
    return [_checked(claim, named) for claim in table.claims]


def _checked(claim: Claim, cells: Mapping[str, Cell]) -> CheckedClaim:
    verdicts, details = [], []
    for comparison in claim.holds_if:
        sides = sides_of(comparison)
        assert sides is not None, "read_table checks it"
        (left, left_text), (right, right_text) = (_side(side, cells) for side in (sides[0], sides[2]))
        verdicts.append(None if left is None or right is None else SIGNS[sides[1]](left, right))
        details.append(f"{left_text} {sides[1]} {right_text}: {({True: 'yes', False: 'no', None: 'not measured'})[verdicts[-1]]}")
    verdict = "does not hold" if False in verdicts else "not measured" if None in verdicts else "holds"
    evidence = None if claim.evidence is None else " ".join(claim.evidence.split())
    return CheckedClaim(" ".join(claim.text.split()), claim.source, verdict, "; ".join(details), evidence)


def _side(side: Side, cells: Mapping[str, Cell]) -> tuple[float | None, str]:
    if isinstance(side, float):
        return side, f"{side:g}"
    name, change, by = side
    value, more = cells[name].value, "" if (change, by) == ("+", 0) else f" {change} {by:g}"
    return (None, f"{name}{more}") if value is None else (CHANGES[change](value, by), f"{name} ({value:{cells[name].form}}){more}")
