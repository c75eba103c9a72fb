"""Every file in conf/dataset against every clause of the dataset contract."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.datasets.digits import Digits
from robustbench_lab.errors import LabError

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "dataset").glob("*.yaml"))
every_config = pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
every_split = pytest.mark.parametrize("split", ["train", "test"])
Make = Callable[..., Dataset]


def load(dataset: Dataset, split: Any, root: Path) -> ImageSet:
    return dataset.load(split, root=root, download=False, workers=0)


@every_config
def test_opens_with_its_command_and_has_a_budget(name: str) -> None:
    text = (CONFIGS[0].parent / f"{name}.yaml").read_text()
    assert text.startswith(f"# python -m robustbench_lab train dataset={name}")
    budget = yaml.safe_load(text)["budget"]
    assert set(budget) == {"norm", "eps"}
    assert budget["norm"] in ("linf", "l2")


@every_config
def test_is_named_after_its_file_unless_it_is_a_variant(name: str, make_dataset: Make) -> None:
    assert name.startswith(make_dataset(name).name)


@every_split
@every_config
def test_images_labels_and_ids(name: str, split: str, make_dataset: Make, small_root: Path) -> None:
    dataset = make_dataset(name)
    images = load(dataset, split, small_root)
    n = len(images)
    assert images.shape == (dataset.channels, dataset.size, dataset.size)
    assert images.ids.tolist() == list(range(n))
    assert images.labels.unique().tolist() == list(range(dataset.classes))
    positions = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    batches = list(images.batches(positions, 7))
    assert [len(y) for _, y, _ in batches] == [7] * (n // 7) + [n % 7] * (n % 7 > 0)
    x, y, ids = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (x.dtype, y.dtype, ids.dtype) == (torch.float32, torch.int64, torch.int64)
    assert x.shape == (n, *images.shape)
    assert x.min() >= 0
    assert x.max() <= 1
    assert len(x.unique()) > 16  # neither constant nor cut off
    assert torch.equal(ids, positions)
    assert torch.equal(y, images.labels[positions])


@every_config
def test_reading_is_deterministic_and_leaves_the_global_random_state(name: str, make_dataset: Make, small_root: Path) -> None:
    before = torch.get_rng_state()
    once, again = (load(make_dataset(name, train_size=20), "train", small_root) for _ in range(2))
    list(once.batches(torch.arange(20), 20))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(once.ids, again.ids)
    assert torch.equal(once.labels, again.labels)
    assert torch.equal(once.images, again.images)


@every_config
def test_splits_differ(name: str, make_dataset: Make, small_root: Path) -> None:
    train, test = (load(make_dataset(name), split, small_root).images for split in ("train", "test"))
    rows = {tuple(image.flatten().tolist()[:64]) for image in train}
    assert not rows & {tuple(image.flatten().tolist()[:64]) for image in test}


@every_config
def test_subset_keeps_pixels_labels_and_ids_together(name: str, make_dataset: Make, small_root: Path) -> None:
    full = load(make_dataset(name), "test", small_root)
    part = load(make_dataset(name, test_size=20), "test", small_root)
    assert len(part) == 20
    assert torch.equal(part.ids, part.ids.sort().values)
    assert torch.equal(part.images, full.images[part.ids])
    assert torch.equal(part.labels, full.labels[part.ids])
    counts = part.labels.bincount(minlength=make_dataset(name).classes)
    assert counts.max() - counts.min() <= 1
    other = load(make_dataset(name, test_size=20, subset_seed=1), "test", small_root)
    assert not torch.equal(other.ids, part.ids)


@every_split
@every_config
def test_more_images_than_there_are(name: str, split: str, make_dataset: Make, small_root: Path) -> None:
    n = len(load(make_dataset(name), split, small_root))
    with pytest.raises(LabError, match=rf"dataset\.{split}_size={n + 1}.* {n} {split} images"):
        load(make_dataset(name, **{f"{split}_size": n + 1}), split, small_root)
    assert len(load(make_dataset(name, **{f"{split}_size": n}), split, small_root)) == n


@every_config
def test_every_knob_is_required(name: str, make_dataset: Make) -> None:
    dataset = make_dataset(name)
    for key, value in vars(dataset).items():
        knobs = {other: kept for other, kept in vars(dataset).items() if other != key}
        with pytest.raises(TypeError, match=key):
            type(dataset)(**knobs)
        assert type(dataset)(**knobs, **{key: value}) == dataset


WRONG = [
    ("classes", 1),
    ("classes", "ten"),
    ("channels", 0),
    ("size", 8.5),
    ("train_size", 0),
    ("train_size", 9),
    ("test_size", -1),
    ("test_size", True),
    ("subset_seed", -1),
    ("split_seed", None),
    ("test_fraction", 1.0),
    ("test_fraction", 0),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_wrong_knob_is_named(key: str, value: Any, make_dataset: Make) -> None:
    with pytest.raises(LabError, match=rf"^{key}: expected .*, got "):
        make_dataset("digits", **{key: value})


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("circles", "samples", 1),
        ("circles", "noise", -0.1),
        ("circles", "factor", 1.0),
        ("circles", "seed", 2**31),
        ("moons", "seed", 0.5),
        ("image_folder", "path", ""),
        ("image_folder", "resize", 223),
        ("image_folder", "in_memory_limit", -1),
        ("image_folder", "in_memory_limit", "4GB"),
    ],
)
def test_wrong_own_knob_is_named(name: str, key: str, value: Any, make_dataset: Make) -> None:
    with pytest.raises(LabError, match=rf"^{key}: expected .*, got "):
        make_dataset(name, **{key: value})


def test_wrong_shape_is_named(make_dataset: Make, small_root: Path) -> None:
    with pytest.raises(LabError, match=r"'digits'.*\[1, 8, 8\].*dataset\.size say \[1, 9, 9\]"):
        load(make_dataset("digits", size=9), "train", small_root)


@pytest.mark.parametrize(
    ("name", "classes"), [("digits", 7), ("digits", 10**8), ("moons", 3), ("cifar10", 100), ("mnist", 2), ("svhn", 11)]
)
def test_other_classes_than_a_dataset_has_are_refused(make_dataset: Make, name: str, classes: int) -> None:
    with pytest.raises(LabError, match=rf"classes: expected \d+, as {name} has, got {classes}"):
        make_dataset(name, classes=classes)


def test_label_beyond_the_classes_is_named(make_dataset: Make, small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Digits, "has_classes", None)
    with pytest.raises(LabError, match=r"'digits' has an image with label 7 .*dataset\.classes=7"):
        load(make_dataset("digits", classes=7), "train", small_root)


def test_unknown_split(make_dataset: Make, small_root: Path) -> None:
    with pytest.raises(LabError, match="'validation'"):
        load(make_dataset("digits"), "validation", small_root)
