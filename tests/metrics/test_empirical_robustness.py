"""Empirical robustness: eq. 2 and the published code's quantity, worked out by hand."""

import pytest
import torch

from robustbench_lab.errors import LabError
from robustbench_lab.metrics.empirical_robustness import empirical_robustness, empirical_robustness_as_published

# |x| = 1 and .5 in l2, .8 and .4 in linf; |delta| = .05 and .1 in l2, .04 and .1 in linf.
X = torch.tensor([[0.6, 0.8], [0.3, 0.4]]).view(2, 1, 1, 2)
X_ADV = X + torch.tensor([[0.03, -0.04], [0.0, 0.1]]).view(2, 1, 1, 2)


def test_eq_2() -> None:
    assert empirical_robustness(X, X_ADV).tolist() == pytest.approx([0.05, 0.2], rel=1e-6)
    assert empirical_robustness(X, X).tolist() == [0, 0]


def test_channels_count_as_pixels() -> None:
    assert empirical_robustness(X.view(2, 2, 1, 1), X_ADV.view(2, 2, 1, 1)).tolist() == pytest.approx([0.05, 0.2], rel=1e-6)


def test_a_black_image_has_a_finite_value() -> None:
    assert empirical_robustness(torch.zeros(1, 1, 1, 2), X_ADV[1:]).isfinite().all()


def test_as_published() -> None:
    both, second = torch.tensor([True, True]), torch.tensor([False, True])
    assert empirical_robustness_as_published(X, X_ADV, both).tolist() == pytest.approx([0.05, 0.25], rel=1e-6)
    assert empirical_robustness_as_published(X, X_ADV, second).tolist() == pytest.approx([0.25], rel=1e-6)


@pytest.mark.parametrize(
    ("x", "x_adv", "message"),
    [
        (X[:0], X_ADV[:0], r"^x: expected images \[N, C, H, W\], at least one, got \[0, 1, 1, 2\]"),
        (X, X_ADV[:0], "^x_adv: expected images .* at least one"),
        (X[0], X_ADV[0], "^x: expected images"),
        (X, X_ADV[:1], "^x_adv: expected 2 images, one for each of x, got 1"),
        (X, X_ADV.view(2, 2, 1, 1), r"^x_adv: expected images of shape \[1, 1, 2\]"),
        (X, X_ADV * torch.nan, "^x_adv: expected finite pixels"),
    ],
)
def test_what_is_missing_is_named(x: torch.Tensor, x_adv: torch.Tensor, message: str) -> None:
    with pytest.raises(LabError, match=message):
        empirical_robustness(x, x_adv)
    with pytest.raises(LabError, match=message):
        empirical_robustness_as_published(x, x_adv, torch.ones(2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("flipped", "message"),
    [
        (torch.zeros(2, dtype=torch.bool), "^flipped: expected an image whose prediction the attack changed, got 'none of 2'"),
        (torch.ones(3, dtype=torch.bool), r"^flipped: expected bool \[2\]"),
        (torch.tensor([0, 1]), r"^flipped: expected bool \[2\]"),
    ],
)
def test_flips_that_are_none(flipped: torch.Tensor, message: str) -> None:
    with pytest.raises(LabError, match=message):
        empirical_robustness_as_published(X, X_ADV, flipped)
