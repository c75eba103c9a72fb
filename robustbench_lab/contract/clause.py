"""One thing that a contract asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Level = Literal["choice", "kind", "class"]


@dataclass(frozen=True)
class Clause:
    """One thing that is asked of a choice. Called, it returns; or it raises AssertionError with the clause and what did not hold, or the
    LabError of the choice itself, or, of a dataset whose files are not there, errors.MissingFiles.

    A clause leaves torch's random state and its number of threads as they were, and always starts from the same.

    name: such as `moves_the_images[linf]`. words: the same as a sentence. of: the choice, such as `attack=pgd`.
    depends_on: what of the choice can make a difference: its numbers too (`choice`), whatever else differs between two choices of one class
    (`kind`), or the class alone. Of choices that agree in it, one is enough.
    """

    name: str
    words: str
    of: str
    holds: Callable[[], None]
    depends_on: Level = "choice"

    def __call__(self) -> None:
        try:
            self.holds()
        except AssertionError as error:
            raise AssertionError(f"{self.of}: {self.name}: {error}\n(the clause: {self.words})") from error

    def __str__(self) -> str:
        return self.name
