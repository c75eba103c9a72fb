"""Features that an evaluation keeps: of which images, what they are, and that interruptions and random output change nothing else."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evaluating
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.backbones.base import Backbone, sequence
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.rse import Noise
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation import loop as evaluation
from robustbench_lab.evaluation.keepers.features import Features
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.jobs import evaluate as job
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.storage.files import write_arrays
from robustbench_lab.storage.folders import EvaluationFolder
from robustbench_lab.threats import Budget

LABELS = [0, 1, 0, 0, 1, 1, 0]
PIXELS = [0.1, 0.9, 0.6, 0.2, 0.3, 0.7, 0.4]  # class 1 above .5: the third and the fifth are wrong


@dataclass(frozen=True, kw_only=True)
class Raise(Attack):
    """Every pixel by .08."""

    by: float = 0.08

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        return x + self.by


@pytest.fixture
def data() -> ImageSet:
    """Images of two pixels, of which the second is 1/2."""
    pixels = torch.tensor([[p, 0.5] for p in PIXELS]).view(7, 1, 1, 2)
    return ImageSet(pixels, torch.tensor(LABELS), torch.tensor([40, 3, 17, 8, 0, 5, 6]))


def model_of(*stages: nn.Module, stochastic: bool = False) -> Defended:
    """Features are the two pixels, less 1/2, over 1/4."""
    head = nn.Linear(2, 2)
    head.weight.data, head.bias.data = torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), torch.zeros(2)
    body = sequence(flatten=nn.Flatten(), **{f"stage{i}": stage for i, stage in enumerate(stages)})
    return Defended(Classifier(Normalise([0.5], [0.25]), Backbone(body, nn.Identity(), head)), stochastic=stochastic)


def judged(model: Defended, data: ImageSet, attack: Attack | None = None, **how: Any) -> Outcome:
    return evaluating.judged(model, data, attack or Raise(), Budget("linf", 0.1), **{"batch_size": 3, **how})


def kept_of(model: Defended, data: ImageSet, attack: Attack | None = None, per_class: int = 2, **how: Any) -> SimpleNamespace:
    keeper = Features(per_class)
    judged(model, data, attack, keepers=[keeper], **how)
    return SimpleNamespace(**keeper.arrays)


def test_the_first_images_of_each_class_as_the_last_layer_reads_them(data: ImageSet) -> None:
    kept = kept_of(model_of(), data)
    assert kept.index.tolist() == [40, 3, 17, 0], "the first two of each class, in the order of the split"
    assert kept.label.tolist() == [0, 1, 0, 1]
    assert kept.clean.dtype == kept.attacked.dtype == np.float32
    np.testing.assert_allclose(kept.clean, [[-1.6, 0], [1.6, 0], [0.4, 0], [-0.8, 0]], atol=1e-6)
    moved = [[-1.28, 0.32], [1.92, 0.32], [0.4, 0], [-0.8, 0]]
    np.testing.assert_allclose(kept.attacked, moved, atol=1e-6, err_msg="what is wrong when clean is not attacked")
    assert kept.prediction_clean.tolist() == kept.prediction_attacked.tolist() == [0, 1, 1, 0]
    everything = kept_of(model_of(), data, per_class=500)
    assert everything.index.tolist() == data.ids.tolist()
    assert everything.prediction_attacked.tolist() == [0, 1, 1, 0, 0, 1, 0]


def test_images_that_are_wrong_when_clean_are_kept_as_attacked_where_they_are(data: ImageSet) -> None:
    kept = kept_of(model_of(), data, misclassified=True)
    np.testing.assert_allclose(kept.attacked - kept.clean, np.full((4, 2), 0.32), atol=1e-6)


def test_a_network_without_features_is_an_error(data: ImageSet) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(LabError, match=r"keep\.features: expected a network with features and a last layer, got Sequential"):
        kept_of(Defended(plain), data)


def test_going_on_keeps_what_was_kept(data: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "SAVE_EVERY", -1.0)
    whole, saved = Features(2), list[Any]()

    def save(outcome: Outcome) -> None:
        saved.append((deepcopy(outcome), deepcopy(whole.arrays)))

    judged(model_of(), data, batch_size=2, keepers=[whole], save=save)
    assert saved[0][1]["prediction_clean"].tolist() == [0, 1, -1, -1]
    for partial, arrays in saved:
        rest = kept_of(model_of(), data, Raise(by=0.08), batch_size=3, outcome=partial, kept={"features": arrays})
        for name, expected in whole.arrays.items():
            np.testing.assert_array_equal(getattr(rest, name), expected, err_msg=name)


def test_a_partial_outcome_on_disk_has_them(data: ImageSet, tmp_path: Path) -> None:
    whole, again, other = Features(2), Features(2), Features(3)
    outcome = judged(model_of(), data, keepers=[whole])
    outcome.done[5:] = False
    folder = EvaluationFolder(tmp_path)
    kept = {f"features.{name}": array for name, array in whole.arrays.items()}
    write_arrays(folder.partial, mark=np.array("it"), **outcome.arrays(), **kept)
    for keeper in (again, other):
        keeper.begin(whole.evaluated)
    begun = Outcome.empty(outcome.ids)
    assert job._partial(folder, "it", begun, Protocol(seed=0, batch_size=3, keepers=[again]), {}) is not None
    for name, expected in whole.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], expected, err_msg=name)
    assert job._partial(folder, "it", begun, Protocol(seed=0, batch_size=3, keepers=[other]), {}) is None, "other images are kept now"


def test_of_random_features_one_draw_that_disturbs_nothing_else(data: ImageSet) -> None:
    """The attack changes nothing, so that clean and attacked features differ by their noise alone, of which there is one draw."""
    model = model_of(Noise(0.5), stochastic=True)
    keeper = Features(2)
    with_features = judged(model, data, Raise(by=0.0), draws=3, keepers=[keeper])
    without = judged(model, data, Raise(by=0.0), draws=3)
    np.testing.assert_array_equal(with_features.right, without.right)
    kept, plain = SimpleNamespace(**keeper.arrays), kept_of(model_of(), data, Raise(by=0.0))
    np.testing.assert_array_equal(kept.clean, kept.attacked)
    assert 0.1 < np.abs(kept.clean - plain.clean).mean() < 1


def test_what_is_asked_for_is_in_the_evaluations_name_and_nothing_else_is() -> None:
    def named(*words: str) -> Any:
        return evaluation_of(*compose("evaluate", words), words)

    assert "keep" not in named().config
    assert named("keep=[features]", "keep.features.per_class=5").config["keep"]["features"]["per_class"] == 5
    assert named("keep=[features]").fingerprint != named().fingerprint == named("keep=[]").fingerprint


@pytest.mark.parametrize("defense", ["fm", "pni", "adv_bnn", "rse", "learn2perturb"])
def test_every_kind_of_model_has_features(defense: str, run_objects: Callable[..., Any]) -> None:
    """Read by the head, they give the logits, where nothing is random."""
    from robustbench_lab.evaluation.keepers.features import features_of
    from robustbench_lab.models.noise import noise_layers

    model = run_objects(f"defense={defense}", "backbone=small_resnet")[1]
    x = torch.rand(3, 1, 8, 8)
    features = features_of(model, x, 0)
    assert (features.dtype, features.shape[0]) == (torch.float32, 3)
    torch.testing.assert_close(features_of(model, x, 0), features, msg="the same draw")
    for layer in noise_layers(model) if model.stochastic else ():
        layer.active = False
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model.network.backbone.head(features_of(model, x, 0)), model.network(x))
