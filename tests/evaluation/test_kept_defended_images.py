"""What the network sees of images, as an evaluation keeps it: behind the fronts, with the masks that belong to it."""

from types import SimpleNamespace
from typing import Any

import evaluating
import numpy as np
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.evaluation.keepers.defended_images import DefendedImages
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.storage.records import DEFENDED_IMAGES_FILE, check_arrays
from robustbench_lab.threats import Budget

# Two pixels side by side; class 0 has the first one darker than 1/2 as the network sees it.
DATA = ImageSet(torch.tensor([[0.2, 0.8], [0.4, 0.2], [0.9, 0.5]]).view(3, 1, 1, 2), torch.tensor([0, 0, 1]), torch.tensor([7, 2, 9]))


class FirstPixel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.stack([torch.full((len(x),), 0.5), x[:, 0, 0, 0]], dim=1)


class Darker(Front):
    """A mask of 1/2 on the first pixel."""

    def masks(self, x: Tensor) -> Tensor:
        return torch.tensor([0.5, 1.0]).expand(len(x), 1, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.masks(x) * x


class AtRandom(Darker):
    random = True

    def masks(self, x: Tensor) -> Tensor:
        return torch.rand_like(x)


class Wider(Front):
    """Black before and behind."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (1, 1))


class Raise(Attack):
    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        return x + 0.04


def kept_of(*fronts: Front, images: int = 10, network: nn.Module | None = None, **how: Any) -> SimpleNamespace:
    keeper = DefendedImages()
    model = Defended(network or FirstPixel(), fronts)
    evaluating.judged(model, DATA, Raise(), Budget("linf", 0.05), keepers=[keeper], **{"batch_size": 2, **how})
    check_arrays(DEFENDED_IMAGES_FILE, keeper.arrays, DEFENDED_IMAGES_FILE)
    return SimpleNamespace(**keeper.arrays)


def test_images_behind_the_fronts_and_masks_on_their_way() -> None:
    """.2 and .8 become .1 and .8, and raised by .04, .12 and .84; all three images are right when clean but the last, at .45."""
    kept = kept_of(Darker())
    assert kept.index.tolist() == [7, 2, 9]
    assert kept.clean.reshape(3, 2).tolist() == [[26, 204], [51, 51], [115, 128]]
    assert kept.attacked.reshape(3, 2).tolist() == [[31, 214], [56, 61], [115, 128]], "the last was not attacked"
    assert kept.clean_masks.tolist() == kept.attacked_masks.tolist() == [[[[128, 255]]]] * 3


def test_no_front_is_the_image_itself_and_no_mask() -> None:
    kept = kept_of()
    assert kept.clean.reshape(3, 2).tolist() == [[51, 204], [102, 51], [230, 128]]
    assert not hasattr(kept, "clean_masks")


def test_fronts_may_change_the_size() -> None:
    kept = kept_of(Darker(), Wider(), network=nn.Sequential(nn.ZeroPad2d((-1, 0)), FirstPixel()))
    assert kept.clean.reshape(3, 4)[0].tolist() == [0, 26, 204, 0]
    assert kept.clean_masks.shape == (3, 1, 1, 2)


def test_random_masks_are_those_of_the_image_shown_and_disturb_nothing() -> None:
    before = torch.get_rng_state()
    kept = kept_of(AtRandom())
    assert torch.equal(torch.get_rng_state(), before)
    x = DATA.images.numpy()
    np.testing.assert_allclose(kept.clean / 255, x * kept.clean_masks / 255, atol=3e-3)
    assert (kept.clean_masks == kept.attacked_masks).all(), "one seed for both"
    assert len(np.unique(kept.clean_masks)) > 2


def test_it_is_in_the_evaluations_name() -> None:
    def named(*words: str) -> Any:
        return evaluation_of(*compose("evaluate", words), words)

    assert named("keep=[defended_images]").fingerprint != named().fingerprint
