"""The ray from each image through its attacked one: where along it the model is still right."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from robustbench_lab.evaluation.judging import predictions
from robustbench_lab.evaluation.keepers.base import Evaluated, Keeper, Shown
from robustbench_lab.knobs import Count, check, require
from robustbench_lab.storage.records import RAY_FILE


class Ray(Keeper):
    """Is the image x + t (x_adv - x) right, for t = 0, 1 / points, ..., 1? Asked as the verdict is: eval mode, full precision.

    index int64 [N]: the images' ids; t float64 [points + 1]; right uint8 [N, ceil((points + 1) / 8)]: whether each image is right at each
    t, as bits packed along t (np.unpackbits(right, axis=1, count=len(t))); free bool [N]: whether no pixel of x_adv lies at 0 or 1, so that
    the box has cut nothing. Images that are not done yet are zero.

    FGSM is one gradient: with attack=fgsm, what is found in the ball of the largest eps is at t, where the box cuts nothing, what it finds
    in the ball of t * eps. Deep Defense (arXiv:1803.00404, section 4.1) tells accuracy under FGSM at such parts of an eps.
    Of other attacks the ray tells only how far one can go towards what they found. An image that was not attacked stays where it is.
    Cost: points + 1 forward passes of each image. Raises LabError for a model whose output is random: one draw at each t tells nothing.
    """

    name: ClassVar[str] = "ray"
    file: ClassVar[str] = RAY_FILE

    def __init__(self, points: int) -> None:
        check("points", points, Count)
        self.points = points

    def begin(self, evaluated: Evaluated) -> None:
        require(not evaluated.defended.stochastic, "keep.ray", "a model that answers an image always alike", "one whose output is random")
        super().begin(evaluated)

    def empty(self) -> dict[str, np.ndarray]:
        index, t = self.evaluated.data.ids.cpu().numpy(), np.linspace(0, 1, self.points + 1)
        right = np.packbits(np.zeros((len(index), len(t)), bool), axis=1)
        return {"index": index, "t": t, "right": right, "free": np.zeros(len(index), bool)}

    def keep(self, shown: Shown) -> None:
        right = [
            predictions(self.evaluated.defended, torch.lerp(shown.x, shown.x_adv, t), shown.ids) == shown.y
            for t in self.arrays["t"].tolist()
        ]  # lerp: at 0 and 1 the very images that the verdict is of
        self.arrays["right"][shown.rows] = np.packbits(torch.stack(right, dim=1).cpu().numpy(), axis=1)
        inside = (shown.x_adv > 0) & (shown.x_adv < 1)
        self.arrays["free"][shown.rows] = inside.flatten(1).all(dim=1).cpu().numpy()
