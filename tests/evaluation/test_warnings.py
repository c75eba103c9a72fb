"""Models that hide their gradients raise the right codes, an honest one raises none."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.panel import Panel, is_distribution, outputs
from robustbench_lab.evaluation.protocol import Protocol
from robustbench_lab.evaluation.warnings import compared, signs
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front
from robustbench_lab.threats import Budget
from robustbench_lab.training.loop import fit

BUDGET = Budget("linf", 0.1)


@pytest.fixture(scope="module")
def honest(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> Iterator[Defended]:
    """A small network trained against PGD on the digits."""
    with torch.random.fork_rng(devices=[]):
        words = ["backbone=small_cnn", "defense=adversarial_training", "defense.attack.steps=3", "defense.attack.relative_step_size=0.5"]
        _, model, defense, recipe = run_objects(*words)
        fit(defense, model, digits[0], replace(recipe, epochs=12), seed=0)
    model._fast.clear()
    yield model.eval().requires_grad_(False)
    model._fast.clear()


@pytest.fixture(scope="module")
def panel(built: Callable[..., Any]) -> Panel:
    return built("panel", "default", "panel.images=60", "panel.queries.queries=300", "panel.random.draws=100")


def codes(panel: Panel, model: Defended, data: ImageSet, **how: Any) -> set[str]:
    facts = panel.run(model, data, BUDGET, Protocol(**{"seed": 0, "batch_size": 60, **how}))
    assert facts["n"] == 60
    assert len(set(facts["ids"])) == 60
    return {sign["code"] for sign in signs(panel, facts)}


class Around(nn.Module):
    """Something before or after an honest network."""

    def __init__(self, model: Defended) -> None:
        super().__init__()
        self.model = model


class Quantised(Around):
    """Sixteen grey levels: the slope is zero wherever there is one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x * 15).round() / 15)


class Saturated(Around):
    """Probabilities so sharp that float32 has no slope left."""

    def forward(self, x: Tensor) -> Tensor:
        return (1000 * self.model(x)).softmax(dim=1)


class Shattered(Around):
    """A ripple too small to see, whose slope is a hundred times that of what lies beneath it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + 0.01 * torch.sin(10_000 * x))


class Noisy(Around):
    def forward(self, x: Tensor) -> Tensor:
        logits = self.model(x)
        return logits + 0.5 * torch.randn_like(logits)


class OnGrid(Around):
    """A slope on the grey levels that images have, and none between them: one step sees it, a random start does not."""

    def forward(self, x: Tensor) -> Tensor:
        on_grid = ((x * 255 - (x * 255).round()).abs() < 1e-3).flatten(1).all(dim=1).float().view(-1, 1, 1, 1)
        return self.model(x.detach() + on_grid * (x - x.detach()))


def test_an_honest_model_raises_nothing(panel: Panel, honest: Defended, digits: tuple[ImageSet, ImageSet]) -> None:
    facts = panel.run(honest, digits[1], BUDGET, Protocol(seed=0, batch_size=60))
    assert signs(panel, facts) == []
    accuracy = facts["accuracy"]
    assert facts["clean_accuracy"] > 0.9
    assert 0.3 < accuracy["longer"] <= accuracy["iterated"] <= accuracy["one_step"] < facts["clean_accuracy"]
    assert accuracy["unbounded"] == 0
    assert "strongest" not in accuracy


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Quantised, {"zero_gradients", "queries_beat_gradients", "unbounded_attack_fails"}),
        (Saturated, {"probabilities", "zero_gradients", "unbounded_attack_fails"}),
        (Shattered, {"queries_beat_gradients"}),
        (Noisy, {"random_output_one_draw"}),
        (OnGrid, {"one_step_beats_iterated", "queries_beat_gradients", "unbounded_attack_fails"}),
    ],
)
def test_canaries(kind: type[Around], expected: set[str], panel: Panel, honest: Defended, digits: tuple[ImageSet, ImageSet]) -> None:
    assert expected <= codes(panel, Defended(kind(honest)).eval(), digits[1])


def test_the_panel_sees_through_a_front(panel: Panel, honest: Defended, digits: tuple[ImageSet, ImageSet]) -> None:
    """The same quantisation, said to be one: the attacker goes around it (BPDA)."""

    class Levels(Front):
        def transform(self, x: Tensor) -> Tensor:
            return (x * 15).round() / 15

    assert codes(panel, Defended(honest.network, [Levels()]).eval(), digits[1]) == set()


def test_a_front_that_hides_its_gradient_raises_codes(panel: Panel, honest: Defended, digits: tuple[ImageSet, ImageSet]) -> None:
    """It says that it is differentiable, and is flat."""

    class Flat(Front):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 15).round() / 15

    class Deaf(Front):
        """Its stand-in looks elsewhere: nothing of the image's own gradient is left."""

        def transform(self, x: Tensor) -> Tensor:
            return x

        def surrogate(self, x: Tensor) -> Tensor:
            return x.flip(2, 3)

    data = digits[1]
    assert {"zero_gradients", "queries_beat_gradients"} <= codes(panel, Defended(honest.network, [Flat()]).eval(), data)
    assert {"queries_beat_gradients"} <= codes(panel, Defended(honest.network, [Deaf()]).eval(), data)


def test_random_output_that_is_averaged_raises_nothing(panel: Panel, honest: Defended, digits: tuple[ImageSet, ImageSet]) -> None:
    model = Defended(Noisy(honest), stochastic=True).eval()
    assert "random_output_one_draw" in codes(panel, model, digits[1])
    assert "random_output_one_draw" not in codes(panel, model, digits[1], eot_samples=4)


def test_outputs(digits_model: Defended, digits: tuple[ImageSet, ImageSet]) -> None:
    data = digits[1].subset(torch.arange(20))
    assert outputs(digits_model, data, 7) == {"probabilities": False, "random_output": False, "zero_gradients": 0.0}
    assert is_distribution(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    assert not is_distribution(torch.tensor([[0.25, 0.75], [1.0, 0.1]]))
    assert not is_distribution(torch.tensor([[-0.25, 1.25]]))


def facts_of(**accuracy: float) -> dict[str, Any]:
    """A sound model's figures, changed; 100 images of which the first so many are right."""
    figures = {
        "one_step": 0.6,
        "iterated": 0.5,
        "longer": 0.5,
        "margin": 0.5,
        "larger": 0.2,
        "unbounded": 0.0,
        "queries": 0.55,
        "random": 0.9,
        **accuracy,
    }
    return {
        "norm": "linf", "eps": 0.1, "n": 100, "probabilities": False, "random_output": False, "eot_samples": 1, "zero_gradients": 0.0,
        "clean_accuracy": 0.95, "accuracy": figures, "ids": list(range(100)),
        "right": {name: [i < round(100 * share) for i in range(100)] for name, share in figures.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (facts_of(), []),
        (facts_of(one_step=0.47), []),  # three images: chance
        (facts_of(one_step=0.46), ["one_step_beats_iterated"]),
        (facts_of(longer=0.54), ["more_steps_help_the_model"]),
        (facts_of(larger=0.54), ["larger_eps_helps_the_model"]),
        (facts_of(unbounded=0.05), []),
        (facts_of(unbounded=0.06), ["unbounded_attack_fails"]),
        (facts_of(queries=0.46), ["queries_beat_gradients"]),
        (facts_of(queries=0.46, longer=0.4), []),  # the longer attack found them too
        (facts_of(queries=0.46, margin=0.4), []),
        (facts_of(random=0.46), ["random_draws_beat_gradients"]),
        (facts_of(strongest=0.4), []),
        (facts_of(strongest=0.39), ["autoattack_far_below_pgd"]),
        ({**facts_of(), "probabilities": True}, ["probabilities"]),
        ({**facts_of(), "zero_gradients": 0.06}, ["zero_gradients"]),
        ({**facts_of(), "random_output": True}, ["random_output_one_draw"]),
        ({**facts_of(), "random_output": True, "eot_samples": 20}, []),
    ],
)
def test_signs_by_hand(facts: dict[str, Any], expected: list[str], panel: Panel) -> None:
    found = signs(panel, facts)
    assert [sign["code"] for sign in found] == expected
    for sign in found:
        assert sign["n"] == 100
        assert "(n = 100)" in sign["message"]
        assert set(sign) - {"code", "message", "n"} or sign["code"] == "probabilities"


@pytest.mark.parametrize(
    ("sees", "attack", "right", "expected"),
    [
        ("defended", "pgd", 0.5, []),
        ("defended", "fgsm", 0.93, []),
        ("defended", "fgsm", 0.94, ["random_draws_beat_the_attack"]),
        ("queries", "square", 0.47, []),
        ("queries", "square", 0.46, ["black_box_beats_white_box"]),
        ("substitute", "pgd", 0.46, ["black_box_beats_white_box"]),
        ("defended", "autoattack", 0.39, ["autoattack_far_below_pgd"]),
        ("defended", "autoattack_plus", 0.4, []),
        ("defended", "pgd100", 0.3, []),
    ],
)
def test_a_record_beside_the_panel(sees: str, attack: str, right: float, expected: list[str], panel: Panel) -> None:
    record = {"config": {"budget": {"norm": "linf", "eps": 0.1}, "threat_model": {"sees": sees}}, "choices": {"attack": attack}}
    robust = {i: i < round(100 * right) for i in range(100)}
    assert [sign["code"] for sign in compared(panel, facts_of(), record, robust)] == expected
    other = {**record, "config": {**record["config"], "budget": {"norm": "linf", "eps": 0.2}}}
    assert compared(panel, facts_of(), other, robust) == []
    assert compared(panel, facts_of(), record, {1000: True}) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("panel.images=-1", "images"),
        ("panel.images=2.5", "images"),
        ("panel.larger=1", "larger"),
        ("panel.tolerance=0.5", "tolerance"),
        ("panel.gap=x", "gap"),
        ("panel.iterated.steps=0", "iterated.steps"),
    ],
)
def test_wrong_knobs(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^panel\.{key}: expected "):
        built("panel", "default", override)
