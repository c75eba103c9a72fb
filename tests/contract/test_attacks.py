"""Every attack of conf/attack keeps every clause of the attack contract (robustbench_lab/contract/attacks.py).

A class is tried in every ball that it can search; what else differs between its choices, other than by numbers, in one ball of each norm.
Each choice is built by Hydra and searches once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from contract_choices import made, names, tried
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.contract import Clause
from robustbench_lab.contract.attacks import SHORT, SMALL, clauses, does_something, shortened
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import NORMS, Budget

# Each pixel once, up, by .1; 20 steps in all; steps so short that they need more than 250; 5 steps that know of no box; noise itself.
WEAK_AS_PUBLISHED = {
    "deepfool_deep_defense",
    "jsma_efficient_defenses",
    "carlini_wagner_sfm",
    "carlini_wagner_fm",
    "carlini_wagner_fm_as_published",
    *(name for name in names("attack") if name.startswith("random_sampling")),
}


@pytest.mark.parametrize(
    "clause", [case for name in names("attack") for case in tried("attack", name, clauses(name, weak=name in WEAK_AS_PUBLISHED))]
)
def test_contract(clause: Clause) -> None:
    clause()


@dataclass(frozen=True, kw_only=True)
class NoOp(Attack):
    """What a broken attack looks like: it keeps the whole contract but the point of it."""

    norms: ClassVar[tuple[str, ...]] = NORMS
    needs_finite_ball: ClassVar[bool] = False

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        return x.clone()


@dataclass(frozen=True, kw_only=True)
class NoiseOnly(Attack):
    norms: ClassVar[tuple[str, ...]] = NORMS
    needs_finite_ball: ClassVar[bool] = False

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        return budget.random_start(x, rng)


@dataclass(frozen=True, kw_only=True)
class MinimalNoOp(NoOp):
    minimal: ClassVar[bool] = True


@dataclass(frozen=True, kw_only=True)
class NoiseWithoutLabels(NoiseOnly):
    needs_labels: ClassVar[bool] = False


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("broken", [NoOp(), MinimalNoOp(), NoiseOnly(), NoiseWithoutLabels()])
def test_doing_nothing_is_noticed(broken: Attack, norm: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]) -> None:
    model, x = tiny_net(3, 3), edge_images(20, 3)
    assert not does_something(broken, model, x, model(x).argmax(1), Budget(norm, SMALL[norm]))


def test_random_fgsm_needs_a_budget_for_its_random_step() -> None:
    attack = shortened(made("attack", "random_fgsm"), SHORT)
    attack.check(Budget("linf", 0.05))
    with pytest.raises(LabError, match=r"^attack\.alpha: .*0\.05.*budget\.eps = 0\.03"):
        attack.check(Budget("linf", 0.03))


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("pgd", "attack.steps=0", "steps"),
        ("pgd", "attack.steps=2.5", "steps"),
        ("pgd", "attack.restarts=0", "restarts"),
        ("pgd", "attack.eot_samples=0", "eot_samples"),
        ("pgd", "attack.loss=hinge", "loss"),
        ("pgd", "attack.labels=false", "labels"),
        ("pgd", "attack.step_size=0.1", "step_size"),  # with relative_step_size: both
        ("pgd", "attack.relative_step_size=null", "step_size"),  # neither
        ("pgd", "attack.relative_step_size=-1", "relative_step_size"),
        ("pgd", "attack.random_start=normal", "random_start"),
        ("pgd", "attack.random_start=gaussian", "start_scale"),
        ("pgd", "attack.start_scale=0.1", "start_scale"),
        ("pgd", "attack.keep=middle", "keep"),
        ("random_fgsm", "attack.alpha=0", "alpha"),
        ("fgsm", "attack.eot_samples=true", "eot_samples"),
    ],
)
def test_a_wrong_knob_fails_when_built(name: str, override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", name, override)


def test_restarts_without_a_random_start_are_refused(built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^attack\.restarts: "):
        built("attack", "pgd", "attack.random_start=none", "attack.restarts=2")
