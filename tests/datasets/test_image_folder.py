"""Image folders: decoding, and what their errors name."""

import io
import os
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from robustbench_lab.datasets import pictures
from robustbench_lab.datasets.base import Dataset, ImageSet, StreamedImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.storage import image_files

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
    with pytest.raises(LabError, match=r"\['dog'\] under train alone and \['wolf'\] under test alone"):
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


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """A PNG of 16 bits a channel, which Pillow does not write in colour."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(kind: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (4, 4)).save(file, kind)
    return file.getvalue()


def jpeg2000_of_ten_bits() -> bytes:
    """An image of 8 bits whose header says more: nothing is decoded before it is refused."""
    content = bytearray(saved("JPEG2000"))
    first = content.index(b"\xff\x4f\xff\x51") + 42
    content[first : first + 9 : 3] = b"\x09\x09\x09"
    return bytes(content)


DEEP: dict[str, Callable[[], bytes]] = {
    "grey.png": lambda: png(np.full((4, 4), 40_000), 0),
    "colour.png": lambda: png(np.full((4, 4, 3), 40_000), 2),
    "grey and transparent.png": lambda: png(np.full((4, 4, 2), 40_000), 4),
    "colour and transparent.png": lambda: png(np.full((4, 4, 4), 40_000), 6),
    "colour.ppm": lambda: b"P6 4 4 65535\n" + b"\x9c\x40" * 48,
    "ten bits.ppm": lambda: b"P3 4 4 1023\n" + b"700 " * 48,
    "grey.pgm": lambda: b"P5 4 4 65535\n" + b"\x9c\x40" * 16,
    "one float.tif": lambda: saved("TIFF", "F"),
    "colour.jp2": jpeg2000_of_ten_bits,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", DEEP)
def test_more_than_eight_bits_are_refused_in_every_format(make: Make, folder: Path, name: str, channels: int) -> None:
    if name.endswith("jp2") and not features.check("jpg_2000"):
        pytest.skip("this Pillow reads no JPEG 2000")
    path = folder / "train" / "cat" / name
    path.write_bytes(DEEP[name]())
    with pytest.raises(LabError, match=rf"^{path} has more than 8 bits a channel"):
        load(make(channels=channels))


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
@pytest.mark.parametrize("deep", [False, True])
def test_avif_of_ten_bits_is_known_by_its_flag(tmp_path: Path, deep: bool) -> None:
    """Pillow writes none, and opens none whose header is at odds with the rest."""
    content = bytearray(saved("AVIF"))
    content[content.index(b"av1C") + 6] |= 0x40 if deep else 0
    (tmp_path / "0.avif").write_bytes(content)
    opened: Any = SimpleNamespace(format="AVIF", mode="RGB", info={}, filename=str(tmp_path / "0.avif"))
    assert pictures.too_deep(opened) == deep


@pytest.mark.parametrize("kind", ["PNG", "PPM", "TIFF", "JPEG2000", "AVIF", "SGI", "BMP", "WEBP", "TGA", "GIF"])
def test_eight_bits_are_read_in_every_format(make: Make, folder: Path, kind: str) -> None:
    if not features.check({"JPEG2000": "jpg_2000", "AVIF": "avif", "WEBP": "webp"}.get(kind, "zlib")):
        pytest.skip(f"this Pillow reads no {kind}")
    (folder / "train" / "cat" / "0.png").write_bytes(saved(kind))
    assert load(make()).images[0].max() == 0


def see_through(folder: Path, mode: str) -> Path:
    """A red picture, half of which one can see through, in one of the ways to say so."""
    path = folder / "train" / "cat" / "0.png"
    red = np.full((4, 4, 4), (200, 0, 0, 255), dtype=np.uint8)
    red[:2, :, 3] = 0
    picture = Image.fromarray(red)
    if mode in ("RGBA", "LA"):
        picture.convert(mode).save(path)
    elif mode == "P":
        indices = Image.fromarray((red[..., 3] == 0).astype(np.uint8), "P")
        indices.putpalette([200, 0, 0, 200, 0, 0])
        indices.save(path, transparency=1)
    else:  # one colour counts as transparent
        rgb = red[..., :3].copy()
        rgb[:2] = (200, 0, 1)
        Image.fromarray(rgb).save(path, transparency=(200, 0, 1))
    return path


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_show_the_stated_background_or_are_refused(make: Make, folder: Path, mode: str) -> None:
    path = see_through(folder, mode)
    with pytest.raises(LabError, match=rf"^{path} has transparent pixels.*dataset\.background"):
        load(make())
    for level in (0, 255):
        image = load(make(background=level)).images[0]
        assert image[:, :2].unique().tolist() == [level]
        assert image[:, 2, 0].tolist() == ([60, 60, 60] if mode == "LA" else [200, 0, 0])


def test_half_transparent_pixels_are_mixed_with_the_background(make: Make, folder: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 0, 0, 51)).save(folder / "train" / "cat" / "0.png")
    assert load(make(background=100)).images[0, :, 0, 0].tolist() == [120, 80, 80]


def test_an_alpha_channel_that_hides_nothing_needs_no_background(make: Make, folder: Path) -> None:
    Image.new("RGBA", (4, 4), (200, 100, 50, 255)).save(folder / "train" / "cat" / "0.png")
    assert load(make()).images[0, :, 0, 0].tolist() == [200, 100, 50]


def test_of_an_animation_the_first_picture_counts(make: Make, folder: Path) -> None:
    first, second = Image.new("L", (4, 4), 40), Image.new("L", (4, 4), 80)
    first.save(folder / "train" / "cat" / "0.gif", save_all=True, append_images=[second])
    assert load(make()).images[0].unique().tolist() == [40]


@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000)])
def test_of_a_strip_only_what_is_cut_out_is_made(make: Make, folder: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.linspace(0, 255, 20_000).round().astype(np.uint8).reshape(size[::-1])
    Image.fromarray(pixels).save(folder / "train" / "cat" / "0.png")
    made = []
    usual = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, to, *rest, **more: made.append(to) or usual(self, to, *rest, **more))
    image = load(make(size=224, resize=256, train_size=2)).images
    assert max(width * height for width, height in made) <= 2**26
    assert image.shape[1:] == (3, 224, 224)


def test_the_two_ways_to_cut_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(2, 60, (50, 2)):
        picture = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        whole = np.array(pictures.centre(picture, 26, 20)).astype(int)
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "WHOLE", 0)
            part = np.array(pictures.centre(picture, 26, 20)).astype(int)
        assert abs(whole - part).max() <= 3


def test_a_name_that_is_no_utf8_is_told_in_words_that_can_be_printed(make: Make, folder: Path) -> None:
    path = os.fsencode(folder / "train" / "cat") + b"/caf\xe9.png"
    with open(path, "wb") as file:
        file.write(b"no image")
    with pytest.raises(LabError, match=r"cat/caf\\xe9\.png cannot be read as an image") as caught:
        load(make())
    str(caught.value).encode()
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value), "a worker hands it on"


def test_class_names_are_compared_as_they_look(make: Make, folder: Path) -> None:
    """Both é and what a Mac makes of it; a folder of that class in one split, of the other form in the other."""
    (folder / "train" / "dog").rename(folder / "train" / "\u00e9t\u00e9")
    (folder / "test" / "dog").rename(folder / "test" / "e\u0301te\u0301")
    for split, labels in (("train", [0, 0, 0, 1, 1]), ("test", [0, 1, 1])):
        assert load(make(), split).labels.tolist() == labels


def test_labels_do_not_depend_on_the_form_of_the_names(make: Make, folder: Path) -> None:
    """In bytes, e\u0301 comes before f and \u00e9 after it."""
    for split, name in (("train", "\u00e9"), ("test", "e\u0301")):
        (folder / split / "cat").rename(folder / split / "f")
        (folder / split / "dog").rename(folder / split / name)
    assert load(make(), "train").labels.bincount().tolist() == [3, 2]
    assert load(make(), "test").labels.bincount().tolist() == [1, 2]


def test_two_classes_that_look_the_same(make: Make, folder: Path) -> None:
    for split in ("train", "test"):
        for name in ("\u00e9", "e\u0301"):
            (folder / split / name).mkdir()
    with pytest.raises(LabError, match=r"two folders for each of \['\u00e9'\].*merge"):
        load(make(classes=4))


def test_of_a_thousand_classes_an_error_names_a_few(make: Make, folder: Path) -> None:
    for number in range(1000):
        for split in ("train", "test"):
            (folder / split / f"class number {number:04}").mkdir()
    with pytest.raises(LabError, match=r"dataset\.classes=10, but .* has 1002 classes: .* and 997 more$") as caught:
        load(make(classes=10))
    assert len(str(caught.value)) < 500
    for number in range(1000):
        (folder / "test" / f"class number {number:04}").rename(folder / "test" / f"number {number:04}")
    with pytest.raises(LabError, match=r"995 more under train alone and .* 995 more under test alone") as caught:
        load(make(classes=1002))
    assert len(str(caught.value)) < 700


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(make: Make, folder: Path) -> None:
    (folder / "train" / "cat").chmod(0)
    try:
        with pytest.raises(LabError, match=rf"{folder}/train/cat cannot be read: Permission denied"):
            load(make())
    finally:
        (folder / "train" / "cat").chmod(0o700)


def test_a_path_that_is_too_long_is_named(make: Make) -> None:
    with pytest.raises(LabError, match=r"is not there"):
        load(make(path="x" * 300))


@pytest.mark.parametrize("make_it", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_named_and_not_waited_for(make: Make, folder: Path, make_it: Callable[[Path], None]) -> None:
    path = folder / "train" / "cat" / "0.png"
    path.unlink()
    make_it(path)
    with pytest.raises(LabError, match=rf"^{path} cannot be read as an image"):
        load(make())
    assert image_files.digest(folder / "train") is None


def test_a_digest_is_of_names_and_contents_and_in_large_sets_of_names_and_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, path = folder / "train", folder / "train" / "cat" / "0.png"
    content = path.read_bytes()
    other = content[:-1] + bytes([content[-1] ^ 1])

    def changes() -> list[bool]:
        before = image_files.digest(split)
        told = []
        path.write_bytes(other)
        told.append(image_files.digest(split) != before)
        path.write_bytes(content + b" ")
        told.append(image_files.digest(split) != before)
        path.write_bytes(content)
        os.utime(path, (1, 1))
        told.append(image_files.digest(split) != before)
        path.rename(path.with_name("9.png"))
        told.append(image_files.digest(split) != before)
        path.with_name("9.png").rename(path)
        (split / "cat" / ".hidden").write_bytes(b"")
        told.append(image_files.digest(split) != before)
        return told

    assert changes() == [True, True, False, True, False]
    monkeypatch.setattr(image_files, "BY_CONTENT", 10)
    assert changes() == [False, True, False, True, False]


def test_a_digest_does_not_depend_on_the_form_of_names(folder: Path) -> None:
    (folder / "train" / "cat" / "0.png").rename(folder / "train" / "cat" / "\u00e9.png")
    before = image_files.digest(folder / "train")
    (folder / "train" / "cat" / "\u00e9.png").rename(folder / "train" / "cat" / "e\u0301.png")
    assert image_files.digest(folder / "train") == before
