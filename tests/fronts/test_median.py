"""Median smoothing: bit for bit SciPy's, with the gradient of what it picks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import median_filter

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.median import Median, median


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("levels", [4, 255])
def test_it_is_scipy_s(window: int, levels: int) -> None:
    x = (torch.rand(5, 3, 7, 9, generator=torch.Generator().manual_seed(window)) * levels).round() / levels
    expected = np.stack([median_filter(image, size=(1, window, window), mode="reflect") for image in x.numpy()])
    assert np.array_equal(median(x, window).numpy(), expected)


def test_an_even_window_takes_the_third_smallest_of_four() -> None:
    """Of 1, 2, 3, 4 around the last pixel it is 3: up and left of it."""
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).view(1, 1, 2, 2)
    assert median(x, 2)[0, 0, 1, 1] == 3


@pytest.mark.parametrize("window", [2, 3, 4])
def test_its_gradient_is_that_of_the_pixel_it_picks(window: int) -> None:
    values = torch.randperm(49, generator=torch.Generator().manual_seed(window)).double().view(1, 1, 7, 7) / 49  # no two alike
    torch.autograd.gradcheck(lambda x: median(x, window), values.requires_grad_(), eps=1e-4)


def test_a_window_larger_than_the_image_is_refused(run_objects: Callable[..., Any]) -> None:
    words = ["defense=preprocessed", "front@defense.fronts=[median]", "backbone=small_cnn", "defense.fronts.median.window=9"]
    with pytest.raises(LabError, match=r"^defense.fronts.median.window: expected at most 8, the side of an image of \[1, 8, 8\], got 9"):
        run_objects(*words)
    with pytest.raises(LabError, match=r"window: expected a whole number >= 1"):
        Median(0)
