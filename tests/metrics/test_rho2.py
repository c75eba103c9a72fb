"""rho2 by hand: in the network's input space, over which images, and beside it the share whose prediction changed."""

import math

import numpy as np
import pytest
import torch
from evaluating import judged
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.fronts.bit_depth import BitDepth
from robustbench_lab.metrics.prediction_changed import PredictionChanged
from robustbench_lab.metrics.rho2 import Rho2, first_layer_of, rho2
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


class FirstPixel(nn.Module):
    """Of [1, 1, 2]: class 1 where the first value is positive."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0]], dim=1)


class MoveTo(Attack):
    """The first pixel to .6, but not of bright images (second pixel 1), which only go up by .1."""

    minimal, needs_finite_ball = True, False

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        moved = x.clone()
        moved[:, 0, 0, 0] = torch.where(x[:, 0, 0, 1] == 1, x[:, 0, 0, 0] + 0.1, 0.6)
        return moved


# Less (.5, .4) and over .1: (-4, 3), (-3, 6), (4, 0), (-2, 0), of lengths 5, 45 ** .5, 4, 2.
X = torch.tensor([[0.1, 0.7], [0.2, 1.0], [0.9, 0.4], [0.3, 0.4]]).view(4, 1, 1, 2)
MOVED = [5 / 5, 1 / 45**0.5, 3 / 4, 3 / 2]  # to (1, .), (-2, .), (1, .), (1, .)
Y = torch.tensor([0, 0, 0, 1])  # broken; not broken; wrong and still so; wrong, and right when attacked


def model(*fronts: BitDepth) -> Defended:
    layer = Normalise([0.5], [0.1])
    layer.mean = torch.tensor([0.5, 0.4]).view(1, 1, 1, 2)
    return Defended(Classifier(layer, FirstPixel()), fronts).eval()


def test_which_images_count() -> None:
    measures = {"plain": Rho2(as_published=False), "published": Rho2(as_published=True), "changed": PredictionChanged(as_published=False)}
    data = ImageSet(X, Y, torch.arange(4))
    outcome = judged(model(), data, MoveTo(), Budget("l2", math.inf), batch_size=3, measures=measures, misclassified=True)
    plain, published, changed = outcome.metrics
    np.testing.assert_allclose(plain, [MOVED[0], np.nan, np.nan, np.nan], rtol=1e-5)
    np.testing.assert_allclose(published, MOVED, rtol=1e-5)
    assert changed.tolist() == [1, 0, 0, 1]


def test_it_is_of_what_the_network_is_fed() -> None:
    """Without a first layer, or behind a front: (.4, .3) of length .5 and (.8, .6) of length 1, moved by .1 and .2."""
    x = torch.tensor([[0.4, 0.3], [0.8, 0.6]]).view(2, 1, 1, 2)
    x_adv = x + torch.tensor([[0.06, -0.08], [0.0, 0.2]]).view(2, 1, 1, 2)
    for of in (nn.Linear(2, 2), Defended(nn.Flatten()), model(BitDepth(3))):
        torch.testing.assert_close(rho2(first_layer_of(of), x, x_adv), torch.tensor([0.2, 0.2]).double(), rtol=1e-6, atol=0)
    halved = rho2(first_layer_of(model()), x, (x + x_adv) / 2)
    torch.testing.assert_close(2 * halved, rho2(first_layer_of(model()), x, x_adv), rtol=1e-5, atol=0)


def test_an_image_that_the_network_is_fed_as_zeros_does_not_count() -> None:
    x = torch.tensor([[0.0, 0.0], [0.6, 0.8]]).view(2, 1, 1, 2)
    found = rho2(nn.Identity(), x, x + 0.1)
    assert found.isnan().tolist() == [True, False]


def test_wrong_images_must_be_attacked_where_they_count() -> None:
    published, plain = ({"rho2_as_published": Rho2(as_published=known)} for known in (True, False))
    with pytest.raises(LabError, match=r"^metric\.rho2_as_published counts images that were wrong .* need attack_misclassified=true"):
        Protocol(seed=0, batch_size=1, measures=published).check(MoveTo())
    Protocol(seed=0, batch_size=1, measures=published, misclassified=True).check(MoveTo())
    Protocol(seed=0, batch_size=1, measures=plain).check(MoveTo())
