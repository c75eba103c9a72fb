"""What papers claim in words, held against our figures."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from robustbench_lab.tables.cells import Cell
    from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.claims import Claim, Side, sides_of

SIGNS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
CHANGES = {"+": operator.add, "-": operator.sub, "*": operator.mul}
WITHIN_CHANCE = " (within chance)"
ABOUT_CHANCE = "Within chance: the two figures are nearer to each other than their 95 % intervals, taken as independent, let one tell."
OVER_SEEDS = " Of a mean over training seeds that is Student's interval, from their spread: other seeds could have turned the verdict."


@dataclass(frozen=True)
class CheckedClaim:
    """A claim of the paper, whether our figures bear it out (holds, does not hold, not measured), and the comparisons that say so.

    within_chance: whether other test images, or other training seeds where cells are means over some, could have turned the verdict: it
    rests on a comparison of figures that are nearer to each other than their 95 % intervals let one tell, taken as independent.
    """

    text: str
    source: str
    verdict: str
    detail: str
    evidence: str | None = None  # the paper's own
    sign: str | None = None
    within_chance: bool = False

    @property
    def sign_is(self) -> str:
        """Of a claim that denies a sign of obfuscated gradients: absent, present or not measured."""
        return {"holds": "absent", "does not hold": "present"}.get(self.verdict, self.verdict)

    @property
    def chance(self) -> str:
        """What stands behind the verdict, or the sign, where other test images could have turned it."""
        return WITHIN_CHANCE if self.within_chance else ""


def claims_of(table: Table, cells: Sequence[Cell]) -> list[CheckedClaim]:
    """The paper's claims, each checked on our figures. Where a profile has shortened them, only those that deny a sign of obfuscated
    gradients: a short schedule says nothing of the paper's figures, but whether its own model shows a sign is a fact."""
    named = {cell.name: cell for cell in cells}
    return [_checked(claim, named) for claim in table.claims if table.profile == "paper" or claim.sign is not None]


def _checked(claim: Claim, cells: Mapping[str, Cell]) -> CheckedClaim:
    verdicts, near, details = [], [], []
    for comparison in claim.holds_if:
        sides = sides_of(comparison)
        assert sides is not None, "read_table checks it"
        left, right = (_side(side, cells) for side in (sides[0], sides[2]))
        measured = left.value is not None and right.value is not None
        apart = round((left.value or 0) - (right.value or 0), 9)  # 15 is no less than 14 + 1, whatever floats make of that
        verdicts.append(SIGNS[sides[1]](apart, 0) if measured else None)
        near.append(measured and abs(apart) <= math.hypot(left.chance, right.chance))
        said = {True: "yes", False: "no", None: "not measured"}[verdicts[-1]] + (WITHIN_CHANCE if near[-1] else "")
        details.append(f"{left.text} {sides[1]} {right.text}: {said}")
    verdict = "does not hold" if False in verdicts else "not measured" if None in verdicts else "holds"
    decisive = [near_one for near_one, yes in zip(near, verdicts, strict=True) if yes is (verdict == "holds")]
    within_chance = verdict != "not measured" and (any(decisive) if verdict == "holds" else all(decisive))
    evidence = None if claim.evidence is None else " ".join(claim.evidence.split())
    text, source = " ".join(claim.text.split()), " ".join(claim.source.split())
    return CheckedClaim(text, source, verdict, "; ".join(details), evidence, claim.sign, within_chance)


class _Measured(NamedTuple):
    """A side's figure, half the width of its 95 % interval (0 where it has none), and how it is told."""

    value: float | None
    chance: float
    text: str


def _side(side: Side, cells: Mapping[str, Cell]) -> _Measured:
    if isinstance(side, float):
        return _Measured(side, 0, f"{side:g}")
    name, change, by = side
    own = _figure(cells[name])
    if isinstance(by, str):
        other = _figure(cells[by])
        value = None if own.value is None or other.value is None else CHANGES[change](own.value, other.value)
        return _Measured(value, math.hypot(own.chance, other.chance), f"{own.text} {change} {other.text}")
    more = "" if (change, by) == ("+", 0) else f" {change} {by:g}"
    value = None if own.value is None else CHANGES[change](own.value, by)
    return _Measured(value, own.chance * by if change == "*" else own.chance, f"{own.text}{more}")


def _figure(cell: Cell) -> _Measured:
    low, high = cell.interval or (0, 0)
    return _Measured(cell.value, (high - low) / 2, cell.name if cell.value is None else f"{cell.name} ({cell.value:{cell.form}})")
