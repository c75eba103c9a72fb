"""MNIST, CIFAR-10, SVHN and Tiny-ImageNet: the real files' known answers, and what happens when files are missing or damaged."""

import builtins
import io
import multiprocessing
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from PIL import Image
from tiny_imagenet_archive import archive_with, put

from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.errors import LabError

Make = Callable[..., Dataset]
PUBLISHED = {
    "mnist": ("MNIST/raw", "MNIST/raw/t10k-images-idx3-ubyte"),
    "cifar10": ("cifar-10-batches-py", "cifar-10-batches-py/test_batch"),
    "svhn": ("test_32x32.mat", "test_32x32.mat"),
    "tiny_imagenet": ("tiny-imagenet-200.zip", "tiny-imagenet-200.zip"),
}
every_published = pytest.mark.parametrize("name", PUBLISHED)
every_one_of_torchvision = pytest.mark.parametrize("name", ["mnist", "cifar10", "svhn"])


def load(dataset: Dataset, split: Any, root: Path, download: bool = False) -> ImageSet:
    return dataset.load(split, root=root, download=download, workers=0)


@pytest.mark.real_data
def test_real_mnist(make_dataset: Make, real_root: Path) -> None:
    train, test = (load(make_dataset("mnist"), split, real_root) for split in ("train", "test"))
    assert (len(train), len(test)) == (60_000, 10_000)
    assert train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (train.images.double().mean() / 255).item() == pytest.approx(0.1307, abs=5e-5)  # the usual statistics
    assert (train.images.double().std() / 255).item() == pytest.approx(0.3081, abs=5e-5)


@pytest.mark.real_data
def test_real_cifar10(make_dataset: Make, real_root: Path) -> None:
    dataset = make_dataset("cifar10")
    train, test = (load(dataset, split, real_root) for split in ("train", "test"))
    assert train.labels.bincount().tolist() == [5_000] * 10
    assert test.labels.bincount().tolist() == [1_000] * 10
    assert test.labels[:4].tolist() == [3, 8, 8, 0]  # cat, ship, ship, airplane
    assert train.images.is_contiguous()
    assert (train.images.double().mean((0, 2, 3)) / 255).tolist() == pytest.approx(
        [0.4914, 0.4822, 0.4465], abs=1e-4
    )  # conf/normalise/cifar10.yaml


@pytest.mark.real_data
def test_real_cifar10_subset(make_dataset: Make, real_root: Path) -> None:
    part = load(make_dataset("cifar10", test_size=1000), "test", real_root)
    assert part.labels.bincount().tolist() == [100] * 10


@every_one_of_torchvision
def test_pixels_and_labels_are_torchvisions(name: str, make_dataset: Make, small_root: Path) -> None:
    """Item by item what torchvision's own dataset gives, so that no axis is swapped."""
    from torchvision import datasets
    from torchvision.transforms.functional import pil_to_tensor

    theirs: Any = {
        "mnist": lambda: datasets.MNIST(small_root, train=False),
        "cifar10": lambda: datasets.CIFAR10(small_root, train=False),
        "svhn": lambda: datasets.SVHN(small_root, split="test"),
    }[name]()
    ours = load(make_dataset(name), "test", small_root)
    assert ours.images.is_contiguous()
    assert len(ours) == len(theirs) == 30
    for index, (picture, label) in enumerate(theirs):
        assert torch.equal(ours.images[index], pil_to_tensor(picture))
        assert ours.labels[index] == label


@every_published
def test_missing_says_where_it_looked_and_what_to_do(name: str, make_dataset: Make, tmp_path: Path) -> None:
    with pytest.raises(LabError) as caught:
        load(make_dataset(name), "test", tmp_path)
    looked_for = tmp_path / PUBLISHED[name][0]
    assert str(caught.value) == (
        f"dataset {name!r} is not in {tmp_path} (looked for {looked_for}); set data.download=true to fetch it, or "
        "point data.root (or the environment variable ROBUSTBENCH_LAB_DATA) at a folder that has it"
    )
    assert list(tmp_path.iterdir()) == []


@every_published
def test_one_missing_file_is_named(name: str, make_dataset: Make, small_root: Path) -> None:
    path = small_root / PUBLISHED[name][1]
    path.unlink()
    with pytest.raises(LabError, match=rf"looked for {path}\)"):
        load(make_dataset(name), "test", small_root)


@pytest.mark.parametrize("download", [False, True])
@every_published
def test_damaged_file_is_named(name: str, download: bool, make_dataset: Make, small_root: Path) -> None:
    path = small_root / PUBLISHED[name][1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(LabError, match=rf"{path} .*delete it") as caught:
        load(make_dataset(name), "test", small_root, download)
    assert "meta" not in str(caught.value)  # the others are sound


def test_pickle_with_another_md5_is_not_opened(make_dataset: Make, small_root: Path) -> None:
    """What a forged batch would run leaves a mark."""
    mark = small_root / "mark"
    forged = f"cposix\nsystem\n(S'touch {mark}'\ntR.".encode()
    (small_root / PUBLISHED["cifar10"][1]).write_bytes(forged)
    with pytest.raises(LabError, match="does not match its MD5"):
        load(make_dataset("cifar10"), "test", small_root)
    assert not mark.exists()


def test_sound_files_of_another_dataset_are_not_taken_for_mnist(make_dataset: Make, small_root: Path) -> None:
    """Fashion-MNIST and its like have files of the same names, sizes and headers."""
    path = small_root / PUBLISHED["mnist"][1]
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(LabError, match=rf"{path} does not match its MD5 .*delete it"):
        load(make_dataset("mnist"), "test", small_root)
    assert len(load(make_dataset("mnist"), "train", small_root)) == 30, "the other split is sound"


def test_mnist_with_fewer_labels_than_images(make_dataset: Make, small_root: Path) -> None:
    path = small_root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    path.write_bytes(b"\0\0\x08\x01\0\0\0\x02\x05\x06")
    with pytest.raises(LabError, match=rf"{path} does not match its MD5"):
        load(make_dataset("mnist"), "test", small_root)


@every_published
def test_failed_download_keeps_the_remedies_and_the_cause(
    name: str, make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise URLError("no route to host")

    dataset = make_dataset(name)
    monkeypatch.setattr(type(dataset), "_fetch", refuse)
    with pytest.raises(LabError, match=r"no route to host.*data\.download=true.*ROBUSTBENCH_LAB_DATA"):
        load(dataset, "test", tmp_path / "new", download=True)
    assert [path.name for path in (tmp_path / "new").iterdir() if path.is_dir()] == []


@every_one_of_torchvision
def test_download_is_asked_of_torchvision(
    name: str, make_dataset: Make, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only torchvision's `download` is replaced, by a copy of the files."""
    from torchvision import datasets

    def copy(self: Any) -> None:
        assert Path(self.root).parent == tmp_path / "new"  # the same disk, so that the files can be renamed into place
        shutil.copytree(small_root, self.root, dirs_exist_ok=True)

    theirs = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "svhn": datasets.SVHN}[name]
    monkeypatch.setattr(theirs, "download", copy)
    fetched = load(make_dataset(name), "test", tmp_path / "new", download=True)
    assert torch.equal(fetched.images, load(make_dataset(name), "test", small_root).images)
    assert (tmp_path / "new" / PUBLISHED[name][1]).is_file()
    assert not list((tmp_path / "new").glob(f".{name}-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
def test_two_processes_download_once(make_dataset: Make, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, root, log = make_dataset("mnist"), tmp_path / "shared", tmp_path / "log"

    def fetch(self: Any, split: str, folder: Path) -> None:
        with log.open("a") as file:
            file.write("fetched\n")
        (folder / "MNIST").mkdir()
        time.sleep(0.5)
        shutil.copytree(small_root / "MNIST", folder / "MNIST", dirs_exist_ok=True)

    def child(queue: Any) -> None:
        queue.put(len(load(dataset, "test", root, download=True)))

    monkeypatch.setattr(type(dataset), "_fetch", fetch)
    dataset._files("test")  # torchvision is imported before the fork, for speed
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=child, args=(queue,)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [30, 30]
    for process in processes:
        process.join(timeout=60)
    assert log.read_text() == "fetched\n"


def test_data_that_are_there_need_no_lock(make_dataset: Make, small_root: Path) -> None:
    before = sorted(small_root.iterdir())
    load(make_dataset("mnist"), "test", small_root, download=True)
    assert sorted(small_root.iterdir()) == before


@every_one_of_torchvision
def test_torchvision_that_does_not_fit_torch(name: str, make_dataset: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = builtins.__import__

    def broken(module: str, *args: Any, **kwargs: Any) -> Any:
        if module.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return usual(module, *args, **kwargs)

    dataset = make_dataset(name)
    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(LabError, match=r"torchvision::nms does not exist.*install builds of torch and torchvision"):
        load(dataset, "test", tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_tiny_imagenet_is_read_as_torchvision_reads_its_folders(workers: int, make_dataset: Make, small_root: Path, tmp_path: Path) -> None:
    """The unpacked folder under torchvision's ImageFolder, whose loader makes colour of grey; val's labels are those of its lines."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.functional import pil_to_tensor

    zipfile.ZipFile(small_root / "tiny-imagenet-200.zip").extractall(tmp_path)
    theirs = ImageFolder(str(tmp_path / "tiny-imagenet-200" / "train"))
    dataset = make_dataset("tiny_imagenet")
    train, test = (dataset.load(split, root=small_root, download=False, workers=workers) for split in ("train", "test"))
    assert train.labels.tolist() == theirs.targets
    assert train.images.dtype == torch.uint8
    assert torch.equal(train.images, torch.stack([pil_to_tensor(picture) for picture, _ in theirs]))
    assert (train.images[0] == train.images[0, :1]).all(), "the grey one"
    val = tmp_path / "tiny-imagenet-200" / "val"
    for index, line in enumerate((val / "val_annotations.txt").read_text().splitlines()):
        file, name = line.split("\t")[:2]
        assert torch.equal(test.images[index], pil_to_tensor(Image.open(val / "images" / file).convert("RGB")))
        assert test.labels[index] == theirs.class_to_idx[name]


@pytest.mark.parametrize(
    ("drop", "split", "told"),
    [
        ("val_annotations.txt", "test", "no item named 'tiny-imagenet-200/val/val_annotations.txt'"),
        ("val_7.JPEG\t", "test", "val_7.JPEG is in one of val/images and val_annotations.txt alone"),
        ("images/val_8.JPEG", "test", "val_8.JPEG is in one of val/images and val_annotations.txt alone"),
        ("n00000003_0.JPEG", "train", "training images of 199 classes in place of 200"),
    ],
)
def test_tiny_imagenet_that_lacks_something(
    drop: str, split: str, told: str, make_dataset: Make, small_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(small_root, archive_with(drop), monkeypatch)
    with pytest.raises(LabError, match=rf"tiny-imagenet-200.zip is damaged \(.*{told}.*delete it"):
        load(make_dataset("tiny_imagenet"), split, small_root)


def test_tiny_imagenet_with_a_picture_that_is_none(make_dataset: Make, small_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = archive_with("n00000003_0.JPEG")
    file = io.BytesIO(archive)
    with zipfile.ZipFile(file, "a") as opened:
        opened.writestr("tiny-imagenet-200/train/n00000003/images/n00000003_0.JPEG", b"no picture")
    put(small_root, file.getvalue(), monkeypatch)
    with pytest.raises(LabError, match=r"zip: tiny-imagenet-200/train/n00000003/images/n00000003_0.JPEG cannot be read as an image"):
        load(make_dataset("tiny_imagenet"), "train", small_root)


def test_tiny_imagenet_is_downloaded_with_its_checksum(
    make_dataset: Make, small_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import utils

    from robustbench_lab.datasets import tiny_imagenet

    def copy(url: str, folder: str, filename: str, md5: str) -> None:
        assert (url, md5) == (tiny_imagenet.URL, tiny_imagenet.MD5)
        shutil.copy(small_root / "tiny-imagenet-200.zip", Path(folder) / filename)

    monkeypatch.setattr(utils, "download_url", copy)
    assert len(load(make_dataset("tiny_imagenet"), "test", tmp_path / "new", download=True)) == 200
    assert (tmp_path / "new" / "tiny-imagenet-200.zip").is_file()
