"""Every file in conf/dataset against every clause of the dataset contract."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from robustbench_lab.contract import Clause, clauses
from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.datasets.digits import Digits
from robustbench_lab.errors import LabError

CONFIGS = Path(__file__).parents[2] / "conf" / "dataset"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
Make = Callable[..., Dataset]


def load(dataset: Dataset, split: Any, root: Path) -> ImageSet:
    return dataset.load(split, root=root, download=False, workers=0)


@pytest.mark.parametrize(
    "clause",
    [pytest.param(clause, id=f"{name}-{clause}") for name in NAMES for clause in clauses("dataset", name)],
)
def test_contract(clause: Clause, small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_LAB_DATA", str(small_root))
    clause()


@pytest.mark.parametrize("name", NAMES)
def test_each_file_says_its_own_budget(name: str) -> None:
    assert set(yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["budget"]) == {"norm", "eps"}


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
