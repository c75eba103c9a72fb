"""Distances to the nearest training image: against float64, pixel by pixel, at any tile size and within the memory that it may take."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustbench_lab.errors import LabError
from robustbench_lab.metrics.nearest_neighbour import MEMORY, distance_to_training_set, distance_to_training_set_as_published

SIZES = (1, 5_000, 20_000, MEMORY)  # bytes; tiles of 1, 12 and 35 (for 49 pixels), and of everything at once


def random(n: int, size: int = 7, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, size, size, generator=torch.Generator().manual_seed(seed))


def by_pixels(x: Tensor, train: Tensor) -> Tensor:
    rows, others = x.flatten(1).double(), train.flatten(1).double()
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").amin(dim=1)


@pytest.mark.parametrize("memory", SIZES)
def test_random_images(memory: int) -> None:
    x, train = random(20), random(60, seed=1)
    torch.testing.assert_close(distance_to_training_set(x, train, memory), by_pixels(x, train), rtol=1e-12, atol=0)


@pytest.mark.parametrize("memory", SIZES)
@pytest.mark.parametrize("noise", [0.0, 1e-6, 1e-4, 1e-2])
def test_near_duplicates(noise: float, memory: int) -> None:
    """Where float32's |x|^2 + |t|^2 - 2 x't is all rounding: each image has several neighbours about as near as the nearest."""
    train = random(30, seed=1)
    train = torch.cat([train + noise * random(30, seed=seed) for seed in (2, 3, 4)]).clamp(0, 1)
    x = (train[::3] + noise * random(30, seed=5)).clamp(0, 1)
    expected = by_pixels(x, train)
    torch.testing.assert_close(distance_to_training_set(x, train, memory), expected, rtol=1e-12, atol=0)
    if 0 < noise < 1e-3:  # the shortcut alone would not do
        rows, others = x.flatten(1), train.flatten(1)
        naive = (rows.square().sum(1)[:, None] + others.square().sum(1) - 2 * rows @ others.T).amin(dim=1).clamp(min=0).sqrt()
        assert (naive - expected).abs().max() > 0.01 * expected.max()


def test_one_nearest_among_bright_images() -> None:
    """Long vectors, small differences: the last of 3,000 is nearer than the others by less than float32 resolves in |t|^2."""
    x = torch.full((1, 3, 32, 32), 0.9)
    train = (x - 1e-3).repeat(3_000, 1, 1, 1)
    train[-1] += 1e-5
    assert distance_to_training_set(x, train).item() == pytest.approx(by_pixels(x, train[-1:]).item(), rel=1e-12)


def test_bytes_are_read_as_images() -> None:
    train, x = (255 * random(40, seed=1)).round().to(torch.uint8), random(9)
    expected = distance_to_training_set(x, train.float() / 255)
    torch.testing.assert_close(distance_to_training_set(x, train), expected, rtol=1e-12, atol=0)
    assert distance_to_training_set(train[3:6], train).tolist() == [0, 0, 0]


class Largest(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in known:  # no views
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return out


@pytest.mark.parametrize(
    ("x", "train", "memory"),
    [
        (random(300), random(1_500, seed=1), 50_000),
        (random(300), random(1, seed=1).expand(1_500, 1, 7, 7).clone(), 50_000),  # all as near as the nearest
        (random(20, size=28), random(60, size=28, seed=1), 50_000),  # an image in float64 takes 6,272
    ],
    ids=["random", "all alike", "large"],
)
def test_memory(x: Tensor, train: Tensor, memory: int) -> None:
    """No tensor is larger than asked for, and none is much smaller; without a limit it would be several times as large."""
    expected = distance_to_training_set(x, train)
    with Largest() as largest:
        found = distance_to_training_set(x, train, memory)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert memory / 5 < largest.bytes <= memory
    with Largest() as largest:
        distance_to_training_set(x, train)
    assert largest.bytes > 3 * memory


def test_as_published() -> None:
    """|x| = .5 and 1; the nearest of (0, 0), (1, 1) lie at (.3, .5): .34, and at (.6, .9): .17, squared; divided by |x|: .68, .17."""
    x = torch.tensor([[0.3, 0.4], [0.6, 0.8]]).view(2, 1, 1, 2)
    x_adv = x + torch.tensor([0.0, 0.1])
    train = torch.tensor([[0.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)
    both, second = torch.tensor([True, True]), torch.tensor([False, True])
    assert distance_to_training_set(x_adv, train).square().tolist() == pytest.approx([0.34, 0.17], rel=1e-6)
    assert distance_to_training_set_as_published(x, x_adv, train, both).tolist() == pytest.approx([0.68, 0.17], rel=1e-6)
    assert distance_to_training_set_as_published(x, x_adv, train, second).tolist() == pytest.approx([0.17], rel=1e-6)


@pytest.mark.parametrize(
    ("x_adv", "train", "message"),
    [
        (random(0), random(3), r"^x_adv: expected images \[N, C, H, W\], at least one, got \[0, 1, 7, 7\]"),
        (random(3), random(0), "^train: expected images .* at least one"),
        (random(3), random(3, size=8), r"^train: expected images of shape \[1, 7, 7\], got \[1, 8, 8\]"),
        (random(3) * torch.nan, random(3), "^x_adv: expected finite pixels"),
        (random(3), random(3) * torch.inf, "^train: expected finite pixels"),
    ],
)
def test_what_is_missing_is_named(x_adv: Tensor, train: Tensor, message: str) -> None:
    with pytest.raises(LabError, match=message):
        distance_to_training_set(x_adv, train)


def test_without_flips_there_is_no_published_metric() -> None:
    with pytest.raises(LabError, match=r"^flipped: expected an image whose prediction the attack changed"):
        distance_to_training_set_as_published(random(3), random(3), random(3), torch.zeros(3, dtype=torch.bool))
