"""What masks leave of images, as metrics of an evaluation: by hand, behind other fronts, and of models that have none."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from evaluating import judged
from torch import Tensor, nn

from robustbench_lab.attacks.fgsm import FGSM
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.bit_depth import BitDepth
from robustbench_lab.fronts.dimming import Dimming
from robustbench_lab.fronts.mask import Mask
from robustbench_lab.metrics.masks import MaskBrightness, MaskZeros
from robustbench_lab.models.defended import Defended
from robustbench_lab.threats import Budget


class Bright(Mask):
    """Pixels above .7 stay, half of each; the others go."""

    def masks(self, x: Tensor) -> Tensor:
        return 0.5 * (x.amax(dim=1, keepdim=True) > 0.7).to(x.dtype)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(2, 2))


@pytest.fixture
def data() -> ImageSet:
    x = torch.tensor([[1.0, 0.2], [0.6, 1.0], [0.0, 0.0]]).view(3, 1, 1, 2)
    return ImageSet(x, torch.tensor([0, 1, 0]), torch.arange(3))


def measured(model: Defended, data: ImageSet, attack: FGSM) -> np.ndarray:
    measures = {"mask_brightness": MaskBrightness(as_published=False), "mask_zeros": MaskZeros(as_published=False)}
    return judged(model.eval(), data, attack, Budget("linf", 0.1), batch_size=2, measures=measures).metrics


@pytest.fixture
def fgsm(built: Callable[..., Any]) -> FGSM:
    return built("attack", "fgsm")


def test_every_clean_image_counts(data: ImageSet, fgsm: FGSM) -> None:
    """(1, .2) keeps .5 of 1.2, (.6, 1) of 1.6; a black image has all of its brightness, and no pixel."""
    brightness, zeros = measured(Defended(network(), [Bright()]), data, fgsm)
    np.testing.assert_allclose(brightness, [0.5 / 1.2, 0.5 / 1.6, 1.0], rtol=1e-6)
    np.testing.assert_allclose(zeros, [0.5, 0.5, 1.0])


def test_a_mask_is_asked_about_what_comes_to_it(data: ImageSet, fgsm: FGSM) -> None:
    """In black and white, (1, .2) is (1, 0) and (.6, 1) is (1, 1). Of two masks, the first counts."""
    brightness, _ = measured(Defended(network(), [BitDepth(1), Bright(), Dimming(0.1)]), data, fgsm)
    np.testing.assert_allclose(brightness, [0.5, 0.5, 1.0])


def test_without_a_mask_it_stops_before_any_attack(data: ImageSet, fgsm: FGSM) -> None:
    said = r"^metric\.mask_brightness: expected a defense that masks pixels, such as defense=sfm, got one whose Defended has no mask"
    with pytest.raises(LabError, match=said):
        measured(Defended(network()), data, fgsm)


def test_there_is_no_published_form() -> None:
    with pytest.raises(LabError, match=r"^as_published: expected false"):
        MaskZeros(as_published=True)
