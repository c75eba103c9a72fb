"""What papers claim in words, such as an ordering, held against our figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

COMPARISON = re.compile(r"(?P<left>.+?) (?P<sign><=|>=|<|>) (?P<right>.+)")
SIDE = re.compile(r"(?P<cell>.+? / .+?)(?: (?P<change>[-+*]) (?P<by>\d+(?:\.\d+)?|.+ / .+))?")

Side = float | tuple[str, str, float | str]  # a number, or a cell's name and what is done to its figure, by how much or by which cell's


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What the paper says in words, and the comparisons of our figures that bear it out: all of them must hold.

    holds_if: such as `FM / PGD > undefended / PGD + 10`, where a side is `row / column`, that + or - points or * a factor, that - another
    `row / column`, or a number.
    evidence: what the paper itself rests it on, in a few words. sign: the sign of obfuscated gradients that the claim denies.
    """

    text: str
    source: str
    holds_if: Sequence[str]
    evidence: str | None = None
    sign: str | None = None


def sides_of(comparison: str) -> tuple[Side, str, Side] | None:
    """The two sides of a comparison and its sign."""
    if not (match := COMPARISON.fullmatch(comparison)):
        return None

    def side(text: str) -> Side | None:
        try:
            return float(text)
        except ValueError:
            found = SIDE.fullmatch(text)
        if not found:
            return None
        by = found["by"] or "0"
        return (found["cell"], found["change"] or "+", by if " / " in by else float(by))

    left, right = side(match["left"]), side(match["right"])
    return None if left is None or right is None else (left, match["sign"], right)


def cells_in(comparison: str) -> list[str] | None:
    """The cells that a comparison names."""
    if (sides := sides_of(comparison)) is None:
        return None
    named = [side for side in (sides[0], sides[2]) if not isinstance(side, float)]
    return [cell for side in named for cell in (side[0], side[2]) if isinstance(cell, str)]
