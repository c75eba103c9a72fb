"""A random size at a random place: what is shown is the image, resized by nearest neighbours."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.random_resize_pad import RandomResizePad


def test_each_image_is_resized_by_nearest_neighbours_and_padded_by_zeros() -> None:
    """Against torch's own nearest resizing, at the place where it is found."""
    x = torch.rand(60, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.01  # no pixel is 0
    torch.manual_seed(0)
    shown = RandomResizePad(12)(x)
    assert shown.shape == (60, 3, 12, 12)
    seen = set()
    for image, of in zip(shown, x, strict=True):
        filled = (image != 0).any(dim=0).nonzero()
        (top, left), (bottom, right) = filled.amin(dim=0).tolist(), (filled.amax(dim=0) + 1).tolist()
        assert bottom - top == right - left
        expected = F.interpolate(of[None], size=(bottom - top, right - left), mode="nearest")[0]
        assert torch.equal(image[:, top:bottom, left:right], expected)
        seen.add((bottom - top, top, left))
    assert {size for size, _, _ in seen} == {8, 9, 10, 11}
    assert {top for _, top, _ in seen} == {0, 1, 2, 3, 4}


def test_its_sides_are_the_source_s() -> None:
    assert [RandomResizePad(None).side(side) for side in (299, 32, 64, 8, 4)] == [331, 35, 71, 9, 5]


def test_gradients_are_its_own() -> None:
    x = torch.rand(2, 1, 5, 5, dtype=torch.double, requires_grad=True)

    def shown(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return RandomResizePad(8)(x)

    assert torch.autograd.gradcheck(shown, x)


def test_a_padded_image_is_larger(run_objects: Callable[..., Any]) -> None:
    words = ["defense=preprocessed", "front@defense.fronts=[random_resize_pad]", "backbone=small_cnn"]
    with pytest.raises(LabError, match=r"^defense.fronts.random_resize_pad.padded: expected more than 8, the image's side, got 8"):
        run_objects(*words, "defense.fronts.random_resize_pad.padded=8")


def test_a_network_that_takes_no_other_size_is_refused(run_objects: Callable[..., Any]) -> None:
    words = ["defense=preprocessed", "front@defense.fronts=[random_resize_pad]"]
    with pytest.raises(LabError, match=r"^backbone: expected a network that takes images of \[1, 9, 9\]"):
        run_objects(*words, "backbone=small_cnn")
    assert run_objects(*words, "backbone=small_resnet")[1].training
