"""The first images of a split, clean and attacked."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from robustbench_lab.evaluation.keepers.base import Keeper, Shown
from robustbench_lab.storage.records import EXAMPLES_FILE

EXAMPLES = 10  # how many images are kept with what the attack made of them


class Examples(Keeper):
    """The first images of the split, whatever their verdict: nobody picks them.

    index int64 [E]: their ids; x uint8 [E, C, H, W]; delta float16 [E, C, H, W]: what was added to pixels in [0, 1], zero for images that
    were not attacked; label, clean_prediction, prediction int64 [E]: the class, and the defended model's answer on x and on x + delta (of
    several draws, the first). Of several attacks, delta is of the one that the verdict rests on: that which hurt the image most, or
    the last one where none did. Images that are not done yet are zero, and their predictions -1.
    """

    name: ClassVar[str] = "examples"
    file: ClassVar[str] = EXAMPLES_FILE

    def empty(self) -> dict[str, np.ndarray]:
        index = self.evaluated.data.ids.cpu().numpy()[:EXAMPLES]
        images = (len(index), *self.evaluated.data.shape)
        return {
            "index": index, "x": np.zeros(images, np.uint8), "delta": np.zeros(images, np.float16),
            **{name: np.full(len(index), -1, np.int64) for name in ("label", "clean_prediction", "prediction")},
        }  # fmt: skip

    def keep(self, shown: Shown) -> None:
        few = int((shown.rows < len(self.arrays["index"])).sum())  # rows ascend: a batch's examples are its first images
        if not few:
            return
        rows, ids = shown.rows[:few], shown.ids[:few]
        x, x_adv = (self.evaluated.pictures(images[:few], ids) for images in (shown.x, shown.x_adv))
        values = {
            "x": (255 * x).round(), "delta": x_adv - x, "label": shown.y[:few], "clean_prediction": shown.clean_prediction[:few],
            "prediction": shown.prediction[:few],
        }  # fmt: skip
        for name, value in values.items():
            self.arrays[name][rows] = value.cpu().numpy()
