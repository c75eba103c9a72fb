"""Bit depth: levels worked out by hand, and what must hold for every image."""

import pytest
import torch

from robustbench_lab.transforms.bit_depth import reduce_bit_depth


def reduced(values: list[float], bits: int) -> list[float]:
    return reduce_bit_depth(torch.tensor(values).view(1, 1, 1, -1), bits).flatten().tolist()


def test_known_answers() -> None:
    """1 bit: 0 and 1. 2 bits: thirds, with borders at 1/6, 1/2, 5/6. 3 bits: sevenths; .2 * 7 = 1.4, .8 * 7 = 5.6."""
    assert reduced([0, 0.49, 0.51, 1], 1) == [0, 0, 1, 1]
    assert reduced([0.16, 0.17, 0.49, 0.51, 0.83, 0.84], 2) == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1])
    assert reduced([0.2, 0.8, 1], 3) == pytest.approx([1 / 7, 6 / 7, 1])


def test_half_way_goes_to_the_even_level() -> None:
    """2 bits: 1.5 thirds go to 2; 1 bit: half goes to 0. Of 8-bit images only 127.5 / 255 would be half-way, and it is none."""
    assert reduced([0.5], 1) == [0]
    assert reduced([0.5], 2) == pytest.approx([2 / 3])


@pytest.mark.parametrize("bits", range(1, 9))
def test_levels(bits: int) -> None:
    """2^bits levels with both ends, no pixel further off than half a level, nothing changes twice, and the input stays."""
    x = torch.rand(2, 3, 50, 50, generator=torch.Generator().manual_seed(bits))
    x[0, 0, 0, :2] = torch.tensor([0.0, 1.0])
    before, squeezed = x.clone(), reduce_bit_depth(x, bits)
    assert torch.equal(x, before)
    assert squeezed.shape == x.shape
    assert squeezed.dtype == torch.float32
    assert len(squeezed.unique()) == 2**bits
    assert (squeezed.min(), squeezed.max()) == (0, 1)
    assert (squeezed - x).abs().max() <= 0.5 / (2**bits - 1) + 1e-6
    assert torch.equal(reduce_bit_depth(squeezed, bits), squeezed)


def test_eight_bits_keep_an_8_bit_image() -> None:
    x = torch.arange(256).view(1, 1, 16, 16) / 255
    assert torch.equal(reduce_bit_depth(x, 8), x)
