"""Non-local means beside OpenCV's and scikit-image's, and its gradient beside finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.non_local_means import LEAST, NonLocalMeans, non_local_means

BOX = [1 / 3] * 3


def pictures(n: int, channels: int, height: int, width: int) -> Tensor:
    """Smooth colours with edges and some noise, in whole levels: uint8 values [n, C, H, W] as floats."""
    rng = torch.Generator().manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(n, channels, 5, 5, generator=rng), size=(height, width), mode="bicubic").clamp(0, 1)
    x[:, :, height // 3 :, : width // 2] *= 0.6
    return (255 * (x + 0.006 * torch.randn(x.shape, generator=rng)).clamp(0, 1)).round()


def by_opencv(pixels: Tensor, search: int, template: int, strength: float) -> Tensor:
    cv2 = pytest.importorskip("cv2", reason="the parity extra is not installed")
    found = []
    for image in pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy():
        if image.shape[2] == 1:
            found.append(cv2.fastNlMeansDenoising(image[..., 0], None, strength, template, search)[..., None])
        else:  # OpenCV's colours are blue, green, red
            bgr = np.ascontiguousarray(image[..., ::-1])
            found.append(cv2.fastNlMeansDenoisingColored(bgr, None, strength, strength, template, search)[..., ::-1])
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize(("search", "template", "strength"), [(13, 3, 2), (11, 3, 4), (7, 5, 10)])
def test_grey_images_are_opencv_s_to_one_level(search: int, template: int, strength: float) -> None:
    pixels = pictures(20, 1, 28, 31)
    ours = 255 * NonLocalMeans(search, template, strength)(pixels / 255)
    theirs = by_opencv(pixels, search, template, strength)
    assert (ours - theirs).abs().max() < 1.01
    assert ((ours - theirs).abs() < 0.5).float().mean() > 0.95
    assert (pixels - theirs).abs().mean() > 5 * (ours - theirs).abs().mean(), "less than what it changes"


@pytest.mark.parametrize(("search", "template", "strength"), [(13, 3, 2), (11, 3, 4)])
def test_colours_are_opencv_s_but_for_their_rounding(search: int, template: int, strength: float) -> None:
    pixels = pictures(20, 3, 32, 29)
    ours = 255 * NonLocalMeans(search, template, strength)(pixels / 255)
    theirs = by_opencv(pixels, search, template, strength)
    assert (ours - ours.round()).abs().max() < 1e-3, "whole grey levels"
    assert (ours - theirs).abs().mean() < 0.4
    assert ((ours - theirs).abs() < 1.01).float().mean() > 0.9
    assert (pixels - theirs).abs().mean() > 3 * (ours - theirs).abs().mean(), "less than what it changes"


@pytest.mark.parametrize("channels", [1, 3])
def test_means_are_scikit_image_s(channels: int) -> None:
    """Its fast mode compares templates of 2 x 2 where 3 x 3 are asked for, and divides by 9; it ignores weights below exp(-5), and takes
    its exponentials from a table that is off by up to 4 %."""
    restoration = pytest.importorskip("skimage.restoration", reason="the parity extra is not installed")
    x = (pictures(4, channels, 20, 17) / 255).double()
    found = [restoration.denoise_nl_means(image, 3, 4, h=0.05, channel_axis=-1) for image in x.permute(0, 2, 3, 1).numpy()]
    theirs = torch.from_numpy(np.stack(found)).view(4, 20, 17, channels).permute(0, 3, 1, 2)
    ours = non_local_means(x, 9, [0, 1 / 3, 1 / 3], 0.05, math.exp(-5))
    assert (ours - theirs).abs().max() < 2e-3
    assert (non_local_means(x, 9, BOX, 0.05, math.exp(-5)) - theirs).abs().max() > 2e-2


def test_by_hand() -> None:
    """A row of three values, mirrored: (4, 0, 4, 8, 4), with templates of one pixel."""
    x = torch.tensor([[[[0.0, 4.0, 8.0]]]]).expand(1, 1, 3, 3)
    w = math.exp(-1)  # of two that are 4 apart, at strength 4; of the same, 1
    ours = non_local_means(x, 3, [1.0], 4, 0)
    expected = torch.tensor([(2 * 4 * w) / (1 + 2 * w), 4.0, (8 + 2 * 4 * w) / (1 + 2 * w)])
    torch.testing.assert_close(ours[0, 0], expected.expand(3, 3))


def test_flat_images_stay_and_far_values_do_not_mix() -> None:
    front = NonLocalMeans(5, 3, 2)
    flat = torch.full((1, 1, 8, 8), 77 / 255)
    assert torch.equal(front(flat), flat)
    halves = torch.zeros(1, 1, 8, 8)
    halves[..., 4:] = 200 / 255
    torch.testing.assert_close(front(halves), halves)


@pytest.mark.parametrize("least", [0.0, LEAST])
@pytest.mark.parametrize("channels", [1, 3])
def test_its_gradient_is_that_of_finite_differences(channels: int, least: float) -> None:
    x = torch.rand(1, channels, 6, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: non_local_means(x, 5, BOX, 0.6, least), (x,))


def test_the_front_s_gradient_passes_its_roundings() -> None:
    x = (pictures(2, 3, 12, 12) / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(NonLocalMeans(5, 3, 10)(x).sum(), x)
    assert gradient.isfinite().all()
    assert 0.9 < float(gradient.mean()) < 1.1, "means keep brightness"


@pytest.mark.parametrize(
    ("settings", "said"), [((4, 3, 2), "search"), ((5, 2, 2), "template"), ((5, 3, 0), "strength"), ((5, 3, -1.0), "strength")]
)
def test_what_makes_no_window_is_refused(settings: tuple[int, int, float], said: str) -> None:
    with pytest.raises(LabError, match=rf"^{said}: expected"):
        NonLocalMeans(*settings)


def test_windows_larger_than_the_image_are_refused() -> None:
    with pytest.raises(LabError, match=r"^search: expected windows that reach less than 6 pixels"):
        NonLocalMeans(13, 3, 2).check((3, 6, 6))
    with pytest.raises(LabError, match="one or three channels"):
        NonLocalMeans(3, 3, 2).check((4, 6, 6))
