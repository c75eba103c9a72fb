"""Image folders: decoding, and what their errors name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_lab.datasets.base import Dataset, ImageSet, StreamedImageSet
from robustbench_lab.errors import LabError

Make = Callable[..., Dataset]
TREE = {"train": {"cat": 3, "dog": 2}, "test": {"cat": 1, "dog": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of grey pictures, each of one shade: 10 for the first file, 20 for the second, ..."""
    for split, classes in TREE.items():
        for name, count in classes.items():
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                shade = Image.new("RGB", (12, 8), (10 * (number + 1),) * 3)
                shade.save(tmp_path / split / name / f"{number}.png")
    return tmp_path


@pytest.fixture
def make(make_dataset: Make, folder: Path) -> Callable[..., Dataset]:
    knobs: dict[str, Any] = {"path": str(folder), "classes": 2, "size": 4, "resize": 4}
    return lambda **overrides: make_dataset("image_folder", **(knobs | overrides))


def load(dataset: Dataset, split: Any = "train", root: Path = Path("nowhere"), workers: int = 0) -> ImageSet:
    return dataset.load(split, root=root, download=False, workers=workers)


def test_labels_follow_the_sorted_class_names(make: Make) -> None:
    images = load(make())
    assert images.labels.tolist() == [0, 0, 0, 1, 1]
    assert images.images[:, 0, 0, 0].tolist() == [10, 20, 30, 10, 20]


def test_path_relative_to_the_root(make: Make, folder: Path) -> None:
    images = load(make(path=folder.name), root=folder.parent)
    assert torch.equal(images.images, load(make()).images)


@pytest.mark.parametrize("workers", [0, 2])
def test_limit_decides_between_held_and_streamed(make: Make, workers: int) -> None:
    needed = 5 * 3 * 4 * 4
    held = load(make(in_memory_limit=needed), workers=workers)
    streamed = load(make(in_memory_limit=needed - 1), workers=workers)
    assert type(held) is ImageSet
    assert type(streamed) is StreamedImageSet
    positions = torch.tensor([4, 0, 2])
    for ours, theirs in zip(held.batches(positions, 2), streamed.batches(positions, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_limit_is_for_the_subset(make: Make) -> None:
    assert type(load(make(train_size=2, in_memory_limit=2 * 3 * 4 * 4))) is ImageSet


@pytest.mark.parametrize("upright", [False, True])
def test_centre_is_cut_out_of_the_resized_image(make: Make, folder: Path, upright: bool) -> None:
    """A picture of 8 x 16 halves to 4 x 8; its middle 4 columns are the middle 8 of 16."""
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = (200, 100, 50)
    Image.fromarray(pixels.transpose(1, 0, 2) if upright else pixels).save(folder / "train" / "cat" / "0.png")
    image = load(make(size=2, resize=4)).images[0]
    assert image.flatten(1).T.unique(dim=0).tolist() == [[200, 100, 50]]


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (24, 41), (12, 13), (30, 30)])
def test_parity_with_torchvision(shape: tuple[int, int], make: Make, folder: Path) -> None:
    from torchvision.transforms import v2

    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    picture.save(folder / "train" / "cat" / "0.png")
    expected = v2.Compose([v2.Resize(24), v2.CenterCrop(20), v2.PILToTensor()])(picture)
    assert torch.equal(load(make(size=20, resize=24)).images[0], expected)


def test_one_channel_is_grey(make: Make, folder: Path) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(folder / "train" / "cat" / "0.png")
    images = load(make(channels=1)).images
    assert images.shape[1] == 1
    assert images[0].unique().tolist() == [76]  # 0.299 of 255, the luma of red (ITU-R 601)


def test_hidden_files_are_skipped(make: Make, folder: Path) -> None:
    (folder / "train" / "cat" / ".DS_Store").write_text("")
    (folder / "train" / ".cache").mkdir()
    assert len(load(make())) == 5


def test_missing_folder(make: Make, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=rf"looked for the folder {tmp_path}/not-there\).*dataset\.path=not-there"):
        load(make(path="not-there"), root=tmp_path)


def test_missing_split(make: Make, folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    with pytest.raises(LabError, match=rf"looked for the folder {folder}/test\)"):
        load(make())


def test_number_of_classes(make: Make) -> None:
    with pytest.raises(LabError, match=r"dataset\.classes=3.* has 2 classes: \['cat', 'dog'\]"):
        load(make(classes=3))


def test_splits_with_other_classes(make: Make, folder: Path) -> None:
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(LabError, match=r"\['cat', 'dog'\] under train, but \['cat', 'wolf'\] under test"):
        load(make())


def test_class_without_images(make: Make, folder: Path) -> None:
    (folder / "test" / "cat" / "0.png").unlink()
    with pytest.raises(LabError, match=r"test/cat holds no images"):
        load(make(), "test")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("limit", [0, 10**6])
def test_unreadable_image_is_named(make: Make, folder: Path, limit: int, workers: int) -> None:
    path = folder / "train" / "dog" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(LabError, match=rf"^{path} cannot be read as an image"):
        list(load(make(in_memory_limit=limit), workers=workers).batches(torch.arange(5), 2))


def test_sixteen_bits_are_refused(make: Make, folder: Path) -> None:
    path = folder / "train" / "cat" / "0.png"
    Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)).save(path)
    with pytest.raises(LabError, match=rf"^{path} .*more than 8 bits"):
        load(make(channels=1))
