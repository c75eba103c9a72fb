"""Random numbers belong to images: the same for any batch, order and process; pinned, so that a change of the stream is noticed."""

import json
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from robustbench_lab.randomness import ImageRandom, stable_hash

N = 20_000


def streams(ids: Tensor | list[int], *tags: int | str) -> ImageRandom:
    return ImageRandom.of(torch.as_tensor(ids), *(tags or (0, "attack")))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]).double())[0, 1])


def kolmogorov_smirnov(values: Tensor, cdf: Tensor) -> float:
    """sqrt(n) times the largest distance between the empirical and the given distribution function at the sorted values."""
    n = values.numel()
    steps = torch.arange(n + 1).double() / n
    return math.sqrt(n) * float(torch.maximum((steps[1:] - cdf).abs(), (cdf - steps[:-1]).abs()).max())


# Known answers


def test_the_generator_is_splitmix64() -> None:
    """The first outputs for the seed 1234567, as the public-domain reference code (Vigna 2015) gives them."""
    bits = ImageRandom(torch.tensor([1234567])).bits(3)[0].tolist()
    assert [value % 2**64 for value in bits] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_the_stream_is_pinned() -> None:
    """A change here changes every result of the project: only with a reason and a new schema."""
    rng = streams([0, 1, 12345])
    assert rng.keys.tolist() == [6261033287974993655, 33061549823260380, 4675560239674503225]
    assert rng.fold("restart", 0).keys.tolist() == [1342887011070533551, -273251364224570340, 7782194221445271675]
    assert rng.at(torch.tensor([0, 1, 2])).keys.tolist() == [
        -7788529635433060126,
        2170810283974970616,
        -1924247286085960516,
    ]
    assert rng.uniform(2).tolist() == [
        [0.3776090145111084, 0.7660620212554932],
        [0.5867528915405273, 0.2918611764907837],
        [0.6431832313537598, 0.1377413272857666],
    ]
    assert rng.integers(10, 4).tolist() == [[5, 4, 7, 0], [4, 6, 9, 6], [9, 9, 6, 6]]
    torch.testing.assert_close(
        rng.normal(2),
        torch.tensor([[0.32943717, 0.66585207], [0.61501634, 1.54971457], [-0.64113837, 0.99188125]]),
        atol=2e-6,
        rtol=2e-6,
    )
    assert stable_hash(0, "epoch", 3) == -8830723469091380285


def test_uniform_and_integers_follow_from_the_bits() -> None:
    rng = streams([3, 4])
    bits = [[value % 2**64 for value in row] for row in rng.bits(5).tolist()]
    assert rng.uniform(5).tolist() == [[(value >> 40) / 2**24 for value in row] for row in bits]
    assert rng.integers(7, 5).tolist() == [[(value >> 33) % 7 for value in row] for row in bits]
    by_hand = [[math.sqrt(-2 * math.log(((v >> 32) + 0.5) / 2**32)) * math.cos(2 * math.pi * (v % 2**32) / 2**32)
                for v in row] for row in bits]  # fmt: skip
    torch.testing.assert_close(rng.normal(5), torch.tensor(by_hand), atol=1e-6, rtol=1e-5)


def test_tags_do_not_run_together() -> None:
    tags: list[tuple[int | str, ...]] = [
        ("a", "b"),
        ("ab",),
        ("a", "", "b"),
        ("b", "a"),
        (1,),
        ("1",),
        (1, 0),
        (10,),
        (-1,),
        (),
    ]
    assert len({stable_hash(*tag) for tag in tags}) == len(tags)
    assert all(-(2**63) <= stable_hash(seed) < 2**63 for seed in range(100))


# The same image gets the same numbers


def test_independent_of_batch_and_order() -> None:
    ids = torch.tensor([7, 0, 123456789, 3, 2**40])
    whole = streams(ids)
    draws = [whole.bits(2, 3), whole.uniform(2, 3), whole.normal(2, 3), whole.integers(9, 2, 3)]
    draws += [whole.fold("a").bits(4), whole.at(ids).bits(4)]
    order = torch.tensor([4, 2, 0, 3, 1])
    for chosen in [torch.tensor([i]) for i in range(5)] + [order, order[:2]]:
        part = streams(ids[chosen])
        again = [part.bits(2, 3), part.uniform(2, 3), part.normal(2, 3), part.integers(9, 2, 3)]
        again += [part.fold("a").bits(4), part.at(ids[chosen]).bits(4)]
        for all_of_them, some in zip(draws, again, strict=True):
            assert torch.equal(all_of_them[chosen], some)
        assert torch.equal(whole[chosen].bits(3), part.bits(3))
        assert len(part) == len(chosen)


def test_drawing_advances_nothing() -> None:
    rng, state = streams([1, 2]), torch.get_rng_state()
    assert torch.equal(rng.normal(3), rng.normal(3))
    assert torch.equal(rng.uniform(2, 3), rng.uniform(6).view(2, 2, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_same_in_another_process() -> None:
    code = (
        "import json, torch; from robustbench_lab.randomness import ImageRandom;"
        "rng = ImageRandom.of(torch.tensor([5, 6]), 3, 'train', 1).fold('crop').at(torch.tensor([0, 2]));"
        "print(json.dumps([rng.bits(3).tolist(), rng.normal(3).tolist()]))"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    rng = streams([5, 6], 3, "train", 1).fold("crop").at(torch.tensor([0, 2]))
    assert json.loads(there) == [rng.bits(3).tolist(), rng.normal(3).tolist()]


# Different streams differ


def test_different_names_are_different_streams() -> None:
    ids = torch.arange(50)
    base = streams(ids)
    others = {
        "seed": streams(ids, 1, "attack"), "purpose": streams(ids, 0, "train"), "more tags": streams(ids, 0, "attack", 0),
        "fold": base.fold("attack"), "fold number": base.fold(0), "other fold": base.fold(1), "folded twice": base.fold(0).fold(0),
        "at 0": base.at(torch.zeros_like(ids)), "at 1": base.at(torch.ones_like(ids)), "at id": base.at(ids),
    }  # fmt: skip
    keys = torch.cat([base.keys, *(other.keys for name, other in others.items() if name != "at id")])
    assert len(keys.unique()) == len(keys)
    for name, other in others.items():
        assert abs(correlation(base.uniform(200), other.uniform(200))) < 0.04, name  # 4 standard deviations
        assert not (base.keys == other.keys).any(), name


def test_neighbours_are_not_correlated() -> None:
    uniform, normal = streams(torch.arange(400)).uniform(100), streams(torch.arange(400)).normal(100)
    for values in (uniform, normal):
        for lag in (1, 2, 10):
            assert abs(correlation(values[:-lag], values[lag:])) < 0.02  # images
            assert abs(correlation(values[:, :-lag], values[:, lag:])) < 0.02  # positions
        assert abs(float(values.double().mean(1).std()) - float(values.double().std()) / 10) < 0.008  # no image is special
    apart = [
        streams(torch.arange(400), 0, "train", epoch).at(torch.full((400,), copy)).uniform(100) for epoch, copy in ((0, 0), (1, 0), (0, 1))
    ]
    assert all(abs(correlation(apart[0], other)) < 0.02 for other in apart[1:])


# Distributions


def test_uniform() -> None:
    values = streams(torch.arange(N // 100)).uniform(100).flatten()
    assert values.dtype == torch.float32
    assert 0 <= values.min() < 0.001
    assert 0.999 < values.max() < 1
    assert values.mean() == pytest.approx(0.5, abs=4 * 12**-0.5 / N**0.5)
    assert values.var() == pytest.approx(1 / 12, rel=0.03)
    ordered = values.double().sort().values
    assert kolmogorov_smirnov(ordered, ordered) < 1.95  # exceeded by chance once in a thousand
    wide = streams([0, 1]).uniform(5000, low=-3.0, high=2.0)
    assert -3 <= wide.min() < -2.99
    assert 1.99 < wide.max() < 2
    torch.testing.assert_close(wide, streams([0, 1]).uniform(5000) * 5 - 3)


def test_normal() -> None:
    values = streams(torch.arange(N // 100)).normal(100).flatten().double()
    assert values.mean() == pytest.approx(0, abs=4 / N**0.5)
    assert values.std() == pytest.approx(1, abs=4 / (2 * N) ** 0.5)
    assert (values**3).mean() == pytest.approx(0, abs=4 * (15 / N) ** 0.5)
    assert (values**4).mean() == pytest.approx(3, abs=4 * (96 / N) ** 0.5)
    ordered = values.sort().values
    assert kolmogorov_smirnov(ordered, torch.special.ndtr(ordered)) < 1.95
    assert streams(torch.arange(N)).normal(100).abs().max() < 6.77
    assert streams([0]).normal(2, 3).dtype == torch.float32


@pytest.mark.parametrize("high", [1, 2, 3, 10, 1000])
def test_integers(high: int) -> None:
    values = streams(torch.arange(N // 100)).integers(high, 100).flatten()
    assert values.dtype == torch.int64
    assert values.min() >= 0
    assert values.max() < high
    counts = torch.bincount(values, minlength=high).double()
    chi_squared = float(((counts - N / high) ** 2 / (N / high)).sum())
    assert chi_squared <= high - 1 + 4 * math.sqrt(2 * (high - 1)) + 4


def test_shapes() -> None:
    assert streams([0, 1]).bits(3, 4, 5).shape == (2, 3, 4, 5)
    assert streams([0, 1]).normal(1).shape == (2, 1)
    assert streams(torch.zeros(0, dtype=torch.int64)).uniform(3).shape == (0, 3)
