"""Adversarial examples kept for other models: what an attack finds on a run that does not judge is tried on many, and searched once.

An example depends on the image, the model that the attacker sees, the attack and its ball, not on the model that it is tried on. Not for
attacks that look at the whole batch, nor for sources with random output.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import Missing, locked, read_arrays, remove, write_arrays
from robustbench_lab.storage.records import misfit_of_arrays

log = logging.getLogger("robustbench_lab")

WORTH_KEEPING = 20.0  # seconds of searching, from which on the file is written
SAVE_EVERY = 300.0  # seconds between writing it, while the search goes on
LARGEST = 2**31  # bytes of images, up to which they are kept


class Crafted:
    """The examples of one attack on one source, for the images of one split, with the file that holds them; it may be deleted at any time.

    For each stage of the attack: made bool [N], x_adv float32 [N, C, H, W], on the CPU. images: their digest, where one is known.
    """

    def __init__(self, path: Path, ids: np.ndarray, shape: tuple[int, ...], afresh: bool = False, images: str | None = None) -> None:
        self.path, self.ids, self.shape, self.images = path, ids, shape, images
        self.made: dict[str, Tensor] = {}
        self.x_adv: dict[str, Tensor] = {}
        self._places = {int(number): place for place, number in enumerate(ids)}
        if afresh:
            remove(path)
        self._read()
        self._written, self._written_at = self._count(), time.monotonic()

    @classmethod
    def of(cls, path: Path, data: ImageSet, stages: int = 1, afresh: bool = False, images: str | None = None) -> Crafted | None:
        """None where the images of all stages are too many to be kept. afresh: search everything anew, also for evaluations to come."""
        size = 4 * stages * len(data) * math.prod(data.shape)
        return cls(path, data.ids.cpu().numpy(), data.shape, afresh, images) if size <= LARGEST else None

    def places(self, ids: Tensor) -> Tensor:
        """Where images stand, int64 [B], by their ids."""
        return torch.tensor([self._places[number] for number in ids.tolist()], dtype=torch.int64)

    def stage(self, name: str) -> tuple[Tensor, Tensor]:
        """`made` and `x_adv` of one stage, to read and to add to."""
        if name not in self.made:
            self.made[name], self.x_adv[name] = torch.zeros(len(self.ids), dtype=torch.bool), torch.zeros(len(self.ids), *self.shape)
        return self.made[name], self.x_adv[name]

    def save(self, seconds: float, last: bool = True) -> None:
        """Write what is new, if the search took its time, now and then or at last; what another process has written meanwhile stays."""
        soon = not last and time.monotonic() - self._written_at < SAVE_EVERY
        if self._count() == self._written or seconds < WORTH_KEEPING or soon:
            return
        with locked(self.path.parent, log.info):
            self._read()
            arrays = {f"made.{name}": made.numpy() for name, made in self.made.items()}
            arrays |= {f"x_adv.{name}": x_adv.numpy() for name, x_adv in self.x_adv.items()}
            if self.images is not None:
                arrays["images"] = np.array(self.images)
            write_arrays(self.path, ids=self.ids, **arrays)
        self._written, self._written_at = self._count(), time.monotonic()

    def _count(self) -> int:
        return sum(int(made.sum()) for made in self.made.values())

    def _read(self) -> None:
        try:
            arrays = read_arrays(self.path)
            names = [key.removeprefix("made.") for key in arrays if key.startswith("made.")]
            n, image = len(self.ids), " ".join(map(str, self.shape))
            form = {"ids": "i N", **{f"made.{name}": f"b {n}" for name in names}, **{f"x_adv.{name}": f"f {n} {image}" for name in names}}
            problem = misfit_of_arrays(arrays, form)
            others = self.images is not None and str(arrays.get("images", self.images)) != self.images
            if problem is None and (others or not np.array_equal(arrays["ids"], self.ids)):
                problem = "it speaks of other images"
            # What lies outside is no image of any attack; nan is neither.
            if problem is None and not all(((x >= 0) & (x <= 1)).all() for x in (arrays[f"x_adv.{name}"] for name in names)):
                problem = "its images have pixels outside [0, 1]"
            if problem is not None:
                raise LabError(f"{self.path} is damaged: {problem}")
        except Missing:
            return
        except LabError as error:
            log.warning("%s is of no use and is written anew: %s", self.path, error)
            return
        for name in names:
            made, x_adv = self.stage(name)
            new = torch.from_numpy(arrays[f"made.{name}"]) & ~made
            x_adv[new] = torch.from_numpy(arrays[f"x_adv.{name}"])[new].to(x_adv.dtype)
            made |= new
