"""The clauses of a dataset (datasets.base.Dataset), on its own files under ROBUSTBENCH_LAB_DATA; nothing is downloaded."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robustbench_lab.contract.clause import Clause
from robustbench_lab.contract.trying import clause_of, demand, refusal
from robustbench_lab.datasets.base import Dataset, ImageSet, Split, StreamedImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.build import build, dataset_of
from robustbench_lab.settings.conf import choice_file, path_of, project_path
from robustbench_lab.threats import Budget

SPLITS: tuple[Split, Split] = ("train", "test")
FEW = 20  # images of a subset; where there are fewer than 30, two thirds of them
MOST_DECODED = 2000  # of images that do not fit in memory


def clauses(choice: str, words: Sequence[str] = ()) -> Iterator[Clause]:
    config, clause = alone("dataset", choice, words), clause_of(f"dataset={choice}")
    dataset: Dataset = dataset_of({"dataset": config}, Dataset)
    yield clause(opens_with_its_command, choice)
    yield clause(has_a_budget_that_fits_its_images, config, dataset)
    yield clause(is_named_after_its_file_unless_it_is_a_variant, choice, dataset)
    yield clause(says_what_is_missing, dataset)
    yield clause(asks_for_every_knob, dataset)
    for split in SPLITS:
        yield clause(has_images_labels_and_ids, dataset, split, case=split)
        yield clause(refuses_more_images_than_there_are, dataset, split, case=split)
    yield clause(reads_the_same_twice, dataset)
    yield clause(shows_no_training_image_in_the_test_split, dataset)
    yield clause(keeps_pixels_labels_and_ids_together, dataset)


def load(dataset: Dataset, split: Split, root: Path | None = None) -> ImageSet:
    root = path_of(os.environ.get("ROBUSTBENCH_LAB_DATA") or project_path("data"), "data.root") if root is None else root
    return dataset.load(split, root=root, download=False, workers=0)


def some(images: ImageSet) -> Tensor:
    """Positions, int64 [M], in an order of their own: of all images, or of as many as are quickly decoded."""
    positions = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return positions[:MOST_DECODED] if isinstance(images, StreamedImageSet) else positions


def pixels_of(images: ImageSet, positions: Tensor) -> Tensor:
    return torch.cat([x for x, _, _ in images.batches(positions, 256)])


def opens_with_its_command(choice: str) -> None:
    """Its YAML opens with the command that trains on it."""
    path, command = choice_file("dataset", choice), f"# python -m robustbench_lab train dataset={choice}"
    demand(path is not None and path.read_text(encoding="utf-8").startswith(command), f"{path} does not open with `{command}`")


def has_a_budget_that_fits_its_images(config: Mapping[str, Any], dataset: Dataset) -> None:
    """Its YAML says the usual ball around its images: a norm, linf or l2, and an eps that is not larger than the box."""
    budget = config.get("budget") or {}
    demand(set(budget) == {"norm", "eps"}, f"expected dataset.budget with norm and eps, got {dict(budget)}")
    demand(budget["norm"] in ("linf", "l2"), f"expected dataset.budget.norm to be linf or l2, got {budget['norm']}")
    built: Budget = build({"_target_": "robustbench_lab.threats.Budget", **budget}, "dataset.budget", Budget)
    built.check((dataset.channels, dataset.size, dataset.size), "dataset.budget")


def is_named_after_its_file_unless_it_is_a_variant(choice: str, dataset: Dataset) -> None:
    """The class's `name` begins the name of each of its files."""
    demand(choice.startswith(dataset.name), f"dataset={choice} is a class whose name is {dataset.name!r}")


def says_what_is_missing(dataset: Dataset) -> None:
    """In an empty folder, and without a download, it needs no files, or says as LabError what it looked for."""
    with tempfile.TemporaryDirectory() as empty:
        for split in SPLITS:
            try:
                load(dataset, split, Path(empty))
            except LabError:
                continue
            except Exception as error:
                raise AssertionError(f"expected robustbench_lab.errors.MissingFiles, got {type(error).__name__}: {error}") from error


def asks_for_every_knob(dataset: Dataset) -> None:
    """No knob has a default in Python: its number and source stand in the YAML."""
    for key, value in vars(dataset).items():
        knobs = {other: kept for other, kept in vars(dataset).items() if other != key}
        try:
            type(dataset)(**knobs)
        except TypeError as error:
            demand(key in str(error), f"without {key}, the error does not name it: {error}")
        else:
            raise AssertionError(f"{key} has a default in Python")
        demand(type(dataset)(**knobs, **{key: value}) == dataset, "built from the same knobs, it is another one")


def has_images_labels_and_ids(dataset: Dataset, split: Split) -> None:
    """Images are float32 [B, channels, size, size] in [0, 1] of more than 16 levels, labels int64 of every class, ids int64 that count the
    images; batches come in the order that is asked for, the last may be smaller."""
    images = load(dataset, split)
    n = len(images)
    demand(images.shape == (dataset.channels, dataset.size, dataset.size), f"images have another shape than the config: {images.shape}")
    demand(images.ids.tolist() == list(range(n)), f"ids must be 0 to {n - 1} in order")
    missing = sorted(set(range(dataset.classes)) - set(images.labels.tolist()))
    demand(not missing, f"no image has label {missing[:5]}, of dataset.classes={dataset.classes}")
    positions = some(images)
    batches = list(images.batches(positions, 7))
    sizes = [7] * (len(positions) // 7) + [len(positions) % 7] * (len(positions) % 7 > 0)
    demand([len(y) for _, y, _ in batches] == sizes, "batches of 7 must hold 7 images, the last one the rest")
    x, y, ids = (torch.cat(parts) for parts in zip(*batches, strict=True))
    types = (x.dtype, y.dtype, ids.dtype)
    demand(types == (torch.float32, torch.int64, torch.int64), f"expected images float32, labels and ids int64, got {types}")
    demand(x.shape == (len(positions), *images.shape), f"expected images {[len(positions), *images.shape]}, got {list(x.shape)}")
    low, high = (bound.item() for bound in x.aminmax())
    demand(low >= 0 and high <= 1, f"pixels must lie in [0, 1], got {low:g} to {high:g}")
    levels = len(x.unique())
    demand(levels > 16, f"all pixels together have {levels} values: constant, or cut off")
    demand(torch.equal(ids, positions), "batches do not hold the images that were asked for")
    demand(torch.equal(y, images.labels[positions]), "batches do not hold the labels of their images")


def refuses_more_images_than_there_are(dataset: Dataset, split: Split) -> None:
    """A subset may be the whole split; a larger one is refused as LabError with both numbers."""
    key, n = f"{split}_size", len(load(dataset, split))
    with refusal(f"dataset.{key}={n + 1}") as told:
        load(replace(dataset, **{key: n + 1}), split)
    demand(f"dataset.{key}={n + 1}" in told[0] and f" {n} {split} images" in told[0], f"expected both numbers, got {told[0]!r}")
    demand(len(load(replace(dataset, **{key: n}), split)) == n, f"dataset.{key}={n} does not keep all {n} images")


def reads_the_same_twice(dataset: Dataset) -> None:
    """Reading is deterministic and does not touch torch's global random state."""
    before = torch.get_rng_state()
    small = replace(dataset, train_size=max(FEW, dataset.classes))
    once, again = (load(small, "train").in_memory() for _ in range(2))
    list(once.batches(torch.arange(len(once)), len(once)))
    demand(torch.equal(torch.get_rng_state(), before), "torch's global generator was drawn from")
    demand(torch.equal(once.ids, again.ids), "another reading keeps other images")
    demand(torch.equal(once.labels, again.labels), "another reading has other labels")
    demand(torch.equal(once.images, again.images), "another reading has other pixels")


def shows_no_training_image_in_the_test_split(dataset: Dataset) -> None:
    """No image is in both splits."""
    train, test = ({image.numpy().tobytes() for image in pixels_of(found, some(found))} for found in (load(dataset, s) for s in SPLITS))
    demand(not train & test, f"{len(train & test)} of the {len(test)} test images are training images too")


def keeps_pixels_labels_and_ids_together(dataset: Dataset) -> None:
    """A subset is balanced over the classes, fixed by subset_seed, ascending in ids, and each of its images has its own label and id."""
    full = load(dataset, "test")
    size = min(FEW, 2 * len(full) // 3)
    part = load(replace(dataset, test_size=size), "test")
    demand(len(part) == size, f"dataset.test_size={size} keeps {len(part)} images")
    demand(torch.equal(part.ids, part.ids.sort().values), "ids are not ascending")
    everywhere = torch.arange(size)
    demand(torch.equal(pixels_of(part, everywhere), pixels_of(full, part.ids)), "a kept image has other pixels than that id")
    demand(torch.equal(part.labels, full.labels[part.ids]), "a kept image has another label than that id")
    counts, there_are = (found.labels.bincount(minlength=dataset.classes) for found in (part, full))
    short = counts < there_are  # a class of which all images are kept may have fewer
    demand(not short.any() or counts.max() - counts[short].min() <= 1, f"classes are not balanced: {counts.tolist()}")
    other = load(replace(dataset, test_size=size, subset_seed=dataset.subset_seed + 1), "test")
    demand(not torch.equal(other.ids, part.ids), "another subset_seed keeps the same images")
