"""Attacking a split: whose verdict counts, what is refused, and that batches and interruptions change nothing."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import Attack
from robustbench_lab.checks import warnings_of
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation import Counted, Outcome, Queries, attacker_view, check_images, evaluate, predictions
from robustbench_lab.models import Defended, Front, frozen
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget, ThreatModel

BUDGET = Budget("linf", 0.1)


class Threshold(nn.Module):
    """Class 1 where the pixel exceeds .5; `sign=-1` shows an attacker the opposite slope."""

    def __init__(self, sign: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(sign))

    def forward(self, x: Tensor) -> Tensor:
        score = self.gain * (x.flatten(1)[:, 0] - 0.5)
        return torch.stack([-score, score], dim=1)


@dataclass(frozen=True, kw_only=True)
class Scripted(Attack):
    """Returns what it is told, and remembers the pixels that it was given."""

    change: Callable[[Tensor], Tensor]
    seen: list[float] = field(default_factory=list)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        self.seen.extend(x.flatten().tolist())
        return self.change(x)


@pytest.fixture
def data() -> ImageSet:
    """Pixels .1 (right), .45 (right, breakable), .55 (wrong), .9 (right), .4999 (right)."""
    pixels = torch.tensor([0.1, 0.45, 0.55, 0.9, 0.4999]).view(5, 1, 1, 1)
    return ImageSet(pixels, torch.tensor([0, 0, 0, 1, 0]), torch.tensor([40, 3, 17, 8, 0]))


@pytest.fixture
def clean_digits_model(digits_model: Defended) -> Iterator[Defended]:
    yield digits_model
    digits_model._fast.clear()


def judged(model: Defended, data: ImageSet, attack: Attack, view: nn.Module | None = None, **knobs: Any) -> Outcome:
    how = {"seed": 0, "batch_size": 2, **knobs}
    return evaluate(model, view or model, data, attack, how.pop("budget", BUDGET), **how)


def white(sees: str = "defended", answers: str = "logits") -> ThreatModel:
    return ThreatModel(sees, ["seed=1"] if sees in ("twin", "substitute") else [], answers)


# One outcome per image


def test_images_that_are_wrong_already_are_broken_and_not_attacked(data: ImageSet) -> None:
    attack = Scripted(change=lambda x: x + 0.08)
    outcome = judged(Defended(Threshold()), data, attack)
    assert outcome.ids.tolist() == [40, 3, 17, 8, 0]
    assert outcome.clean.tolist() == [True, True, False, True, True]
    assert outcome.robust.tolist() == [True, False, False, True, False]
    assert outcome.done.all()
    assert attack.seen == pytest.approx([0.1, 0.45, 0.9, 0.4999])
    np.testing.assert_allclose(outcome.distance, [0.08, 0.08, np.nan, 0.08, 0.08], atol=1e-6)
    assert outcome.distance.dtype == np.float64


def test_the_attack_is_given_the_images_own_random_numbers(data: ImageSet) -> None:
    keys: list[int] = []

    class Drawing(Attack):
        def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
            keys.extend(rng.keys.tolist())
            return x

    judged(Defended(Threshold()), data, Drawing(), seed=9)
    assert keys == ImageRandom.of(torch.tensor([40, 3, 8, 0]), 9, "attack").keys.tolist()


def test_the_verdict_falls_on_the_defended_model(data: ImageSet, built: Callable[..., Any]) -> None:
    """The source slopes the other way: what raises its loss makes the defended model surer."""
    defended, source, fgsm = Defended(Threshold()), Defended(Threshold(-1.0)), built("attack", "fgsm")
    view = attacker_view(white("twin"), defended, source, undefended=False)
    assert view is source
    assert judged(defended, data, fgsm, view).robust.tolist() == [True, True, False, True, True]
    assert judged(defended, data, fgsm).robust.tolist() == [True, False, False, True, False]


def test_the_model_is_left_as_it_was(data: ImageSet, built: Callable[..., Any]) -> None:
    model = Defended(Threshold()).train()
    judged(model, data, built("attack", "pgd"))
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("overrides", "forward", "backward"),
    [
        ((), 5, 5),
        (("attack.labels=predicted",), 6, 5),
        (("attack.keep=best",), 6, 5),
        (("attack.restarts=3", "attack.keep=best"), 18, 15),
        (("attack.eot_samples=4",), 20, 20),
    ],
)
def test_passes_are_counted(overrides: tuple[str, ...], forward: int, backward: int, data: ImageSet, built: Callable[..., Any]) -> None:
    """Per attacked image, of which there are four: a step is one forward and one backward pass."""
    outcome = judged(Defended(Threshold()), data, built("attack", "pgd", "attack.steps=5", *overrides))
    assert (outcome.forward, outcome.backward) == (4 * forward, 4 * backward)
    assert outcome.seconds > 0


# Batches and interruptions


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batch_size_and_order_change_nothing(
    norm: str, digits: tuple[ImageSet, ImageSet], clean_digits_model: Defended, built: Callable[..., Any]
) -> None:
    data, budget = digits[1].subset(torch.arange(40)), Budget(norm, 0.1 if norm == "linf" else 0.7)
    attack = built("attack", "pgd", "attack.steps=4")
    whole = judged(clean_digits_model, data, attack, batch_size=64, budget=budget)
    assert 5 < whole.robust.sum() < whole.clean.sum() - 5
    for size, order in (
        (1, torch.arange(40)),
        (7, torch.arange(40)),
        (7, torch.randperm(40)),
        (64, torch.arange(40).flip(0)),
    ):
        part = judged(clean_digits_model, data.subset(order), attack, batch_size=size, budget=budget)
        assert part.clean.tolist() == whole.clean[order].tolist()
        assert part.robust.tolist() == whole.robust[order].tolist()
        np.testing.assert_allclose(part.distance, whole.distance[order], atol=1e-5)
        assert (part.forward, part.backward) == (whole.forward, whole.backward)
    assert judged(clean_digits_model, data, attack, batch_size=64, budget=budget, seed=1).distance.tolist() != whole.distance.tolist()


def test_going_on_from_a_partial_outcome(
    digits: tuple[ImageSet, ImageSet],
    clean_digits_model: Defended,
    built: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("robustbench_lab.evaluation.SAVE_EVERY", -1.0)
    data, attack, saved = digits[1].subset(torch.arange(30)), built("attack", "pgd", "attack.steps=3"), list[Outcome]()

    def save(outcome: Outcome) -> None:
        saved.append(deepcopy(outcome))

    whole = judged(clean_digits_model, data, attack, batch_size=7, save=save)
    assert [int(outcome.done.sum()) for outcome in saved] == [7, 14, 21, 28]
    assert np.isnan(saved[1].distance[14:]).all()
    assert not saved[1].robust[14:].any()
    for partial in (saved[1], Outcome.empty(data.ids.numpy()), whole):
        seconds = partial.seconds
        rest = judged(clean_digits_model, data, attack, batch_size=5, outcome=partial)
        for name in ("ids", "clean", "robust", "done"):
            assert np.array_equal(getattr(rest, name), getattr(whole, name)), name
        np.testing.assert_allclose(rest.distance, whole.distance, atol=1e-6)
        assert (rest.forward, rest.backward) == (whole.forward, whole.backward)
        assert rest.seconds >= seconds


# A failed attack is an error, never a score


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x + 0.1001, r"attack Scripted left the budget: linf distance 0\.1001"),
        (lambda x: x * torch.nan, r"attack Scripted returned pixels that are not finite"),
        (
            lambda x: x.expand(-1, 3, -1, -1),
            r"attack Scripted returned images of shape \(2, 3, 1, 1\), expected \(2, 1, 1, 1\)",
        ),
        (lambda x: x[:1], r"attack Scripted returned images of shape \(1, 1, 1, 1\)"),
    ],
)
def test_a_failed_attack(change: Callable[[Tensor], Tensor], message: str, data: ImageSet) -> None:
    with pytest.raises(LabError, match=message):
        judged(Defended(Threshold()), data, Scripted(change=change))


def test_pixels_outside_the_box() -> None:
    x = torch.tensor([0.95, 0.02]).view(2, 1, 1, 1)
    check_images(x.clamp(0.01, 0.99), x, BUDGET, "Any")
    with pytest.raises(LabError, match=r"attack Any left the budget: .*pixels .* to 1\.0"):
        check_images(x + 0.06, x, BUDGET, "Any")
    with pytest.raises(LabError, match=r"attack Any left the budget: .*pixels -0\.0"):
        check_images(x - 0.03, x, BUDGET, "Any")


def test_a_gradient_that_is_not_finite_is_an_error(data: ImageSet, built: Callable[..., Any]) -> None:
    """The root of a number that is zero forward has no slope: an attack that stood still would call it robust."""

    class Masked(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (x - x.detach()).square().flatten(1).sum(1, keepdim=True).sqrt()

    model = Defended(Masked())
    for overrides in ((), ("attack.keep=best",), ("attack.restarts=2", "attack.keep=best")):
        with pytest.raises(LabError, match="attack PGD returned pixels that are not finite"):
            judged(model, data, built("attack", "pgd", *overrides))


def test_a_model_whose_output_is_not_finite(data: ImageSet) -> None:
    class Bad(Threshold):
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits.masked_fill(x.flatten(1) > 0.89, torch.nan)

    with pytest.raises(LabError, match=r"output is not finite for 1 of 2 images of a batch, the first at position 1"):
        judged(Defended(Bad()), data, Scripted(change=lambda x: x))
    assert predictions(Defended(Bad()), torch.tensor([0.3, 0.7]).view(2, 1, 1, 1)).tolist() == [0, 1]


def test_a_budget_that_the_attack_cannot_search(data: ImageSet, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^budget\.norm"):
        judged(Defended(Threshold()), data, built("attack", "random_fgsm"), budget=Budget("l2", 0.5))


# Views


class Half(Front):
    def transform(self, x: Tensor) -> Tensor:
        return x / 2


class Learned(Half):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize("answers", ["logits", "labels"])
def test_queries_answer_but_give_no_gradient(answers: str, data: ImageSet, built: Callable[..., Any]) -> None:
    model = Defended(Threshold())
    view = attacker_view(white("queries", answers), model, None, undefended=True)
    assert isinstance(view, Queries)
    x = torch.tensor([0.1, 0.9]).view(2, 1, 1, 1)
    expected = model(x) if answers == "logits" else torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert torch.equal(view(x), expected)
    with pytest.raises(LabError, match=r"^threat_model\.sees=queries gives no gradient"):
        judged(model, data, built("attack", "fgsm"), view)
    assert judged(model, data, Scripted(change=lambda x: x), view).robust.sum() == 4
    with frozen(view) as target:
        counted = Counted(target)
        with torch.no_grad():
            counted(x)
    assert (counted.forward_images, counted.backward_images) == (2, 0)
    assert view.own_loss is model.own_loss


def test_views() -> None:
    plain, source = Defended(Threshold()), Defended(Threshold())
    fronted, learned = Defended(Threshold(), [Half()]), Defended(Threshold(), [Learned()])
    for model in (plain, fronted, learned):
        assert attacker_view(white("defended"), model, None, undefended=False) is model
        assert attacker_view(white("substitute"), model, source, undefended=False) is source
    assert attacker_view(white("learned"), plain, None, undefended=True) is plain
    without = attacker_view(white("learned"), fronted, None, undefended=False)
    assert isinstance(without, Defended)
    assert not len(without.fronts)
    assert without.network is fronted.network
    for model in (plain, learned):
        with pytest.raises(LabError, match=r"^threat_model\.sees=learned hides the fixed pre-processing, but"):
            attacker_view(white("learned"), model, None, undefended=False)


def test_the_white_box_goes_through_the_front(built: Callable[..., Any]) -> None:
    """Half(.9) = .45 counts as class 0: the verdict needs the front, and so does the slope."""
    data = ImageSet(torch.full((1, 1, 1, 1), 0.9), torch.tensor([0]), torch.tensor([0]))
    model = Defended(Threshold(), [Half()])
    outcome = judged(model, data, built("attack", "fgsm"))
    assert outcome.clean.all()
    assert outcome.robust.all()  # Half(1.0) = .5 is not above the threshold
    assert not judged(Defended(Threshold()), data, built("attack", "fgsm")).clean.any()


# Warnings


def record(accuracy: float = 0.9, sees: str = "defended", source: str | None = None, **attack: int) -> dict[str, Any]:
    return {
        "clean_accuracy": accuracy,
        "config": {"attack": attack, "threat_model": {"sees": sees}},
        "run": {"fingerprint": "this"},
        "source": None if source is None else {"fingerprint": source},
    }


@pytest.mark.parametrize(
    ("facts", "stochastic", "codes"),
    [
        (record(), False, []),
        (record(0.1), False, ["collapsed"]),
        (record(0.11), False, []),
        (record(eot_samples=1), True, ["random_output_one_draw"]),
        (record(), True, ["random_output_one_draw"]),
        (record(eot_samples=8), True, []),
        (record(sees="twin", source="other"), False, ["transfer_only"]),
        (record(sees="twin", source="this"), False, []),  # the twin of an undefended run is that run: the attacker saw it
        (record(0.05, sees="substitute", source="other"), False, ["collapsed", "transfer_only"]),
        (record(sees="queries"), False, []),
    ],
)
def test_warnings(facts: dict[str, Any], stochastic: bool, codes: list[str]) -> None:
    found = warnings_of(facts, 10, stochastic)
    assert [warning["code"] for warning in found] == codes
    assert all(warning["message"] and len(warning) > 2 for warning in found)
