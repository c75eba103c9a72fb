"""Digits and the toy problems: known answers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits

from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.errors import LabError

Make = Callable[..., Dataset]
NORMALISE = Path(__file__).parents[2] / "conf" / "normalise"


def load(dataset: Dataset, split: Any) -> ImageSet:
    return dataset.load(split, root=Path("nowhere"), download=False, workers=0)


def as_rows(levels: np.ndarray, labels: np.ndarray) -> list[tuple[int, ...]]:
    return sorted((*row, label) for row, label in zip(levels.astype(int).tolist(), labels.tolist(), strict=True))


def test_digits_splits_are_scikit_learns_images_each_once(make_dataset: Make) -> None:
    train, test = (load(make_dataset("digits"), split) for split in ("train", "test"))
    pixels = torch.cat([train.images, test.images]).flatten(1).numpy()
    labels = torch.cat([train.labels, test.labels]).numpy()
    levels, expected = load_digits(return_X_y=True)
    assert as_rows(np.round(pixels * 16.0 / 255), labels) == as_rows(levels, expected)
    assert (len(train), len(test)) == (1437, 360)


def test_digits_levels(make_dataset: Make) -> None:
    levels = load(make_dataset("digits"), "train").images.unique().tolist()
    # round(255 v / 16) for v = 0..16; v = 8 is 127.5, which numpy rounds to the even neighbour
    assert levels == [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255]


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_split_is_stratified(seed: int, make_dataset: Make) -> None:
    counts = load(make_dataset("digits", split_seed=seed), "test").labels.bincount()
    everything = np.bincount(load_digits(return_X_y=True)[1])
    assert (np.abs(counts.numpy() - 0.2 * everything) < 1).all()


def test_digits_split_follows_its_own_seed(make_dataset: Make) -> None:
    usual = load(make_dataset("digits"), "test")
    assert torch.equal(load(make_dataset("digits", subset_seed=5), "test").images, usual.images)
    assert not torch.equal(load(make_dataset("digits", split_seed=5), "test").labels, usual.labels)


def test_digits_split_too_small_for_its_classes(make_dataset: Make) -> None:
    with pytest.raises(LabError, match=r"^dataset\.test_fraction: expected a share with which both splits hold every class"):
        load(make_dataset("digits", test_fraction=0.001), "train")


@pytest.mark.parametrize("name", ["digits", "circles", "moons"])
def test_mean_and_std_are_those_of_the_training_split(name: str, make_dataset: Make) -> None:
    images = load(make_dataset(name), "train")
    published = yaml.safe_load((NORMALISE / f"{name}.yaml").read_text())
    ((x, _, _),) = images.batches(torch.arange(len(images)), len(images))
    assert x.mean((0, 2, 3)).tolist() == pytest.approx(published["mean"], abs=1e-3)
    assert x.std((0, 2, 3)).tolist() == pytest.approx(published["std"], abs=1e-3)


def test_circles_without_noise_have_their_radii(make_dataset: Make) -> None:
    images = load(make_dataset("circles", noise=0.0), "train")
    radius = (images.images - 0.5).mul(3).flatten(1).norm(dim=1)
    torch.testing.assert_close(radius, torch.where(images.labels == 0, 1.0, 0.5), atol=1e-5, rtol=0)


def test_moons_without_noise_lie_on_their_arcs(make_dataset: Make) -> None:
    images = load(make_dataset("moons", noise=0.0), "train")
    points = (images.images.flatten(1) - 0.5) * 4 + torch.tensor([0.5, 0.25])
    centre = torch.where(images.labels[:, None] == 0, torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close((points - centre).norm(dim=1), torch.ones(1000), atol=1e-5, rtol=0)
    upper = points[:, 1] >= centre[:, 1] - 1e-5
    assert torch.equal(upper, (images.labels == 0) | (points[:, 1] > 0.5 - 1e-5))


@pytest.mark.parametrize("name", ["circles", "moons"])
def test_toys_are_balanced_and_clipped_under_any_noise(name: str, make_dataset: Make) -> None:
    images = load(make_dataset(name, noise=3.0, samples=500), "test")
    assert images.labels.bincount().tolist() == [250, 250]
    assert images.images.min() == 0
    assert images.images.max() == 1


@pytest.mark.parametrize("name", ["circles", "moons"])
def test_toy_test_split_is_no_other_seeds_training_split(name: str, make_dataset: Make) -> None:
    test = load(make_dataset(name), "test").images
    for seed in range(4):
        assert not torch.equal(test, load(make_dataset(name, seed=seed), "train").images)
