"""Datasets built from their YAML files, and small files in every layout that they read."""

import hashlib
import os
import pickle
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_imagenet_archive import archive_with, put

from robustbench_lab.datasets.base import Dataset

CONFIGS = Path(__file__).parents[2] / "conf" / "dataset"
PER_CLASS = 3  # images of each of the ten classes, in each split of the small files


@pytest.fixture(scope="session")
def make_dataset() -> Callable[..., Dataset]:
    """`make_dataset("cifar10", test_size=20)`: what conf/dataset/cifar10.yaml and these overrides describe."""

    def make(name: str, **overrides: Any) -> Dataset:
        config = _read(name) | overrides
        for others in ("budget", "defaults", "normalise", "space"):
            config.pop(others, None)
        module, _, class_name = config.pop("_target_").rpartition(".")
        return getattr(import_module(module), class_name)(**config)

    return make


def _read(name: str) -> dict[str, Any]:
    """A file, after what it is a variant of."""
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    parents = [_read(parent) for parent in config["defaults"] if isinstance(parent, str) and parent != "_self_"]
    return {key: entry for part in (*parents, config) for key, entry in part.items()}


@pytest.fixture
def small_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data root with 30 random images a split of every downloadable dataset (of Tiny-ImageNet one of each class), and an image folder.

    The integrity checks stay on: torchvision is told the MD5 sums of these files instead of the published ones.
    """
    root = tmp_path / "data"
    rng = np.random.default_rng(0)
    _write_mnist(root / "MNIST" / "raw", rng, monkeypatch)
    _write_cifar10(root / "cifar-10-batches-py", rng, monkeypatch)
    _write_svhn(root, rng, monkeypatch)
    put(root, archive_with(), monkeypatch)
    for split in ("train", "test"):
        for label in range(10):
            for number in range(PER_CLASS):
                path = root / "images" / split / f"class {label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def real_root() -> Path:
    """The folder with the real files."""
    root = Path(os.environ.get("ROBUSTBENCH_LAB_DATA", "data")).absolute()
    for folder in ("MNIST/raw", "cifar-10-batches-py"):
        if not (root / folder).is_dir():
            pytest.skip(f"no {root / folder}: set ROBUSTBENCH_LAB_DATA to a folder that has {folder}")
    return root


def _labels(rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.repeat(np.arange(10), PER_CLASS)).astype(np.uint8)


def _write_mnist(folder: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustbench_lab.datasets.mnist import UNPACKED

    folder.mkdir(parents=True)
    for stem in ("train", "t10k"):
        labels = _labels(rng)
        pixels = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        header = np.array([0x803, *pixels.shape], dtype=">i4").tobytes()
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = np.array([0x801, len(labels)], dtype=">i4").tobytes()
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
        for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
            monkeypatch.setitem(UNPACKED, name, hashlib.md5((folder / name).read_bytes()).hexdigest())


def _write_cifar10(folder: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    def write(name: str, content: dict[str, Any]) -> list[str]:
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    folder.mkdir()
    entries = []
    for name in ("data_batch_1", "test_batch"):
        labels = _labels(rng)
        pixels = rng.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        entries.append(write(name, {"data": pixels, "labels": labels.tolist()}))
    filename, md5 = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", entries[:1])
    monkeypatch.setattr(CIFAR10, "test_list", entries[1:])
    monkeypatch.setattr(CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})


def _write_svhn(root: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    entries = {}
    for split in ("train", "test"):
        labels = _labels(rng)
        pixels = rng.integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        path = root / f"{split}_32x32.mat"
        savemat(path, {"X": pixels, "y": np.where(labels == 0, 10, labels)[:, None]})  # the files call the digit 0 "10"
        entries[split] = ["unreachable", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", entries)
