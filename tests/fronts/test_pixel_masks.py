"""Masks on pixels: what they keep, by hand and by other means; their gradients against finite differences."""

import pytest
import torch
from torch import Tensor

from robustbench_lab.backbones.attention_unet import AttentionUNet
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.dimming import Dimming
from robustbench_lab.fronts.mask import Mask, MaskFront, kept_brightness, share_of_zeros
from robustbench_lab.fronts.random_mask import RandomMask
from robustbench_lab.fronts.soft_threshold import SoftThreshold


def images(n: int, channels: int = 3, size: int = 8) -> Tensor:
    return torch.rand(n, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def learned() -> MaskFront:
    torch.manual_seed(0)
    return MaskFront(AttentionUNet(3, 1, 2, 2)).double().eval()


def test_a_learned_mask_darkens_all_channels_of_a_pixel_alike() -> None:
    front, x = learned(), images(2)
    shown = front(x)
    assert ((shown >= 0) & (shown <= x)).all()
    share = shown / x
    torch.testing.assert_close(share[:, 1:], share[:, :1].expand(-1, 2, -1, -1))
    torch.testing.assert_close(share[:, :1], front.masks(x))
    assert front.learned


@pytest.mark.parametrize("front", [learned(), SoftThreshold(0.4), Dimming(0.4)], ids=lambda front: type(front).__name__)
def test_gradients_are_those_of_finite_differences(front: Mask) -> None:
    """Of a weighted sum of what is shown, along four directions; through the masks, which change with the image."""
    x = images(2).clamp(0.01, 0.99).requires_grad_()
    weights, ways = torch.randn(x.shape, dtype=x.dtype), torch.randn(4, *x.shape, dtype=x.dtype)
    (gradient,) = torch.autograd.grad((weights * front(x)).sum(), x)
    with torch.no_grad():
        for way in ways:
            step = 1e-7 * way
            difference = (weights * (front(x + step) - front(x - step))).sum() / 2e-7
            torch.testing.assert_close((gradient * way).sum(), difference, rtol=1e-5, atol=1e-5)
        alone = front.masks(x) * weights  # of a mask that stood still
    assert torch.allclose(gradient, alone) is isinstance(front, Dimming)


def test_soft_threshold_by_hand() -> None:
    """Grey pixels lose c each, or all they have. 1, .5, .3, .2, half of whose sum is 1: c = .25 leaves .75, .25, .05 and 0, too much;
    c = .8 / 3 leaves .733, .233, .033."""
    x = torch.tensor([1.0, 0.5, 0.3, 0.2]).view(1, 1, 2, 2)
    c = 0.8 / 3
    torch.testing.assert_close(SoftThreshold(0.5)(x).flatten(), torch.tensor([1 - c, 0.5 - c, 0.3 - c, 0.0]))


@pytest.mark.parametrize("kept", [0.02, 0.3, 0.9, 1.0])
def test_soft_threshold_is_exact_and_that_of_bisection(kept: float) -> None:
    x = images(5)
    x[0, :, :4] = 0  # black pixels
    x[1] = (x[1] > 0.5).double()
    front = SoftThreshold(kept)
    torch.testing.assert_close(kept_brightness(x, front(x)), torch.full((5,), kept, dtype=x.dtype))
    brightness, squared = x.sum(dim=1), x.square().sum(dim=1)
    ratio = brightness / squared.clamp(min=1e-30)
    low, high = torch.zeros(5, dtype=x.dtype), torch.full((5,), 3.0, dtype=x.dtype)
    for _ in range(60):
        middle = (low + high) / 2
        left = (brightness * (1 - middle.view(-1, 1, 1) * ratio).clamp(min=0)).sum(dim=(1, 2))
        enough = left >= kept * brightness.sum(dim=(1, 2))
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    masks = (1 - low.view(-1, 1, 1) * ratio).clamp(min=0)
    lit = squared > 0
    torch.testing.assert_close(front.masks(x)[:, 0][lit], masks[lit], atol=1e-9, rtol=0)
    assert bool((front.masks(x)[:, 0][~lit] == float(kept == 1)).all()), "black pixels are the first to go"


def test_soft_threshold_in_single_precision_and_on_black_images() -> None:
    x = images(3, size=32).float()
    x[2] = 0
    shown = SoftThreshold(0.36)(x.requires_grad_())
    torch.testing.assert_close(kept_brightness(x, shown)[:2], torch.full((2,), 0.36), atol=1e-5, rtol=0)
    assert not shown[2].any()
    assert torch.autograd.grad(shown.square().sum(), x)[0].isfinite().all()


def test_dimming() -> None:
    assert torch.equal(Dimming(0.25)(torch.tensor([[[[0.8]], [[0.4]]]])), torch.tensor([[[[0.2]], [[0.1]]]]))


def test_random_masks_keep_whole_pixels_and_are_drawn_anew() -> None:
    front, x = RandomMask(0.3), images(50, size=16)
    masks = front.masks(x)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert masks.shape == (50, 1, 16, 16)
    assert abs(float(masks.mean()) - 0.3) < 0.02  # five deviations of the mean of 12,800
    assert not torch.equal(masks, front.masks(x))
    assert front.random
    torch.manual_seed(1)
    (gradient,) = torch.autograd.grad(front(x.requires_grad_()).sum(), x)
    torch.manual_seed(1)
    assert torch.equal(gradient, front.masks(x).expand_as(x))


def test_what_is_counted_of_masks() -> None:
    x = torch.tensor([[0.6, 0.2], [0.0, 0.0]]).view(2, 1, 1, 2)
    masks = torch.tensor([[0.5, 0.04], [0.05, 0.0]]).view(2, 1, 1, 2)
    torch.testing.assert_close(kept_brightness(x, masks * x), torch.tensor([0.308 / 0.8, 1.0]))
    torch.testing.assert_close(share_of_zeros(masks), torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize("kind", [SoftThreshold, Dimming, RandomMask])
@pytest.mark.parametrize("kept", [0.0, 1.5, True])
def test_a_share_is_above_0_and_at_most_1(kind: type[Mask], kept: float) -> None:
    with pytest.raises(LabError, match=r"^kept: expected a finite number > 0 and <= 1"):
        kind(kept)
