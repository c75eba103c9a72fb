"""What happened to each image of an evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np

from robustbench_lab.evaluation.crafted import Crafted


@dataclass
class Outcome:
    """One entry per image, in the order of the split, and one per stage of the attack.

    ids int64; clean bool: right without an attack (of several draws, the first); clean_right, right float64: the share of the verdict's
    draws in which the image is right without an attack, and under the attack that hurt it most; after float64: the share in which it is
    right under the attack, whatever it was before: it differs from `right` where misclassified images are attacked too. distance float64,
    in the budget's norm, NaN for images that were not attacked; broken_by int64: the stage after which no draw was right any more, -1 if
    none; done bool. forward, backward, reused int64, seconds float64, one entry per stage: images sent through the attacker's view, images
    whose examples were there before, and time.
    metrics float64 [M, N]: other measures than accuracy, NaN for images that do not count.
    runs float64 [R, N]: `right` as it would be after each stage alone, for an attack whose stages go separately; R is 0 for others.
    """

    ids: np.ndarray
    clean: np.ndarray
    clean_right: np.ndarray
    right: np.ndarray
    after: np.ndarray
    distance: np.ndarray
    broken_by: np.ndarray
    done: np.ndarray
    forward: np.ndarray
    backward: np.ndarray
    reused: np.ndarray
    seconds: np.ndarray
    metrics: np.ndarray
    runs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))

    @classmethod
    def empty(cls, ids: np.ndarray, stages: int = 1, metrics: int = 0, runs: int = 0) -> Outcome:
        """Nothing done yet."""
        n = len(ids)
        return cls(
            ids, np.zeros(n, bool), np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, np.nan), np.full(n, -1), np.zeros(n, bool),
            np.zeros(stages, np.int64), np.zeros(stages, np.int64), np.zeros(stages, np.int64), np.zeros(stages),
            np.full((metrics, n), np.nan), np.zeros((runs, n)),
        )  # fmt: skip

    @property
    def robust(self) -> np.ndarray:
        """Right in every draw, clean and attacked: bool."""
        return self.right == 1

    def survivors(self) -> list[int]:
        """How many images each stage left with a draw in which they are right."""
        attacked = int((self.clean_right > 0).sum())
        return [attacked - int(((self.broken_by >= 0) & (self.broken_by <= stage)).sum()) for stage in range(len(self.forward))]

    def arrays(self) -> dict[str, np.ndarray]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Store:
    """Where an evaluation goes on from, and where it leaves what it has.

    outcome: of an evaluation of the same images that was interrupted. save: is handed the outcome now and then. crafted: what the same
    attack found on the same view before, which is not searched again; what is found now is added.
    """

    outcome: Outcome | None = None
    save: Callable[[Outcome], None] = lambda outcome: None
    crafted: Crafted | None = None
