"""Prediction changed: whether the attack made the model answer otherwise than on the clean image, right or wrong.

It is the share that a search for the smallest perturbation has brought across a boundary, which is to be read beside the mean size of its
perturbations. Robust accuracy tells it of images that were right when clean; with attack_misclassified=true this counts the others, too,
which may cross from one wrong class to another. Random output: one draw.
"""

from __future__ import annotations

from torch import Tensor

from robustbench_lab.metrics.base import Measure, Seen


class PredictionChanged(Measure):
    """1 where the predictions on x and x_adv differ, else 0, float64 [B]; every image counts, also one that was not attacked."""

    def __call__(self, seen: Seen) -> Tensor:
        return seen.flipped.double()
