"""Runs that someone else has trained: a file of weights, or a callable's own, put into the network that the settings describe.

Preprocessing is where everybody errs: what a network was fed with is in no file. So its clean accuracy is measured under the normalisation
that was asked for and under the usual others, and told.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn

from robustbench_lab.backbones.callable import CallableNetwork
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.knobs import Count, Knobs, above, at_most, require
from robustbench_lab.models.defended import Classifier, Defended, frozen, full_precision
from robustbench_lab.models.network_space import as_shown
from robustbench_lab.models.normalise import FirstLayer, Normalise
from robustbench_lab.randomness import stable_hash
from robustbench_lab.settings.identity import Run
from robustbench_lab.settings.pieces import piece
from robustbench_lab.settings.values import Unresolved
from robustbench_lab.training.matching import load, matched
from robustbench_lab.training.weights import read_weights

log = logging.getLogger("robustbench_lab")

AT_A_TIME = 64  # images
CLEARLY = 3.0  # standard deviations: by which another normalisation must be better, or a claim differ
SCALES = ((0.5, 0.5), (0.0, 1 / 255))  # mean and std of every channel, for networks that are fed [-1, 1], or bytes


@dataclass(frozen=True, kw_only=True)
class Imported(Knobs):
    """What takes the place of a recipe where nobody trains.

    weights: a file (training/weights.py), or null for those that a callable's network comes with; weights_digest: of that file. rename:
    patterns of its names, and ours (training/matching.py). claimed_clean: percent. images: test images on which that is measured.
    """

    weights: str | None
    weights_digest: str | None = None
    rename: Mapping[str, str] | None
    claimed_clean: Annotated[float, above(0), at_most(100)] | None
    images: Count

    epochs = 0
    validation = 0.0

    def check_claim(self, told: Mapping[str, Any]) -> None:
        """Stop where the clean accuracy that was measured is not what was claimed. Raises LabError, with both figures."""
        if self.claimed_clean is None:
            return
        share, n = told["clean_accuracy"], told["n"]
        low, high = wilson_interval(share * n, n, CLEARLY)
        if not low <= self.claimed_clean / 100 <= high:
            others = ", ".join(f"{word} {100 * accuracy:.2f} %" for word, accuracy in told["others"].items())
            raise LabError(
                f"training.claimed_clean: expected {self.claimed_clean:g} %, measured {100 * share:.2f} % on {n} test images, which leaves "
                f"room for {100 * low:.1f} to {100 * high:.1f} %; check normalise{f' ({others})' if others else ''}, backbone and dataset"
            )


def bring(model: Defended, recipe: Imported) -> dict[str, Any]:
    """Put the weights into the model; returns what is told of that. Raises LabError for a file that is of no use, or of another network."""
    if recipe.weights is None:
        backbone = model.network.backbone if isinstance(model.network, Classifier) else model.network
        expected = "a file, or backbone=callable with a call whose network comes with its weights"
        require(isinstance(backbone, CallableNetwork), "training.weights", expected, recipe.weights)
        return {"file": None, "matched": f"as {backbone.called} made it", "normalisation": None, "whole": False}
    file = read_weights(Path(recipe.weights), recipe.weights_digest)
    found = matched(model, file, recipe.rename)
    load(found)
    (log.warning if found.by == "order" else log.info)("%s: %s", file.path.name, found.told)
    return {"file": file.path.name, "matched": found.told, "normalisation": found.normalisation, "whole": found.whole}


def measured(run: Run, model: Defended, test: ImageSet, brought: Mapping[str, Any], recipe: Imported) -> dict[str, Any]:
    """What a run.json says of the import: clean accuracy under the asked normalisation and under others, and warnings.

    model: on the images' device. test: the images as they are read; so many of them as the recipe says are looked at, evenly spread.
    """
    chosen = test.subset(torch.linspace(0, len(test) - 1, min(recipe.images, len(test))).round().long().unique())
    chosen = as_shown(model, chosen).in_memory()
    right = _right(model, chosen)
    others: dict[str, np.ndarray] = {}
    network = model.network
    if isinstance(network, Classifier) and type(network.normalise) in (FirstLayer, Normalise):
        asked = network.normalise
        for word, layer in _usual(run, brought["normalisation"], test.shape[0]).items():
            if _same(layer, asked, chosen):
                continue
            network.normalise = layer
            others[word] = _right(model, chosen)
        network.normalise = asked
    told = {
        "file": brought["file"],
        "matched": brought["matched"],
        "n": len(chosen),
        "clean_accuracy": float(right.mean()),
        "others": {word: float(flags.mean()) for word, flags in others.items()},
    }
    return told | {"warnings": _warnings(told, right, others, classes=run.config["dataset"]["classes"])}


def _usual(run: Run, own: tuple[list[float], list[float]] | None, channels: int) -> dict[str, FirstLayer]:
    """The first layers that a network of somebody's may have been trained under, by the words that choose them: the file's own, none, the
    dataset's usual one, ImageNet's, and other scales."""
    found: dict[str, FirstLayer] = {}
    for mean, std in [*([own] if own else []), *(([mean], [std]) for mean, std in SCALES)]:
        if len(mean) in (1, channels):
            mean, std = (values if len(values) == channels else values * channels for values in (mean, std))
            found[f"normalise={{mean: {_numbers(mean)}, std: {_numbers(std)}}}"] = Normalise(mean, std)
    for word, (group, choice) in {"dataset": ("dataset", run.choices["dataset"]), "imagenet": ("normalise", "imagenet")}.items():
        with suppress(Unresolved):
            content = piece(group, choice).content
            layer = content.get("normalise", {}) if group == "dataset" else content
            if len(layer.get("mean", ())) == channels:
                found[f"normalise={word}"] = Normalise(layer["mean"], layer.get("std"))
    return {"normalise=none": FirstLayer(), **found}


def _numbers(values: Sequence[float]) -> str:
    return f"[{', '.join(f'{value:.6g}' for value in values)}]"


def _same(one: FirstLayer, other: nn.Module, images: ImageSet) -> bool:
    """Whether two first layers feed a network alike."""
    x = torch.stack([torch.zeros(images.shape), torch.ones(images.shape)]).to(images.device)
    return torch.allclose(one.to(images.device)(x), other(x))


@torch.no_grad()
def _right(model: Defended, images: ImageSet) -> np.ndarray:
    """Which images the model classifies as their labels say, bool [N]."""
    flags = []
    torch.manual_seed(stable_hash(0, "imported"))  # of a random defense's draws
    with frozen(model, fast=False) as target, full_precision():
        for x, y, _ in images.batches(torch.arange(len(images)), AT_A_TIME):
            flags.append((target(x).argmax(dim=1) == y).cpu())
    return torch.cat(flags).numpy()


def _warnings(told: Mapping[str, Any], right: np.ndarray, others: Mapping[str, np.ndarray], classes: int) -> list[dict[str, Any]]:
    """preprocessing: another normalisation is better by more than chance, by a sign test on the same images. at_chance: the asked one
    leaves no more than guessing would."""
    found = []
    n, share = told["n"], told["clean_accuracy"]
    best = max(others, key=lambda word: int(others[word].sum()), default=None)
    if best is not None:
        gained, lost = int((others[best] & ~right).sum()), int((right & ~others[best]).sum())
        if gained - lost > CLEARLY * np.sqrt(gained + lost):
            better = float(others[best].mean())
            message = f"clean accuracy is {100 * share:.2f} % under the asked normalisation and {100 * better:.2f} % under {best} (n = {n})"
            found.append({"code": "preprocessing", "message": message, "asked": share, "other": better, "word": best, "n": n})
    if wilson_interval(share * n, n)[0] <= 1 / classes:
        message = (
            f"clean accuracy {100 * share:.2f} % is what guessing gives (n = {n}): the weights do not belong to this network, dataset or "
            "normalisation, or to one of the same shapes (backbone.shortcut, the order of the classes)"
        )
        found.append({"code": "at_chance", "message": message, "asked": share, "chance": 1 / classes, "n": n})
    return found
