"""Densities of images: each pixel's mixture depends on the pixels before it alone, is the discretised logistic mixture of the paper, and
sums to one; purification with memory is that of a whole pass for each pixel. What is chosen is compared in double precision: two levels may
be equally likely up to the last bits of single."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy.special import logsumexp, softmax
from scipy.stats import logistic
from torch import Tensor, nn

from robustbench_lab.backbones.density import Density, Mixture
from robustbench_lab.backbones.pixelcnn import PixelCNNPlusPlus, SmallPixelCNN
from robustbench_lab.errors import LabError

Make = Callable[..., Density]


def plus_plus(channels: int = 3, size: int = 6, scales: int = 2, levels: int = 256) -> Density:
    return PixelCNNPlusPlus(channels, size, scales, blocks=1, filters=8, dropout=0.5, mixtures=3, levels=levels)


def three_scales(channels: int = 3, size: int = 6, levels: int = 256) -> Density:
    """6 is no multiple of 4: zeros follow the image."""
    return plus_plus(channels, size, 3, levels)


def small(channels: int = 3, size: int = 6, levels: int = 256) -> Density:
    return SmallPixelCNN(channels, size, layers=3, filters=12, mixtures=3, levels=levels)


KINDS = pytest.mark.parametrize("make", [plus_plus, three_scales, small])


def lively(density: Density) -> Density:
    """In eval mode, with mixtures that differ from pixel to pixel."""
    with torch.no_grad():
        for parameter in density.parameters():
            parameter.mul_(1.5)
    return density.eval()


def images(count: int, channels: int, size: int = 6) -> Tensor:
    return torch.randint(256, (count, channels, size, size)).double() / 255


@KINDS
def test_no_mixture_depends_on_its_own_pixel_or_a_later_one(make: Make) -> None:
    """By gradients, pixel by pixel; each depends on the pixel to the left and on those above, to the right too: there is no blind spot."""
    density, size = lively(make(3, 6)).double(), 6
    values = density.scaled(density.level_of(images(1, 3))).requires_grad_()
    seen = density.framed(values)
    described = density.pixels(seen, density.rows(seen))
    for row, column in itertools.product(range(size), repeat=2):
        (gradient,) = torch.autograd.grad(described[0, :, row, column].square().sum(), values, retain_graph=True)
        reached = gradient[0].abs().sum(0).flatten() > 0
        place = row * size + column
        assert not reached[place:].any(), (row, column)
        near = [(row, column - 1), *((row - 1, column + step) for step in (-1, 0, 1))]
        assert all(reached[r * size + c] for r, c in near if r >= 0 and 0 <= c < size), (row, column)


@KINDS
def test_purification_with_memory_is_that_of_a_pass_for_each_pixel(make: Make) -> None:
    """By hand: of all 256 levels' probabilities from a whole pass, the largest within the ball."""
    for channels in (1, 3):
        density, x, strength = lively(make(channels)).double(), images(2, channels), 30
        centre, expected = density.level_of(x), density.level_of(x)
        for row, column, channel in itertools.product(range(6), range(6), range(channels)):
            with torch.no_grad():
                mixture = Mixture(density(expected / 255)[:, None, :, row, column], channels, 256)
            before = [density.scaled(expected[:, None, one, row, column]) for one in range(channel)]
            table = mixture.log_probability(torch.linspace(-1, 1, 256, dtype=x.dtype).expand(2, 256), before)
            outside = (torch.arange(256) - centre[:, channel, row, column, None]).abs() > strength
            expected[:, channel, row, column] = table.masked_fill(outside, -math.inf).argmax(1).double()
        found = density.purified(x, strength)
        assert torch.equal(density.level_of(found), expected)
        assert 0 < (found - x).abs().max() <= (strength + 1e-3) / 255
        assert torch.equal(density.purified(x, 0), x)


@pytest.mark.parametrize("count", [1, 5])
def test_an_image_is_purified_alike_in_any_batch(count: int) -> None:
    density, x = lively(small()).double(), images(5, 3)
    assert torch.equal(density.purified(x[:count], 16), density.purified(x, 16)[:count])


def test_greedy_decoding_by_hand() -> None:
    """One narrow logistic per channel: R at level 100, G one R further on, B at level 255. From (90, 90, 250) within 16, 5 and 0 levels."""
    density = SmallPixelCNN(3, 2, layers=1, filters=1, mixtures=1, levels=256)
    at_100 = 2 * 100 / 255 - 1
    slope = 0.5
    described = torch.tensor([[0.0, at_100, 0.0, 1.0, -5.0, -5.0, -5.0, math.atanh(slope), 0.0, 0.0]])
    centre = torch.tensor([[90.0, 90.0, 250.0]])
    for strength, red in [(16, 100.0), (5, 95.0), (0, 90.0)]:
        green = round((slope * (2 * red / 255 - 1) + 1) * 255 / 2)  # the level nearest to its mean, 114 for R = 100
        expected = [red, min(max(green, 90 - strength), 90 + strength), min(255, 250 + strength)]
        assert density.likeliest(described, centre, strength).tolist() == [expected]


def test_the_mean_of_a_channel_is_linear_in_those_before_it() -> None:
    described = torch.randn(4, 5, 30)  # three logistics of three channels
    mixture = Mixture(described, 3, 256)
    red, green = torch.rand(4, 5) * 2 - 1, torch.rand(4, 5) * 2 - 1
    blocks = described.unflatten(-1, (10, 3))  # weights; means of R, G, B; scales of R, G, B; slopes of G in R, B in R, B in G
    torch.testing.assert_close(mixture.mean([]), blocks[..., 1, :])
    torch.testing.assert_close(mixture.mean([red]), blocks[..., 2, :] + torch.tanh(blocks[..., 7, :]) * red[..., None])
    expected = blocks[..., 3, :] + torch.tanh(blocks[..., 8, :]) * red[..., None] + torch.tanh(blocks[..., 9, :]) * green[..., None]
    torch.testing.assert_close(mixture.mean([red, green]), expected)


@KINDS
def test_a_channel_depends_on_earlier_channels_of_its_own_pixel_alone(make: Make) -> None:
    """Another R changes its pixel's G, through the mean, but not the numbers that describe the pixel's mixture, nor R's probability."""
    density, x = lively(make()).double().requires_grad_(False), images(1, 3)
    changed = x.clone()
    changed[0, 0, 2, 3] = 1 - x[0, 0, 2, 3]
    described = density(x)[0, :, 2, 3]
    assert torch.equal(density(changed)[0, :, 2, 3], described)
    mixture = Mixture(described, 3, 256)
    green = density.scaled(density.level_of(x))[0, 1, 2, 3]
    given = [mixture.log_probability(green, [density.scaled(density.level_of(one))[0, 0, 2, 3]]) for one in (x, changed)]
    assert abs(float(given[0] - given[1])) > 1e-4


@pytest.mark.parametrize(("channels", "levels"), [(1, 256), (3, 256), (3, 2), (2, 7)])
def test_probabilities_are_those_of_scipys_logistic_and_sum_to_one(channels: int, levels: int) -> None:
    """Far from the means too, where probabilities underflow; scales from a hundredth of a level, cut at exp(-7), to many images."""
    count, width = 4, 1 + 2 * channels + channels * (channels - 1) // 2
    described = torch.randn(6, width * count, dtype=torch.float64)
    described[:, (1 + channels) * count : (1 + 2 * channels) * count] *= 4
    mixture = Mixture(described[:, None], channels, levels)
    before = [torch.rand(6, 1, dtype=torch.float64) * 2 - 1 for _ in range(channels - 1)]
    values = torch.linspace(-1, 1, levels, dtype=torch.float64)
    found = mixture.log_probability(values.expand(6, levels), before)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(6, dtype=torch.float64))
    single = Mixture(described[:, None].float(), channels, levels).log_probability(
        values.float().expand(6, levels), [one.float() for one in before]
    )
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-3)

    parts = described.reshape(6, width, count).numpy()
    mean = mixture.mean(before)[:, 0].numpy()
    scale = parts[:, 2 * channels].clip(min=-7)
    edges = values.numpy()[None, :-1, None] + 1 / (levels - 1)
    expected = logistic(mean[:, None], math.e ** scale[:, None])
    below, above = expected.cdf(edges), expected.sf(edges)
    last = above.shape[1] - 1
    right = edges > mean[:, None]  # the tail that has digits left
    inner = (above[:, :last] - above[:, 1:]) * right[:, :last] + (below[:, 1:] - below[:, :last]) * ~right[:, :last]
    inner = inner if last else inner[:, :0]
    bins = torch.cat([torch.tensor(part) for part in (below[:, :1], inner, above[:, -1:])], dim=1).numpy()
    weights = softmax(parts[:, 0], axis=1)
    likely = (weights[:, None] * bins).sum(2)
    there = torch.tensor(likely > 1e-12)
    torch.testing.assert_close(found.exp()[there], torch.tensor(likely)[there], rtol=1e-6, atol=0)
    assert logsumexp(found[0].numpy()) == pytest.approx(0, abs=1e-9)


@KINDS
@pytest.mark.parametrize(("channels", "levels"), [(1, 5), (3, 2)])
def test_the_likelihood_of_all_images_of_two_pixels_sums_to_one(make: Make, channels: int, levels: int) -> None:
    """25 grey images, or 64 coloured ones; the bits per dimension are the likelihood's."""
    density = lively(make(channels, 2, levels=levels))
    every = torch.tensor(list(itertools.product(range(levels), repeat=2 * channels))).float().view(-1, channels, 1, 2) / (levels - 1)
    likelihood = density.log_likelihood(every)
    assert likelihood.exp().std() > 1e-4, "they are not all as likely"
    assert likelihood.exp().sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(density.bits_per_dimension(every), -likelihood / (2 * channels * math.log(2)))


def test_a_uniform_density_has_8_bits_per_dimension() -> None:
    density = small()
    for parameter in density.parameters():
        nn.init.zeros_(parameter)
    assert isinstance(density, SmallPixelCNN)
    with torch.no_grad():  # one broad logistic: nearly uniform inside, the rest beyond the edges
        assert density.head.bias is not None
        density.head.bias[4 * 3 : 7 * 3] = 2.0
    inside = torch.full((1, 3, 6, 6), 128 / 255)
    width, scale = 2 / 255, math.e**2
    expected = -math.log2(logistic.cdf(1 / 255 + width / 2, 0, scale) - logistic.cdf(1 / 255 - width / 2, 0, scale))
    assert density.bits_per_dimension(inside).item() == pytest.approx(expected, rel=1e-4)


def test_parameters_of_the_published_size_by_hand() -> None:
    """Each filter has a bias and, by weight norm, a length. Down and up again, 32 blocks a stream: 5, 5, 5 and 5, 6, 6."""

    def conv(inputs: int, outputs: int, taps: int) -> int:
        return outputs * inputs * taps + 2 * outputs

    width = 160
    rows = 32 * (conv(2 * width, width, 6) + conv(2 * width, 2 * width, 6)) + 17 * conv(2 * width, width, 1)
    pixels = (
        32 * (conv(2 * width, width, 4) + conv(2 * width, 2 * width, 4)) + 15 * conv(2 * width, width, 1) + 17 * conv(4 * width, width, 1)
    )
    scales = 4 * conv(width, width, 6) + 4 * conv(width, width, 4)
    ends = conv(4, width, 6) + conv(4, width, 3) + conv(4, width, 2) + conv(width, 100, 1)
    with torch.device("meta"):
        published = PixelCNNPlusPlus(3, 32, scales=3, blocks=5, filters=width, dropout=0.5, mixtures=10, levels=256)
    assert sum(parameter.numel() for parameter in published.parameters()) == rows + pixels + scales + ends == 53_659_080


def test_parameters_of_the_small_one() -> None:
    with torch.device("meta"):
        density = SmallPixelCNN(3, 32, layers=7, filters=64, mixtures=10, levels=256)
    assert sum(parameter.numel() for parameter in density.parameters()) == 260_132


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"levels": 1}, r"^backbone\.levels: expected a whole number >= 2"),
        ({"mixtures": 0}, r"^backbone\.mixtures: "),
        ({"filters": 2.5}, r"^backbone\.filters: "),
        ({"scales": 0}, r"^backbone\.scales: "),
        ({"dropout": 1.0}, r"^backbone\.dropout: "),
        ({"image_size": 0}, r"^dataset\.size: "),
    ],
)
def test_wrong_knobs_are_named(wrong: dict[str, float], said: str) -> None:
    right = {"channels": 3, "image_size": 8, "scales": 2, "blocks": 1, "filters": 8, "dropout": 0.5, "mixtures": 2, "levels": 256}
    with pytest.raises(LabError, match=said):
        PixelCNNPlusPlus(**{**right, **wrong})  # type: ignore[arg-type]
