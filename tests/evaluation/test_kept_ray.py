"""What an evaluation keeps of the way to attacked images: by hand, against FGSM in a smaller ball, and across interruptions."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import evaluating
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation import loop as evaluation
from robustbench_lab.evaluation.keepers.ray import Ray
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.storage.records import RAY_FILE, check_arrays
from robustbench_lab.threats import Budget


class Threshold(nn.Module):
    """Class 1 where the only pixel is above 1/2."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.middle - x.flatten(1), x.flatten(1) - self.middle], dim=1)


class Raise(Attack):
    """By .4, at most to 1."""

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        return (x + 0.4).clamp(max=1)


DATA = ImageSet(torch.tensor([0.45, 0.2, 0.35, 0.7]).view(4, 1, 1, 1), torch.tensor([0, 0, 1, 1]), torch.tensor([7, 2, 9, 4]))


def kept_of(points: int = 4, data: ImageSet = DATA, **how: Any) -> Ray:
    keeper = Ray(points)
    how = {"batch_size": 3, "misclassified": True, **how}
    evaluating.judged(Defended(Threshold()), data, Raise(), Budget("linf", 0.4), keepers=[keeper], **how)
    return keeper


def right(keeper: Ray) -> list[list[int]]:
    return np.unpackbits(keeper.arrays["right"], axis=1, count=len(keeper.arrays["t"])).tolist()


def test_where_each_image_is_right() -> None:
    """.45 crosses at an eighth of the way, .2 at three quarters and a hair, .35 from wrong to right at 3/8; .7 is cut at 1."""
    keeper = kept_of()
    assert keeper.arrays["t"].tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert right(keeper) == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]
    assert keeper.arrays["index"].tolist() == [7, 2, 9, 4]
    assert keeper.arrays["free"].tolist() == [True, True, True, False]
    check_arrays(RAY_FILE, keeper.arrays, RAY_FILE)
    assert right(kept_of(misclassified=False))[2] == [0, 0, 0, 0, 0], "an image that is not attacked stays where it is"


def test_its_ends_are_the_verdict() -> None:
    keeper = Ray(64)
    outcome = evaluating.judged(
        Defended(Threshold()), DATA, Raise(), Budget("linf", 0.4), keepers=[keeper], batch_size=3, misclassified=True
    )
    assert keeper.arrays["right"].shape == (4, 9)
    ends = np.array(right(keeper))[:, [0, -1]].T
    np.testing.assert_array_equal(ends, [outcome.clean, outcome.after])


@pytest.mark.parametrize(("backbone", "eps"), [("mlp", 0.02), ("small_cnn", 0.1), ("small_resnet", 0.15)])
def test_of_fgsm_it_is_fgsm_in_every_smaller_ball(
    backbone: str, eps: float, run_objects: Callable[..., Any], built: Callable[..., Any]
) -> None:
    """Image by image, on nets as they begin, labelled by themselves but for every fourth image; all pixels are far from 0 and 1."""
    model = run_objects(f"backbone={backbone}")[1].eval()
    x = 0.35 + 0.3 * torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        predicted = model(x).argmax(dim=1)
    data = ImageSet(x, torch.where(torch.arange(200) % 4 == 0, (predicted + 1) % 10, predicted), torch.arange(200))
    ball, keeper, how = Budget("linf", eps), Ray(8), {"batch_size": 64, "misclassified": True}
    evaluating.judged(model, data, built("attack", "fgsm"), ball, keepers=[keeper], **how)
    found = np.array(right(keeper))
    assert keeper.arrays["free"].all()
    for place in (1, 4, 8):
        smaller = evaluating.judged(model, data, built("attack", "fgsm"), Budget("linf", place / 8 * eps), **how)
        np.testing.assert_array_equal(found[:, place], smaller.after)
    shares = found.mean(axis=0)
    assert shares[0] == 0.75
    assert 0.02 < shares[8] < shares[4] < 0.7, "the balls tell different things"


def test_going_on_keeps_what_was_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SAVE_EVERY", -1.0)
    whole, saved = Ray(4), list[Any]()

    def save(outcome: Outcome) -> None:
        saved.append((deepcopy(outcome), deepcopy(whole.arrays)))

    how = {"batch_size": 1, "misclassified": True}
    evaluating.judged(Defended(Threshold()), DATA, Raise(), Budget("linf", 0.4), keepers=[whole], save=save, **how)
    assert len(saved) == 3
    for partial, arrays in saved:
        rest = kept_of(outcome=partial, kept={"ray": arrays})
        for name, expected in whole.arrays.items():
            np.testing.assert_array_equal(rest.arrays[name], expected, err_msg=name)
    with pytest.raises(LabError, match=r"ray\.npz: the partial outcome holds other arrays"):
        kept_of(points=5, kept={"ray": saved[0][1]})


def test_random_output_is_refused() -> None:
    with pytest.raises(LabError, match=r"^keep\.ray: expected a model that answers an image always alike"):
        evaluating.judged(Defended(Threshold(), stochastic=True), DATA, Raise(), Budget("linf", 0.4), keepers=[Ray(4)], batch_size=3)
    with pytest.raises(LabError, match=r"^points: expected a whole number >= 1, got 0"):
        Ray(0)


def test_it_is_in_the_evaluations_name() -> None:
    def named(*words: str) -> Any:
        return evaluation_of(*compose("evaluate", words), words)

    assert named("keep=[ray]").config["keep"]["ray"]["points"] == 64
    assert len({named(*words).fingerprint for words in ((), ("keep=[ray]",), ("keep=[ray]", "keep.ray.points=8"))}) == 3
