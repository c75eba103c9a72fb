"""Quilting: images of training images' patches, as a loop over patches makes them."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet, StreamedImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.fronts import quilting
from robustbench_lab.fronts.quilting import Quilting
from robustbench_lab.training.checkpoints import load_weights
from robustbench_lab.transforms.quilting import patches, starts

SCRIPTS = Path(__file__).parents[2] / "scripts"
KNOBS: dict[str, Any] = {
    "patches": 300, "images": 10, "size": 5, "overlap": 2, "neighbours": 1, "border": "covered", "seam": "minimum_error", "search": "exact",
}  # fmt: skip
WORDS = ["defense=preprocessed", "defense.fronts=[quilting]", "backbone=small_resnet", "defense.fronts.quilting.patches=300"]


def pictures(count: int, channels: int, side: int, high: int = 256, seed: int = 0) -> ImageSet:
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(high, (count, channels, side, side), generator=rng, dtype=torch.uint8)
    return ImageSet(images, torch.zeros(count).long(), torch.arange(count))


def fitted(data: ImageSet, seed: int = 0, **knobs: Any) -> Quilting:
    front = Quilting(**(KNOBS | knobs))
    front.fit(data, torch.Generator().manual_seed(seed))
    return front


def shown(images: ImageSet) -> Tensor:
    return next(images.batches(torch.arange(len(images)), len(images)))[0]


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    return importlib.import_module("plain_quilting")


@pytest.mark.parametrize(
    ("side", "border", "expected"),
    [
        (32, "covered", [0, 3, 6, 9, 12, 15, 18, 21, 24, 27]),
        (32, "as_released", [0, 3, 6, 9, 12, 15, 18, 21, 24]),
        (28, "covered", [0, 3, 6, 9, 12, 15, 18, 21, 23]),
        (28, "as_released", [0, 3, 6, 9, 12, 15, 18, 21]),
        (5, "covered", [0]),
        (6, "as_released", [0]),
    ],
)
def test_where_patches_begin(side: int, border: Any, expected: list[int]) -> None:
    assert starts(side, 5, 2, border) == expected


@pytest.mark.parametrize("cut", ["minimum_error", "as_released"])
@pytest.mark.parametrize("side", [11, 12])
def test_images_whose_patches_are_all_in_the_bank_come_back_bit_for_bit(cut: str, side: int) -> None:
    images = pictures(3, 3, side)
    front = fitted(images, patches=3 * (side - 4) ** 2, seam=cut)
    x = shown(images)
    assert torch.equal(front(x), x)
    half = x.double().requires_grad_()
    assert front(half).dtype == torch.float64
    assert torch.equal(torch.autograd.grad(front(half).sum(), half)[0], torch.ones_like(half))


def test_one_patch_tiles_every_image_where_only_the_last_one_counts() -> None:
    """As released the overlap is new: pixel p shows the patch's entry p - s, s the last start at or before it."""
    front = fitted(pictures(1, 1, 5), patches=1, images=1, seam="as_released")
    patch = front.bank.view(5, 5)
    place = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 3, 4])  # of 11 pixels; patches begin at 0, 3 and 6
    expected = patch[place][:, place].float() / 255
    assert torch.equal(front(torch.rand(2, 1, 11, 11)), expected.expand(2, 1, 11, 11))


def test_one_patch_tiles_every_image_with_the_first_line_of_each_overlap_old() -> None:
    front = fitted(pictures(1, 1, 5), patches=1, images=1)
    patch = front.bank.view(5, 5).float() / 255
    image = front(torch.rand(1, 1, 11, 11))[0, 0]
    for row, column in ((0, 0), (0, 3), (3, 0), (3, 3), (6, 6)):
        assert torch.equal(image[row + 2 : row + 4, column + 2 : column + 4], patch[2:4, 2:4])  # between the overlaps and in the first line


def test_the_script_that_times_it_finds_the_same_images(plain: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plain.main(["--images", "1", "--patches", "300", "--size", "12", "--repeats", "1"])
    out = capsys.readouterr().out
    assert "plain loop and ours, exact: the same images" in out
    assert "OTHER" not in out


@pytest.mark.parametrize("border", ["covered", "as_released"])
@pytest.mark.parametrize("cut", ["minimum_error", "as_released"])
@pytest.mark.parametrize(("channels", "side", "high"), [(3, 13, 256), (1, 14, 2)])
def test_it_is_the_plain_loop_s(plain: Any, border: str, cut: str, channels: int, side: int, high: int) -> None:
    """The nearest by numpy, the seam by scipy's max-flow; black and near-black images have many equal patches and costs."""
    front = fitted(pictures(10, channels, side, high), border=border, seam=cut)
    images = pictures(4, channels, side, high, seed=1)
    expected = plain.plain_quilting(images.images.long().numpy(), front, plain.numpy_search(front.bank.numpy()))
    assert torch.equal(front(shown(images)), torch.from_numpy(expected).float() / 255)


def test_the_middle_of_each_patch_is_that_of_the_nearest_in_the_bank() -> None:
    front, images = fitted(pictures(10, 3, 14)), pictures(2, 3, 14, seed=1)
    rows = starts(14, 5, 2, "covered")
    wanted, found = (patches(part, rows, rows, 5).flatten(0, 2).flatten(1) for part in (255 * shown(images), 255 * front(shown(images))))
    nearest = torch.cdist(wanted.double(), front.bank.double()).argmin(dim=1)
    middle = torch.zeros(3, 5, 5, dtype=torch.bool)
    middle[:, 2, 2] = True  # beyond what came before, and before what comes after
    torch.testing.assert_close(found[:, middle.flatten()], front.bank[nearest][:, middle.flatten()].float())


def test_as_released_the_last_rows_and_columns_are_black() -> None:
    images = pictures(4, 3, 32)
    images.images.clamp_(min=1)
    image = fitted(images, border="as_released")(shown(images))
    assert not image[:, :, 29:].any()
    assert not image[:, :, :, 29:].any()
    assert image[:, :, :29, :29].all()
    assert fitted(images)(shown(images)).all()


def test_the_bank_is_of_different_places_of_the_first_images() -> None:
    images = pictures(12, 2, 9)
    known = {tuple(patch.flatten().tolist()): number for number, patch in enumerate(images.images.unfold(2, 5, 1).unfold(3, 5, 1)
             .permute(0, 2, 3, 1, 4, 5).flatten(0, 2))}  # fmt: skip
    for count in (20, 200):  # few of the 250 places, and most
        banks = [[known[tuple(row)] for row in fitted(images, seed, patches=count).bank.tolist()] for seed in (0, 0, 1)]
        assert [len(set(bank)) for bank in banks] == [count] * 3
        assert max(map(max, banks)) < 10 * 25
        assert banks[0] == banks[1] != banks[2]


def test_it_is_the_same_bank_however_the_images_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quilting, "AT_ONCE", 3)
    images = pictures(12, 2, 9)
    floats = ImageSet(images.images.float() / 255, images.labels, images.ids)
    streamed = StreamedImageSet(lambda image: images.images[image], images.shape, images.labels, images.ids, workers=0)
    banks = [fitted(part, patches=200).bank for part in (images, floats, streamed)]
    assert torch.equal(banks[0], banks[1])
    assert torch.equal(banks[0], banks[2])


def test_more_neighbours_are_drawn_from(run_objects: Callable[..., Any]) -> None:
    """All of a bank of two patches, a dark and a light one: each place shows either."""
    images = ImageSet(torch.tensor([10, 200], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 5, 5).contiguous(), torch.zeros(2).long(),
                      torch.arange(2))  # fmt: skip
    front = fitted(images, patches=2, neighbours=2, seam="as_released")
    torch.manual_seed(0)
    image = 255 * front(torch.zeros(50, 1, 5, 5))
    assert image.flatten(1).unique(dim=1).shape == (50, 1)
    assert image[:, 0, 0, 0].round().unique().tolist() == [10, 200]
    assert run_objects(*WORDS, "defense.fronts.quilting.neighbours=3", "defense.fronts.quilting._stochastic_=true")[1].stochastic
    assert not run_objects(*WORDS)[1].stochastic


def test_it_is_loaded_with_the_weights(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    model, other = (run_objects(*WORDS)[1].eval() for _ in range(2))
    x = shown(digits[1])[:5]
    with pytest.raises(LabError, match=r"^quilting: expected a bank of patches, which training chooses from its images, got none"):
        model(x)
    model.fronts[0].fit(digits[0], torch.Generator().manual_seed(0))
    load_weights(other, model.state_dict(), "weights")
    assert other.fronts[0].bank.dtype == torch.uint8
    assert torch.equal(other.fronts(x), model.fronts(x))
    model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(other.fronts(x), model.fronts(x))


def test_the_index_is_of_the_bank_that_is_there() -> None:
    pytest.importorskip("faiss")
    images = pictures(10, 1, 12)
    front, other = (fitted(images, seed, search="faiss") for seed in (0, 1))
    x = shown(images)
    before, theirs = front(x), other(x)
    assert not torch.equal(before, theirs)
    front.load_state_dict(other.state_dict())
    assert torch.equal(front(x), theirs)
    front.fit(images, torch.Generator().manual_seed(0))
    assert torch.equal(front(x), before)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("size=9", r"size: expected a whole number >= 1 and <= 8, got 9"),
        ("overlap=5", r"overlap: expected less than size=5, got 5"),
        ("overlap=0", r"overlap: expected a whole number >= 1, got 0"),
        ("patches=0", r"patches: expected a whole number >= 1, got 0"),
        ("images=0", r"images: expected a whole number >= 1, got 0"),
        ("neighbours=301", r"neighbours: expected at most patches=300, got 301"),
        ("border=open", r"border: expected covered or as_released, got 'open'"),
        ("seam=none", r"seam: expected minimum_error or as_released, got 'none'"),
        ("search=fast", r"search: expected exact or faiss, got 'fast'"),
    ],
)
def test_what_does_not_fit_is_named(word: str, said: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense.fronts.quilting.{said}$"):
        run_objects(*WORDS, f"defense.fronts.quilting.{word}")


@pytest.mark.parametrize(
    ("knobs", "shape", "said"),
    [
        ({}, (3, 4, 4), r"size: expected at most 4 with border=covered and images of \[3, 4, 4\], got 5"),
        ({"border": "as_released"}, (3, 5, 5), r"size: expected at most 4 with border=as_released"),
        ({"search": "faiss", "size": 3}, (1, 8, 8), r"search: expected exact for patches of 9 values, fewer than 16"),
        ({"search": "faiss", "patches": 255}, (1, 8, 8), r"patches: expected 256 or more for search=faiss, got 255"),
    ],
)
def test_images_that_do_not_fit_are_named(knobs: dict[str, Any], shape: tuple[int, ...], said: str) -> None:
    if "search" in knobs:
        pytest.importorskip("faiss")
    with pytest.raises(LabError, match=f"^{said}"):
        Quilting(**(KNOBS | knobs)).check(shape)


def test_more_patches_than_places_are_refused(digits: tuple[ImageSet, ImageSet]) -> None:
    said = r"^defense.fronts.quilting.patches: expected at most 160, the places for a patch of 5 x 5 in 10 images of \[1, 8, 8\], got 300$"
    with pytest.raises(LabError, match=said):
        fitted(digits[0])


def test_without_faiss_it_is_refused_before_any_training(monkeypatch: pytest.MonkeyPatch, run_objects: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(LabError, match=r"^defense.fronts.quilting.search: expected exact where faiss is not installed"):
        run_objects(*WORDS, "defense.fronts.quilting.search=faiss")
