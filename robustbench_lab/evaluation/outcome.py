"""What happened to each image of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from robustbench_lab.evaluation.keepers.features import Features

EXAMPLES = 10  # how many images are kept with what the attack made of them


@dataclass
class Examples:
    """The first images of the split, whatever their verdict: nobody picks them.

    index int64 [E]: their ids; x uint8 [E, C, H, W]; delta float16 [E, C, H, W]: what was added to pixels in [0, 1], zero for images that
    were not attacked; label, clean_prediction, prediction int64 [E]: the class, and the defended model's answer on x and on x + delta (of
    several draws, the first). Of several attacks, delta is of the one that the verdict rests on: that which hurt the image most, or
    the last one where none did. Images that are not done yet are zero, and their predictions -1.
    """

    index: np.ndarray
    x: np.ndarray
    delta: np.ndarray
    label: np.ndarray
    clean_prediction: np.ndarray
    prediction: np.ndarray

    @classmethod
    def empty(cls, ids: np.ndarray, shape: tuple[int, ...]) -> Examples:
        index = ids[:EXAMPLES]
        images = (len(index), *shape)
        return cls(
            index, np.zeros(images, np.uint8), np.zeros(images, np.float16), *(np.full(len(index), -1, np.int64) for _ in range(3)),
        )  # fmt: skip

    def keep(self, rows: np.ndarray, x: Tensor, x_adv: Tensor, y: Tensor, clean_prediction: Tensor, prediction: Tensor) -> None:
        """Take images, where `rows` say, and what became of them."""
        self.x[rows], self.delta[rows] = (255 * x).round().cpu().numpy(), (x_adv - x).cpu().numpy()
        self.label[rows], self.clean_prediction[rows] = y.cpu().numpy(), clean_prediction.cpu().numpy()
        self.prediction[rows] = prediction.cpu().numpy()


@dataclass
class Outcome:
    """One entry per image, in the order of the split, and one per stage of the attack; and the first images themselves.

    ids int64; clean bool: right without an attack (of several draws, the first); clean_right, right float64: the share of the verdict's
    draws in which the image is right without an attack, and under the attack that hurt it most; after float64: the share in which it is
    right under the attack, whatever it was before: it differs from `right` where misclassified images are attacked too. distance float64,
    in the budget's norm, NaN for images that were not attacked; broken_by int64: the stage after which no draw was right any more, -1 if
    none; done bool. forward, backward, reused int64, seconds float64, one entry per stage: images sent through the attacker's view, images
    whose examples were there before, and time.
    metrics float64 [M, N]: other measures than accuracy, NaN for images that do not count. examples: what became of the first images.
    runs float64 [R, N]: `right` as it would be after each stage alone, for an attack whose stages go separately; R is 0 for others.
    features: what the network made of some images, where they were asked for.
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
    examples: Examples
    runs: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    features: Features | None = None

    @classmethod
    def empty(cls, ids: np.ndarray, shape: tuple[int, ...], stages: int = 1, metrics: int = 0, runs: int = 0) -> Outcome:
        """Nothing done yet, of images of the shape [C, H, W]."""
        n = len(ids)
        return cls(
            ids, np.zeros(n, bool), np.zeros(n), np.zeros(n), np.zeros(n), np.full(n, np.nan), np.full(n, -1), np.zeros(n, bool),
            np.zeros(stages, np.int64), np.zeros(stages, np.int64), np.zeros(stages, np.int64), np.zeros(stages),
            np.full((metrics, n), np.nan), Examples.empty(ids, shape), np.zeros((runs, n)),
        )  # fmt: skip

    @property
    def robust(self) -> np.ndarray:
        """Right in every draw, clean and attacked: bool."""
        return self.right == 1

    def survivors(self) -> list[int]:
        """How many images each stage left with a draw in which they are right."""
        attacked = int((self.clean_right > 0).sum())
        return [attacked - int(((self.broken_by >= 0) & (self.broken_by <= stage)).sum()) for stage in range(len(self.forward))]
