"""JPEG compression beside libjpeg's, and its gradient beside that of the smooth pipeline."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.jpeg import JPEG, compressed


def pictures(n: int, channels: int, height: int, width: int) -> Tensor:
    """Smooth colours with edges and some noise: uint8 [n, C, H, W], neither flat nor noise alone."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 4, 4, generator=rng)
    x = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    x[:, :, height // 3 :, : width // 2] *= 0.5
    return (255 * (x + 0.03 * torch.randn(x.shape, generator=rng)).clamp(0, 1)).round()


def by_pillow(pixels: Tensor, quality: int, subsampling: str) -> Tensor:
    found = []
    for image in pixels.permute(0, 2, 3, 1).to(torch.uint8).numpy():
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality, subsampling={"4:4:4": 0, "4:2:0": 2}[subsampling])
        found.append(np.asarray(Image.open(file)).reshape(image.shape))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("subsampling", ["4:2:0", "4:4:4"])
@pytest.mark.parametrize("quality", [20, 75, 95])
@pytest.mark.parametrize(("channels", "height", "width"), [(3, 32, 32), (3, 29, 27), (1, 28, 28)])
def test_it_is_libjpeg_s_up_to_rounding(quality: int, subsampling: str, channels: int, height: int, width: int) -> None:
    pixels = pictures(40, channels, height, width)
    ours = 255 * JPEG(quality, subsampling)(pixels / 255)
    difference = (ours - by_pillow(pixels, quality, subsampling)).abs()
    assert torch.equal(ours.round(), ours.round().clamp(0, 255))
    assert (ours - ours.round()).abs().max() < 1e-3, "whole grey levels"
    assert difference.mean() < 1
    assert (difference > 1.5).float().mean() < 0.2
    assert (pixels - by_pillow(pixels, quality, subsampling)).abs().mean() > 1.4 * difference.mean(), "less than what it changes"


def test_a_flat_image_stays() -> None:
    x = torch.full((2, 3, 16, 16), 128 / 255)
    assert torch.equal(JPEG(50, "4:2:0")(x), x)


def test_its_gradient_is_that_of_the_pipeline_without_roundings() -> None:
    x = (pictures(1, 3, 9, 10).double() / 255 * 0.8 + 0.1).requires_grad_()  # away from 0 and 255, where it is cut
    weight = torch.rand(x.shape, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    (ours,) = torch.autograd.grad((JPEG(75, "4:2:0")(x) * weight).sum(), x)
    (smooth,) = torch.autograd.grad((compressed(x, 75, "4:2:0", lambda values: values) * weight).sum(), x)
    inside = (compressed(x, 75, "4:2:0", lambda values: values) > 0.02).all()
    assert inside
    torch.testing.assert_close(ours, smooth)
    assert torch.autograd.gradcheck(lambda x: compressed(x, 75, "4:2:0", lambda values: values), x[:, :, :4, :4].detach().requires_grad_())


@pytest.mark.parametrize(
    ("quality", "subsampling", "said"), [(0, "4:2:0", "quality"), (101, "4:2:0", "quality"), (75, "4:1:1", "subsampling")]
)
def test_what_no_encoder_takes_is_refused(quality: int, subsampling: str, said: str) -> None:
    with pytest.raises(LabError, match=rf"^{said}: expected"):
        JPEG(quality, subsampling)  # type: ignore[arg-type]
