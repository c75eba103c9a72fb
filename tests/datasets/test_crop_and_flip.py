"""Augmentation against a plain loop over the images."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robustbench_lab.transforms.augmentation import random_crop, random_flip


def crop_one_by_one(x: Tensor, padding: int, offsets: Tensor) -> Tensor:
    height, width = x.shape[-2:]
    out = torch.zeros_like(x)
    for image in range(len(x)):
        for row in range(height):
            for column in range(width):
                r = row + int(offsets[image, 0]) - padding
                c = column + int(offsets[image, 1]) - padding
                if 0 <= r < height and 0 <= c < width:
                    out[image, :, row, column] = x[image, :, r, c]
    return out


@given(data=st.data())
def test_crop_is_the_plain_loop(data: st.DataObject) -> None:
    batch, channels, padding = (data.draw(st.integers(low, high)) for low, high in ((1, 4), (1, 3), (0, 4)))
    height, width = (data.draw(st.integers(1, 5)) for _ in range(2))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    x = torch.rand(batch, channels, height, width, generator=generator)
    offsets = torch.randint(0, 2 * padding + 1, (batch, 2), generator=generator)
    cropped = random_crop(x, padding, offsets)
    assert torch.equal(cropped, crop_one_by_one(x, padding, offsets))
    assert cropped.is_contiguous()


def test_crop_in_the_middle_is_the_image() -> None:
    x = torch.rand(3, 2, 5, 4)
    assert torch.equal(random_crop(x, 2, torch.full((3, 2), 2)), x)
    assert torch.equal(random_crop(x, 0, torch.zeros(3, 2, dtype=torch.int64)), x)


@pytest.mark.parametrize(
    ("offset", "expected"),
    [([0, 0], [[0, 0], [0, 1]]), ([2, 2], [[4, 0], [0, 0]]), ([0, 1], [[0, 0], [1, 2]]), ([1, 2], [[2, 0], [4, 0]])],
)
def test_crop_moves_rows_then_columns(offset: list[int], expected: list[list[int]]) -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    assert random_crop(x, 1, torch.tensor([offset])).tolist() == [[expected]]


def test_flip_mirrors_left_to_right_where_it_says() -> None:
    x = torch.rand(4, 3, 5, 6)
    flips = torch.tensor([True, False, False, True])
    flipped = random_flip(x, flips)
    for image in range(4):
        for column in range(6):
            source = 5 - column if flips[image] else column
            assert torch.equal(flipped[image, :, :, column], x[image, :, :, source])
    assert torch.equal(random_flip(flipped, flips), x)


def test_augmentation_leaves_its_input_alone() -> None:
    x = torch.rand(2, 1, 3, 3)
    before = x.clone()
    random_flip(random_crop(x, 1, torch.ones(2, 2, dtype=torch.int64)), torch.tensor([True, False])).zero_()
    assert torch.equal(x, before)
