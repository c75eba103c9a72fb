"""The norm of the perturbation: worked by hand, and over broken images alone."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.metrics.base import Seen
from robustbench_lab.metrics.perturbation_norm import PerturbationNorm


def seen(broken: list[bool], flipped: list[bool]) -> Seen:
    """Images [3, 2, 1, 2]: the first one's pixels change by .3 and .4 in one place, the second's by .1 in all, the third's not at all."""
    x = torch.full((3, 2, 1, 2), 0.5)
    change = torch.zeros_like(x)
    change[0, :, 0, 0] = torch.tensor([0.3, -0.4])
    change[1] = 0.1
    return Seen(nn.Identity(), x, x + change, torch.zeros(3, dtype=torch.int64), torch.tensor(broken), torch.tensor(flipped), None)


def norms(norm: str, broken: list[bool], *, as_published: bool = False, flipped: list[bool] | None = None) -> Tensor:
    return PerturbationNorm(norm=norm, as_published=as_published)(seen(broken, flipped or [False] * 3))


@pytest.mark.parametrize(("norm", "first", "second"), [("l2", 0.5, 0.2), ("linf", 0.4, 0.1), ("l0", 1, 2)])
def test_the_norm_is_that_of_the_change(norm: str, first: float, second: float) -> None:
    """|(.3, -.4)| = .5; |(.1, .1, .1, .1)| = .2; in l0 a pixel with two channels counts once."""
    np.testing.assert_allclose(norms(norm, [True, True, False]), [first, second, math.nan], atol=1e-6)


def test_only_broken_images_count() -> None:
    np.testing.assert_allclose(norms("l2", [False, True, False], flipped=[True, True, True]), [math.nan, 0.2, math.nan], atol=1e-6)
    assert norms("l2", [False, False, False]).isnan().all()


def test_as_published_every_changed_prediction_counts() -> None:
    found = norms("l2", [False, True, False], as_published=True, flipped=[True, True, False])
    np.testing.assert_allclose(found, [0.5, 0.2, math.nan], atol=1e-6)


def test_it_asks_for_an_attack_that_looks_for_the_nearest() -> None:
    assert PerturbationNorm(norm="l2", as_published=False).minimal


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(LabError, match="norm: expected one of linf, l2, l0, got 'l1'"):
        PerturbationNorm(norm="l1", as_published=False)
