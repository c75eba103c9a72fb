"""The images that a training made once before its first step, kept beside the run until it is finished, so that a resumed one has them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import Missing
from robustbench_lab.training.checkpoints import read_tensors, write_tensors

log = logging.getLogger("robustbench_lab")

WORTH_KEEPING = 20.0  # seconds that making them took, from which on they are written


def kept_images(path: Path, mark: Mapping[str, object], device: torch.device, make: Callable[[], ImageSet | None]) -> ImageSet | None:
    """Those of the file, if it is sound and has this `mark`; otherwise what `make` gives, which is written if it took its time.

    The file is a help: one that is damaged, or cannot be written, is told and does without.
    """
    try:
        return _read(path, mark, device)
    except Missing:
        pass
    except LabError as error:
        log.warning("%s; its images are made anew", error)
    began = time.perf_counter()
    images = make()
    if images is not None and time.perf_counter() - began > WORTH_KEEPING:
        held = images.in_memory()
        try:
            write_tensors(path, {"images": held.images, "labels": held.labels, "ids": held.ids}, {"mark": dict(mark)})
        except LabError as error:
            log.warning("not kept for a resumed training: %s", error)
    return images


def _read(path: Path, mark: Mapping[str, object], device: torch.device) -> ImageSet:
    tensors, meta = read_tensors(path)
    if meta.get("mark") != dict(mark):
        raise LabError(f"{path} is of other images or another run")
    if tensors.keys() != {"images", "labels", "ids"}:
        raise LabError(f"{path} is damaged: it holds {', '.join(sorted(tensors)) or 'nothing'}")
    return ImageSet(tensors["images"], tensors["labels"], tensors["ids"]).to(device)
