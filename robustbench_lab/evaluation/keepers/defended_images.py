"""What the network sees of the first images of a split, clean and attacked: images as they leave the fronts, and masks on their way."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.evaluation.judging import drawn
from robustbench_lab.evaluation.keepers.base import Keeper, Shown
from robustbench_lab.evaluation.keepers.examples import EXAMPLES
from robustbench_lab.models.defended import Defended, frozen
from robustbench_lab.storage.records import DEFENDED_IMAGES_FILE


class DefendedImages(Keeper):
    """The images of examples.npz behind the model's fronts, which may change their size; the images themselves where it has none.

    index int64 [E]: their ids; clean, attacked uint8 [E, C, H, W]: what the network sees of each image, before its first layer, and of what
    the attack made of it (the image itself, where it was not attacked). Of a model with a front that masks pixels (`masks`), also
    clean_masks, attacked_masks uint8 [E, 1, I, J], 255 where a pixel stays whole: those of the first such front. Random fronts: one draw,
    in which masks and images belong together. Images that are not done yet are zero.
    """

    name: ClassVar[str] = "defended_images"
    file: ClassVar[str] = DEFENDED_IMAGES_FILE

    def empty(self) -> dict[str, np.ndarray]:
        seen = self.evaluated
        index = seen.data.ids.cpu().numpy()[:EXAMPLES]
        x, _, _ = next(seen.data.batches(torch.arange(1), 1))
        shapes = {name: tuple(found.shape[1:]) for name, found in behind_fronts(seen.defended, x, seen.seed).items()}
        zeros = {f"{kind}{name}": np.zeros((len(index), *shape), np.uint8) for kind in KINDS for name, shape in shapes.items()}
        return {"index": index, **zeros}

    def keep(self, shown: Shown) -> None:
        few = int((shown.rows < len(self.arrays["index"])).sum())  # rows ascend: a batch's first images
        if not few:
            return
        for kind, x in zip(KINDS, (shown.x, shown.x_adv), strict=True):
            found = behind_fronts(self.evaluated.defended, x[:few], self.evaluated.seed)
            if found[""].shape == x[:few].shape:
                found[""] = self.evaluated.pictures(found[""], shown.ids[:few])
            for name, images in found.items():
                self.arrays[f"{kind}{name}"][shown.rows[:few]] = (255 * images.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()


KINDS = ("clean", "attacked")


@torch.no_grad()
def behind_fronts(defended: Defended, x: Tensor, seed: int) -> dict[str, Tensor]:
    """Of images [B, C, H, W], by what is added to a name: what the network is given, and "_masks" [B, 1, I, J] if a front has them."""
    found = {}
    with frozen(defended, fast=False), drawn(defended.stochastic, seed, "defended_images"):
        for front in defended.each_front():
            if "_masks" not in found and (masks := getattr(front, "masks", None)) is not None:
                with torch.random.fork_rng():  # those that the front will draw again
                    found["_masks"] = masks(x)
            x = front(x)
    return {"": x, **found}
