"""Metrics within an evaluation: which images count, by hand; and that they survive an interruption."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from evaluating import judged
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.asked import protocol_of
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.metrics.base import Measure, Seen
from robustbench_lab.metrics.empirical_robustness import EmpiricalRobustness
from robustbench_lab.metrics.loss_sensitivity import LossSensitivity
from robustbench_lab.metrics.nearest_neighbour import TrainingSetDistance
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import CONF, compose, plain
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.threats import Budget

NAMES = sorted(path.stem for path in (CONF / "metric").glob("*.yaml"))


class Threshold(nn.Module):
    """Images [1, 1, 2]: class 1 where x1 > 1/2; logits (0, 4 (x1 - 1/2))."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(4.0))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.zeros(len(x)), self.gain * (x[:, 0, 0, 0] - 0.5)], dim=1)


class Swap(Attack):
    """Raises x1 to .6, but leaves bright images (x2 = 1) as they are."""

    minimal, needs_finite_ball = True, False

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        moved = x.clone()
        moved[:, 0, 0, 0] = 0.6
        return torch.where(x[:, :, :, 1:] == 1, x, moved)


@pytest.fixture
def data() -> ImageSet:
    """Broken by .3 and by .6; left alone; wrong when clean."""
    x = torch.tensor([[0.3, 0.4], [0.0, 0.8], [0.2, 1.0], [0.9, 0.0]]).view(4, 1, 1, 2)
    return ImageSet(x, torch.zeros(4, dtype=torch.int64), torch.arange(4))


def measured(data: ImageSet, *measures: Measure, **more: Any) -> np.ndarray:
    model, train = Defended(Threshold()).eval(), torch.tensor([[0.6, 0.1], [0.0, 0.0]]).view(2, 1, 1, 2)
    budget = Budget("linf", math.inf)
    named = {str(number): measure for number, measure in enumerate(measures)}
    return judged(model, data, Swap(), budget, batch_size=3, measures=named, train=train, **more).metrics


def test_which_images_count(data: ImageSet) -> None:
    """Perturbations (.3, 0) of (.3, .4), length .5; (.6, 0) of (0, .8). In linf: .3 / .4 and .6 / .8."""
    l2, linf = measured(data, EmpiricalRobustness(as_published=False), EmpiricalRobustness(as_published=True))
    np.testing.assert_allclose(l2, [0.6, 0.75, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(linf, [0.75, 0.75, np.nan, np.nan], atol=1e-6)


def test_distances_are_those_of_attacked_images(data: ImageSet) -> None:
    """(.6, .4) and (.6, .8) are .3 and .7 from the first training image; squared, over |x| = .5 and .8."""
    plain, published = measured(data, TrainingSetDistance(as_published=False), TrainingSetDistance(as_published=True))
    np.testing.assert_allclose(plain, [0.3, 0.7, np.nan, np.nan], atol=1e-6)
    np.testing.assert_allclose(published, [0.09 / 0.5, 0.49 / 0.8, np.nan, np.nan], atol=1e-6)


def test_as_published_images_that_were_wrong_count_when_their_prediction_changes() -> None:
    """(.9, 0) of class 0 is wrong and stays so at .6; (.2, .4) of class 1 is wrong and flips to right: .4 / .4 in linf."""
    x = torch.tensor([[0.9, 0.0], [0.2, 0.4]]).view(2, 1, 1, 2)
    wrong = ImageSet(x, torch.tensor([0, 1]), torch.arange(2))
    plain, published = measured(wrong, EmpiricalRobustness(as_published=False), EmpiricalRobustness(as_published=True), misclassified=True)
    np.testing.assert_allclose(plain, [np.nan, np.nan])
    np.testing.assert_allclose(published, [np.nan, 1.0], atol=1e-6)
    assert np.isnan(measured(wrong, EmpiricalRobustness(as_published=True))).all()


def test_the_sensitivity_is_of_all_clean_images(data: ImageSet) -> None:
    """d loss / d x1 = 4 s(4 (x1 - 1/2)) for label 0; d p / d x1 = 4 s (1 - s)."""
    plain, published = measured(data, LossSensitivity(as_published=False), LossSensitivity(as_published=True))
    share = 1 / (1 + np.exp(-4 * (np.array([0.3, 0.0, 0.2, 0.9]) - 0.5)))
    np.testing.assert_allclose(plain, 4 * share, rtol=1e-5)
    np.testing.assert_allclose(published, 4 * share * (1 - share), rtol=1e-5)


def test_an_interrupted_evaluation_measures_the_same(data: ImageSet) -> None:
    measures = (EmpiricalRobustness(as_published=False), LossSensitivity(as_published=False))
    whole = measured(data, *measures)
    partial = Outcome.empty(data.ids.numpy(), 1, 2)
    partial.done[:2], partial.metrics[:, :2] = True, whole[:, :2]
    np.testing.assert_array_equal(measured(data, *measures, outcome=partial), whole)


@pytest.mark.parametrize("name", NAMES)
def test_every_file_builds_the_variant_that_it_is_named_after(name: str, built: Callable[..., Any]) -> None:
    (key, entry), *others = plain(compose("evaluate", [f"metric=[{name}]"])[0], "metric")["metric"].items()
    assert (key, others) == (name, [])
    measure = build(entry, f"metric.{name}", Measure)
    assert isinstance(measure, Measure)
    assert measure.as_published == name.endswith("_as_published")


MINIMAL = {"minimal_fgsm", "deepfool", "carlini_wagner"}
ATTACKS = MINIMAL | {"minimal_fgsm_as_published", "fgsm", "random_sampling"}


@pytest.mark.parametrize(
    ("metric", "attacks"),
    [
        ("empirical_robustness", MINIMAL),
        ("perturbation_norm", MINIMAL),
        ("empirical_robustness_as_published", MINIMAL | {"minimal_fgsm_as_published"}),
        ("training_set_distance_as_published", MINIMAL | {"minimal_fgsm_as_published"}),
        ("training_set_distance", ATTACKS),
        ("loss_sensitivity_as_published", ATTACKS),
    ],
)
def test_metrics_of_the_smallest_perturbation_take_attacks_that_look_for_it(
    metric: str, attacks: set[str], built: Callable[..., Any]
) -> None:
    """As published, also the authors' own, which does not find it."""
    words = [f"metric=[{metric}]"]
    evaluation = evaluation_of(*compose("evaluate", words), words)

    def taken(attack: str) -> bool:
        with suppress(LabError):
            protocol = protocol_of(evaluation.config, batch_size=1)
            protocol.check(built("attack", attack))
            return list(protocol.measures) == [metric]
        return False

    assert {attack for attack in ATTACKS if taken(attack)} == attacks


def test_nothing_broken_is_no_error(data: ImageSet) -> None:
    none = torch.zeros(4, dtype=torch.bool)
    seen = Seen(Threshold(), data.images, data.images, data.labels, none, none, data.images)
    for measure in (EmpiricalRobustness(as_published=False), TrainingSetDistance(as_published=True)):
        assert measure(seen).isnan().all()
