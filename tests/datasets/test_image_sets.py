"""Sets of images: in memory and streamed, one interface."""

import multiprocessing
from functools import partial

import pytest
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet, StreamedImageSet
from robustbench_lab.errors import LabError

SHAPE = (2, 3, 3)
PIXELS = torch.arange(10 * 18).reshape(10, *SHAPE).to(torch.uint8)
LABELS = torch.arange(10) % 3
workers = pytest.mark.parametrize("workers", [0, 2])


def look_up(pixels: Tensor, index: int) -> Tensor:
    return pixels[index]


def refuse(index: int) -> Tensor:
    raise LabError(f"image {index} is broken")


def image_sets(workers: int) -> tuple[ImageSet, StreamedImageSet]:
    ids = torch.arange(10)
    streamed = StreamedImageSet(partial(look_up, PIXELS), SHAPE, LABELS, ids, workers=workers)
    return ImageSet(PIXELS, LABELS, ids), streamed


@workers
@pytest.mark.parametrize("positions", [[3, 0, 9, 9, 5], list(range(10)), [4], []])
def test_streamed_and_in_memory_give_the_same_batches(workers: int, positions: list[int]) -> None:
    state = torch.get_rng_state()
    held, streamed = (list(one.batches(torch.tensor(positions).long(), 3)) for one in image_sets(workers))
    assert len(held) == len(streamed) == -(-len(positions) // 3)
    for ours, theirs in zip(held, streamed, strict=True):
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_pixels_are_bytes_over_255() -> None:
    (x, y, ids), *_ = image_sets(0)[0].batches(torch.tensor([7, 2]), 2)
    assert x[0, 0, 0, 0].item() == pytest.approx(126 / 255)
    assert x[1, 1, 2, 2].item() == pytest.approx(53 / 255)
    assert (y.tolist(), ids.tolist()) == ([1, 2], [7, 2])


def test_subset_of_a_subset_keeps_the_ids_of_the_full_split() -> None:
    for images in image_sets(0):
        part = images.subset(torch.tensor([8, 6, 4, 2])).subset(torch.tensor([3, 1]))
        assert type(part) is type(images)
        assert part.ids.tolist() == [2, 6]
        assert part.labels.tolist() == [2, 0]
        ((x, _, ids),) = part.batches(torch.tensor([1, 0]), 5)
        assert ids.tolist() == [6, 2]
        assert torch.equal(x, PIXELS[[6, 2]] / 255)


@workers
def test_streamed_becomes_held(workers: int) -> None:
    held = image_sets(workers)[1].subset(torch.tensor([5, 1])).in_memory()
    assert torch.equal(held.images, PIXELS[[5, 1]])
    assert held.ids.tolist() == [5, 1]


def test_float_images_pass_through() -> None:
    pixels = PIXELS / 255
    ((x, _, _),) = ImageSet(pixels, LABELS, torch.arange(10)).batches(torch.arange(10), 10)
    assert torch.equal(x, pixels)


@workers
def test_error_while_streaming_reads_as_it_was_raised(workers: int) -> None:
    images = StreamedImageSet(refuse, SHAPE, LABELS, torch.arange(10), workers=workers)
    with pytest.raises(LabError, match=r"^image 0 is broken$"):
        next(images.batches(torch.arange(10), 4))


def test_a_worker_of_joblib_streams_as_any_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, what starts processes unasked is joblib's own way, which wants more than a DataLoader's workers have."""
    from joblib.externals.loky.backend.context import get_context

    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", get_context("loky"))  # type: ignore[attr-defined]
    assert multiprocessing.get_start_method() == "loky"
    x, _, _ = next(image_sets(2)[1].batches(torch.arange(10), 10))
    assert torch.equal(x, PIXELS / 255)


def test_a_process_that_may_start_none_decodes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the workers of a multiprocessing.Pool."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    x, _, _ = next(image_sets(2)[1].batches(torch.arange(10), 10))
    assert torch.equal(x, PIXELS / 255)


def test_streamed_image_of_another_shape() -> None:
    images = StreamedImageSet(partial(look_up, PIXELS), (2, 3, 4), LABELS, torch.arange(10), workers=0)
    with pytest.raises(LabError, match=r"image 0 .*\[2, 3, 3\].*\[2, 3, 4\]"):
        next(images.batches(torch.arange(10), 4))


@pytest.mark.parametrize(("value", "found"), [(-0.01, "-0.01 to 0.5"), (1.5, "0.5 to 1.5"), (float("nan"), "nan")])
def test_pixels_outside_the_range(value: float, found: str) -> None:
    images = torch.full((1, 1, 1, 2), 0.5)
    images[0, 0, 0, 0] = value
    with pytest.raises(LabError, match=rf"images outside \[0, 1\].*{found}"):
        ImageSet(images, torch.zeros(1).long(), torch.zeros(1).long())


@pytest.mark.parametrize(
    ("images", "labels", "ids"),
    [
        (PIXELS.double() / 255, LABELS, LABELS),
        (PIXELS[0], LABELS, LABELS),
        (PIXELS, LABELS[:9], LABELS),
        (PIXELS, LABELS.int(), LABELS),
        (PIXELS, LABELS, LABELS[:, None]),
    ],
)
def test_parts_that_do_not_fit_together(images: Tensor, labels: Tensor, ids: Tensor) -> None:
    with pytest.raises(LabError, match=r"^(images|labels|ids) must be"):
        ImageSet(images, labels, ids)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_come_on_the_device_of_the_set() -> None:
    for images in image_sets(0):
        moved = images.to("cuda")
        assert moved.device.type == "cuda"
        for x, y, ids in moved.subset(torch.tensor([3, 1, 2])).batches(torch.tensor([2, 0, 1]), 2):
            assert x.is_cuda
            assert y.is_cuda
            assert ids.is_cuda
            assert torch.equal(x.cpu(), PIXELS[ids.cpu()] / 255)
