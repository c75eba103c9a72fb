"""Independent runs of one attack: what an evaluation tells of each, and the verdict over all."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import evaluating
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.repeated import Repeated
from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.keepers.examples import Examples
from robustbench_lab.evaluation.outcome import Outcome
from robustbench_lab.evaluation.record import Circumstances, record_of
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of
from robustbench_lab.threats import Budget

BUDGET = Budget("linf", 0.1)


class Threshold(nn.Module):
    """Class 1 where the pixel, and noise of so much, exceed .5."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        score = self.gain * (x.flatten(1)[:, 0] - 0.5)
        score = score + self.noise * torch.randn_like(score) if self.noise else score
        return torch.stack([-score, score], dim=1)


@dataclass(frozen=True, kw_only=True)
class Shifts(Attack):
    """Adds the next of some numbers at each call, and remembers the pixels that it was given."""

    by: tuple[float, ...]
    seen: list[list[float]] = field(default_factory=list)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        self.seen.append([round(pixel, 4) for pixel in x.flatten().tolist()])
        return x + self.by[(len(self.seen) - 1) % len(self.by)]


@pytest.fixture
def data() -> ImageSet:
    """Pixels .1 (right), .45 (right), .55 (wrong), .9 (right), .49 (right)."""
    pixels = torch.tensor([0.1, 0.45, 0.55, 0.9, 0.49]).view(5, 1, 1, 1)
    return ImageSet(pixels, torch.tensor([0, 0, 0, 1, 0]), torch.tensor([40, 3, 17, 8, 0]))


def judged(data: ImageSet, attack: Attack, noise: float = 0.0, **how: Any) -> Outcome:
    model = Defended(Threshold(noise), stochastic=noise > 0)
    return evaluating.judged(model, data, attack, BUDGET, **({"batch_size": 5} | how))


def test_each_run_attacks_every_image_that_is_right_and_any_breaks_it(data: ImageSet) -> None:
    """+.08 breaks .45 and .49, +.02 breaks .49 alone, -.02 nothing: 2, 3 and 4 of 5 stay right."""
    attack = Repeated(attack=Shifts(by=(0.08, 0.02, -0.02)), times=3)
    examples = Examples()
    outcome = judged(data, attack, keepers=[examples])
    assert attack.attack.seen == [[0.1, 0.45, 0.9, 0.49]] * 3
    assert outcome.runs.tolist() == [[1, 0, 0, 1, 0], [1, 1, 0, 1, 0], [1, 1, 0, 1, 1]]
    assert outcome.robust.tolist() == [True, False, False, True, False]
    assert outcome.broken_by.tolist() == [-1, 0, -1, -1, 0]
    assert outcome.survivors() == [2, 2, 2]
    np.testing.assert_allclose(outcome.distance, [0.08, 0.08, np.nan, 0.08, 0.08], atol=1e-6)
    np.testing.assert_allclose(examples.arrays["delta"].flatten().astype(float), [-0.02, 0.08, 0, -0.02, 0.08], atol=1e-4)
    assert examples.arrays["prediction"].tolist() == [0, 1, 1, 1, 1]


def test_a_later_run_that_hurts_more_is_the_verdict(data: ImageSet) -> None:
    outcome = judged(data, Repeated(attack=Shifts(by=(0.02, 0.08)), times=2))
    assert outcome.runs.mean(axis=1).tolist() == pytest.approx([0.6, 0.4])
    assert outcome.broken_by.tolist() == [-1, 1, -1, -1, 0]
    assert outcome.distance[1] == pytest.approx(0.08)
    assert outcome.distance[4] == pytest.approx(0.02)


def test_other_attacks_have_no_runs(data: ImageSet) -> None:
    """And what they say of the images stays as it was: the second attack sees survivors only."""
    both = WorstOf(attacks={"one": Shifts(by=(0.08,)), "two": Shifts(by=(0.02,))})
    outcome = judged(data, both)
    assert outcome.runs.shape == (0, 5)
    assert both.attacks["two"].seen == [[0.1, 0.9]]  # type: ignore[attr-defined]
    nested = WorstOf(attacks={"twice": Repeated(attack=Shifts(by=(0.08, 0.02)), times=2)})
    assert [name for name, _ in nested.stages()] == ["twice.run_1", "twice.run_2"]
    assert judged(data, nested).runs.shape == (0, 5)


def test_runs_draw_other_random_numbers(data: ImageSet) -> None:
    keys = []

    class Drawing(Attack):
        def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
            keys.append(tuple(rng.keys.tolist()))
            return x

    judged(data, Repeated(attack=Drawing(), times=5))
    assert len(set(keys)) == 5


def test_runs_do_not_depend_on_batches_and_interruptions(data: ImageSet, built: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("robustbench_lab.evaluation.loop.SAVE_EVERY", -1.0)
    attack, saved = Repeated(attack=built("attack", "random_sampling", "attack.draws=2"), times=4), list[Outcome]()
    whole = judged(data, attack)
    assert 0 < whole.runs[:, 4].sum() < 4
    judged(data, attack, batch_size=2, save=lambda outcome: saved.append(deepcopy(outcome)))
    assert not saved[0].runs[:, 2:].any()
    for partial in saved:
        assert judged(data, attack, batch_size=1, outcome=partial).runs.tolist() == whole.runs.tolist()


def test_of_random_output_a_run_has_the_mean_over_draws(data: ImageSet) -> None:
    """Each run's share lies at or above the verdict's, which is the least; and never above that of the clean image, though -.05
    makes class 0 surer."""
    outcome = judged(data, Repeated(attack=Shifts(by=(-0.05, 0.05, 0.0)), times=3), noise=0.1, draws=40)
    assert ((outcome.runs > 0) & (outcome.runs < 1)).any()
    np.testing.assert_array_equal(outcome.runs.min(axis=0), outcome.right)
    assert (outcome.runs <= outcome.clean_right).all()
    assert (outcome.runs[1] < outcome.runs[0] - 0.1).any()


def record_with(outcome: Outcome) -> dict[str, Any]:
    cfg, choices = compose("evaluate", ["attack=pgd_fm_five"])
    return record_of(
        evaluation_of(cfg, choices, ["attack=pgd_fm_five"]), outcome, ["a", "b"], {"run": "digest"}, Circumstances(2, False, 1, "cpu")
    )


def test_a_record_tells_each_run(data: ImageSet) -> None:
    record = record_with(judged(data, Repeated(attack=Shifts(by=(0.02, 0.08)), times=2)))
    assert record["runs"] == {"accuracies": pytest.approx([0.6, 0.4])}
    assert record["robust_accuracy"] == pytest.approx(0.4)
    assert "runs" not in record_with(judged(data, WorstOf(attacks={"a": Shifts(by=(0.02,)), "b": Shifts(by=(0.08,))})))


def test_it_needs_what_its_attack_needs(built: Callable[..., Any]) -> None:
    runs = Repeated(attack=built("attack", "random_fgsm"), times=2)
    assert (runs.norms, runs.needs_finite_ball, runs.needs_gradients, runs.separately) == (("linf",), True, True, True)
    with pytest.raises(LabError, match=r"^attack\.alpha"):
        runs.check(Budget("linf", 0.01))
    with pytest.raises(LabError, match="attack_misclassified: expected false for a list of attacks"):
        judged(ImageSet(torch.zeros(1, 1, 1, 1), torch.tensor([0]), torch.tensor([0])), runs, misclassified=True)


@pytest.mark.parametrize("times", [1, 0, 2.5, True, None])
def test_a_wrong_number_of_runs(times: Any, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^times: expected a whole number >= 2"):
        Repeated(attack=built("attack", "pgd"), times=times)


def test_one_attack_and_no_list(built: Callable[..., Any]) -> None:
    for wrong in (WorstOf(attacks={"one": built("attack", "pgd")}), Repeated(attack=built("attack", "pgd"), times=2)):
        with pytest.raises(LabError, match=r"^attack: expected one attack, not a list"):
            Repeated(attack=wrong, times=2)
    with pytest.raises(LabError, match=r"^attack: expected an Attack, got None"):
        Repeated(attack=None, times=2)  # type: ignore[arg-type]


def test_the_papers_five_runs(built: Callable[..., Any]) -> None:
    five, one = built("attack", "pgd_fm_five"), built("attack", "pgd_fm")
    assert [stage for _, stage in five.stages()] == [one] * 5
    with pytest.raises(LabError, match=r"^attack\.times: expected a whole number >= 2"):
        built("attack", "pgd_fm_five", "attack.times=1")


def test_the_lists_of_losses(built: Callable[..., Any]) -> None:
    losses = {name: stage.loss for name, stage in built("attack", "pgd_fm_losses").stages()}
    assert losses == {"own": "own", "ce": "ce", "ce_scaled": "ce_scaled", "margin": "margin", "half_margin": "half_margin"}
    del losses["half_margin"]  # which is for distances
    names = [name for name, _ in built("attack", "strongest").stages()]
    assert names == [*losses, *(name for name, _ in built("attack", "autoattack").stages())]
    strongest = dict(built("attack", "strongest").stages())
    assert {name: strongest[name].loss for name in losses} == losses
    assert {(strongest[name].steps, strongest[name].random_start) for name in losses} == {(40, "uniform")}
    assert all(stage == built("attack", "autoattack").attacks[name] for name, stage in strongest.items() if name not in losses)
    for_fm = dict(built("attack", "strongest_fm").stages())
    assert list(for_fm) == ["own", "ce", "ce_scaled", "margin", "half_margin", *list(strongest)[4:]]
    assert (for_fm["half_margin"].loss, for_fm.pop("half_margin").steps) == ("half_margin", 40)
    assert for_fm == strongest


def test_a_list_keeps_what_its_attacks_say_of_their_batch(built: Callable[..., Any]) -> None:
    """One of its attacks may need the whole split at once."""
    whole = built("attack", "minimal_fgsm_as_published")
    assert (whole.whole_split, whole.batchwise) == (True, True)
    for several in (Repeated(attack=whole, times=2), WorstOf(attacks={"fgsm": built("attack", "fgsm"), "whole": whole})):
        assert (several.whole_split, several.batchwise) == (True, True)
    assert not Repeated(attack=built("attack", "pgd"), times=2).whole_split
