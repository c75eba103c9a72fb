"""Every attack of conf/attack keeps every clause of the attack contract.

A class is tried in every ball that it can search; what else differs between its choices, other than by numbers, in one ball of each norm.
Each choice is built by Hydra and searches once. What an attack refuses is no case of a search: it has a test of its own.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from contract_choices import classes, kinds, made, names, others
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.attacks.repeated import Repeated
from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted, Queries
from robustbench_lab.models.defended import Defended, frozen
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import NORMS, Budget

PROBLEMS = [(1, 1, 3), (3, 1, 2), (1, 5, 2), (3, 5, 10)]  # channels, images, classes: each pair of the first two, two classes with either
EPS = (0.0, 0.03, 0.3, 50.0, math.inf)
MIDDLE = 0.3


SHORT = {"steps": 3, "queries": 30, "searches": 2, "generations": 2, "population": 8, "samples": 8, "draws": 20, "eot_samples": 2}
LONGER = {"steps": 250, "queries": 500, "searches": 5, "generations": 10, "population": 40, "samples": 16, "draws": 500, "eot_samples": 2}


# Each pixel once, up, by .1; 20 steps in all; steps so short that they need more than the 250 of LONGER; 5 steps that know of no box.
WEAK_AS_PUBLISHED = {
    "deepfool_deep_defense",
    "jsma_efficient_defenses",
    "carlini_wagner_sfm",
    "carlini_wagner_fm",
    "carlini_wagner_fm_as_published",
}


def shortened(attack: Attack, most: dict[str, int]) -> Attack:
    """The attack with less work: no knob that counts rounds above `most`, in the attacks that it consists of as well."""
    knobs: dict[str, Any] = {name: min(getattr(attack, name), limit) for name, limit in most.items() if hasattr(attack, name)}
    if isinstance(attack, Repeated):
        knobs |= {"attack": shortened(attack.attack, most), "times": 2}
    elif isinstance(attack, WorstOf):
        knobs["attacks"] = {name: shortened(part, most) for name, part in attack.attacks.items()}
    return replace(attack, **knobs)


def attack_of(name: str, most: dict[str, int] = SHORT) -> Attack:
    """A choice of conf/attack, with few steps: the contract does not depend on their number."""
    return shortened(made("attack", name), most)


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(100, 100 + n), 0, "attack")


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) % classes


def ball(norm: str, eps: float) -> Budget:
    """In l0, where pixels are counted, ten times eps of them."""
    return Budget(norm, float(math.ceil(10 * eps)) if norm == "l0" and eps < math.inf else eps)


def search(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
    """As an evaluation does: the model decides, so that images may leave."""
    with frozen(model) as target:
        return attack(Counted(target), x, y, budget, rng)


def refuses(attack: Attack, budget: Budget) -> bool:
    """Whether the attack cannot search this ball, for a reason that names a key."""
    try:
        attack.check(budget)
    except LabError as error:
        return str(error).startswith(("budget.", "attack."))
    return False


def searched(chosen: Sequence[str], eps: Sequence[float]) -> list[tuple[str, str, float]]:
    """The balls that each of the chosen attacks can search: its name, the norm and eps."""
    balls = list(itertools.product(NORMS, eps))
    return [(name, norm, radius) for name in chosen for norm, radius in balls if not refuses(attack_of(name), ball(norm, radius))]


def by_class_and_kind(*eps: float) -> list[tuple[str, str, float]]:
    """Of each class all these balls, of its other kinds one of each norm."""
    return searched(classes("attack"), eps) + searched(others("attack"), [MIDDLE])


def assert_inside(x_adv: Tensor, x: Tensor, budget: Budget) -> None:
    delta = (x_adv.double() - x.double()).flatten(1)
    changed = (x_adv != x).any(dim=1).flatten(1).sum(1).double()
    length = {"linf": delta.abs().amax(1), "l2": delta.square().sum(1).sqrt(), "l0": changed}[budget.norm]
    assert length.max() <= budget.eps + 1e-6
    assert x_adv.min() >= -1e-6
    assert x_adv.max() <= 1 + 1e-6


def snapshot(model: nn.Module) -> list[object]:
    return [
        [(name, module.training) for name, module in model.named_modules()],
        [(name, p.requires_grad, p.grad, p._version) for name, p in model.named_parameters()],
        [(name, b._version) for name, b in model.named_buffers()],
        [(name, value.tolist()) for name, value in model.state_dict().items()],
    ]


@pytest.mark.parametrize(("name", "norm", "eps"), by_class_and_kind(*EPS))
def test_contract(name: str, norm: str, eps: float, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]) -> None:
    attack, budget = attack_of(name), ball(norm, eps)
    for channels, n, count in PROBLEMS:
        model, x, y, rng = tiny_net(channels, count), edge_images(n, channels), labels(n, count), streams(n)
        model.get_submodule("network.backbone.1").train()  # one mode and one flag that differ, to see each restored
        model.get_submodule("network.backbone.4").requires_grad_(False)
        before, x_before, y_before, global_state = snapshot(model), x.clone(), y.clone(), torch.get_rng_state()
        x_adv = search(attack, model, x, y, budget, rng)

        assert_inside(x_adv, x, budget)
        assert x_adv.shape == x.shape
        assert x_adv.dtype == x.dtype
        assert not x_adv.requires_grad
        assert x_adv.grad_fn is None
        assert snapshot(model) == before
        assert torch.equal(x, x_before)
        assert not x.requires_grad
        assert x.grad is None
        assert torch.equal(y, y_before)
        assert torch.equal(torch.get_rng_state(), global_state)
        assert torch.equal(search(attack, model, x, y, budget, streams(n)), x_adv)


@pytest.mark.parametrize("name", names("attack"))
def test_what_an_attack_cannot_search_is_refused(name: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]) -> None:
    attack, x = attack_of(name), edge_images(5)
    least = {"linf": getattr(attack, "alpha", 0), "l0": getattr(attack, "pixels", 0)}
    for norm, eps in itertools.product(NORMS, EPS):
        budget = ball(norm, eps)
        can = norm in attack.norms and budget.eps >= least.get(norm, 0) and not (attack.needs_finite_ball and eps == math.inf)
        assert refuses(attack, budget) is not can
    for norm in NORMS:
        if norm not in attack.norms:
            with pytest.raises(LabError, match=rf"^budget\.norm: expected .* the norms that attack \w+ has, got '{norm}'"):
                attack(tiny_net(), x, labels(5, 3), Budget(norm, math.inf), streams(5))
        elif attack.needs_finite_ball:
            with pytest.raises(LabError, match=r"^budget\.eps: .* needs a finite ball, got inf"):
                attack(tiny_net(), x, labels(5, 3), Budget(norm, math.inf), streams(5))


@pytest.mark.parametrize(("name", "norm", "eps"), searched(kinds("attack"), [MIDDLE]))
def test_model_outside_frozen_is_left_as_it_was(
    name: str, norm: str, eps: float, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]
) -> None:
    """Gradients go to the image only, even where the parameters ask for some."""
    model = tiny_net()
    before = snapshot(model)
    attack_of(name)(model, edge_images(5), labels(5, 3), ball(norm, eps), streams(5))
    assert snapshot(model) == before


WITHOUT_GRADIENTS = [name for name in kinds("attack") if not attack_of(name).needs_gradients]


@pytest.mark.parametrize("name", [name for name in kinds("attack") if name not in WITHOUT_GRADIENTS])
def test_a_model_that_answers_queries_gives_no_gradient(
    name: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]
) -> None:
    attack = attack_of(name)
    for norm in attack.norms:
        with pytest.raises(LabError, match=r"^threat_model\.sees=queries gives no gradient"):
            search(attack, Queries(tiny_net(3, 3), "logits"), edge_images(5, 3), labels(5, 3), ball(norm, MIDDLE), streams(5))


@pytest.mark.parametrize(("name", "norm", "eps"), searched(WITHOUT_GRADIENTS, [MIDDLE]))
def test_an_attack_that_says_so_asks_for_no_gradient(
    name: str, norm: str, eps: float, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]
) -> None:
    """And one that needs labels only does the same when it gets no more."""
    attack, budget, x, y = attack_of(name), ball(norm, eps), edge_images(5, 3), labels(5, 3)
    x_adv = search(attack, tiny_net(3, 3), x, y, budget, streams(5))
    for answers in ("logits",) if attack.needs_logits else ("logits", "labels"):
        assert torch.equal(x_adv, search(attack, Queries(tiny_net(3, 3), answers), x, y, budget, streams(5)))


ONE_BY_ONE = [case for case in by_class_and_kind(0.06, MIDDLE, math.inf) if not attack_of(case[0]).batchwise]


@pytest.mark.parametrize(("name", "norm", "eps"), ONE_BY_ONE)
def test_an_image_has_one_result_whatever_its_batch_and_order(
    name: str, norm: str, eps: float, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]
) -> None:
    """In double precision: in single, a kernel's rounding depends on the batch, and a search may fork on it."""
    attack, budget, n = attack_of(name), ball(norm, eps), 10
    model, x, y, rng = tiny_net(3, 10).double(), edge_images(n, 3).double(), labels(n, 10), streams(n)
    together = search(attack, model, x, y, budget, rng)
    for size, order in ((1, torch.arange(n)), (7, torch.arange(n).flip(0)), (n, torch.randperm(n))):
        parts = [search(attack, model, x[at], y[at], budget, rng[at]) for at in order.split(size)]
        torch.testing.assert_close(torch.cat(parts), together[order], atol=1e-9, rtol=0)


def does_something(attack: Attack, model: nn.Module, x: Tensor, y: Tensor, budget: Budget) -> bool:
    """Whether every image on which the loss has a slope is moved, and most lose some of their true class's probability.

    Of an attack that looks for the nearest misclassified image: whether most are misclassified, and nearer than noise would be.
    """
    with frozen(model) as target:
        x_adv = attack(target, x, y, budget, streams(len(x)))
        if attack.minimal:
            return bool((target(x_adv).argmax(1) != y).float().mean() > 0.8)
        moved = budget.distance(x_adv, x) > (budget.eps / 10 if budget.norm != "l0" else 0)
        if not attack.needs_labels:  # it changes the output, whichever way
            noise, clean = budget.random_start(x, streams(len(x)).fold("noise")), target(x).softmax(1)
            change, by_noise = (kl_divergence(target(images), clean) for images in (x_adv, noise))
            return bool(moved.all()) and bool((change > by_noise).float().mean() > 0.8)
        before, after = (target(images).softmax(1).gather(1, y[:, None])[:, 0] for images in (x, x_adv))
    return bool(moved.all()) and bool((after < before).float().mean() > 0.8)


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


SMALL = {"linf": 0.2, "l2": 0.2, "l0": 1.0}
OF_EACH_CHOICE = [(name, attack_of(name).norms[0]) for name in names("attack")]
OF_EACH_KIND = [(name, norm) for name in kinds("attack") for norm in attack_of(name).norms[1:]]


@pytest.mark.parametrize(("name", "norm"), OF_EACH_CHOICE + OF_EACH_KIND)
def test_attacks_do_something(name: str, norm: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]) -> None:
    weak = name in WEAK_AS_PUBLISHED or name.startswith("random_sampling")  # which is noise itself
    attack, model, x = attack_of(name, SHORT if weak else LONGER), tiny_net(3, 3), edge_images(20, 3)
    budget = Budget(norm, SMALL[norm])
    if attack.minimal:
        budget = ball(norm, math.inf if not attack.needs_finite_ball else 0.5)
    y = model(x).argmax(1)
    if weak:
        assert_inside(search(attack, model, x, y, budget, streams(20)), x, budget)
    else:
        assert does_something(attack, model, x, y, budget)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("broken", [NoOp(), MinimalNoOp(), NoiseOnly(), NoiseWithoutLabels()])
def test_doing_nothing_is_noticed(broken: Attack, norm: str, tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]) -> None:
    model, x = tiny_net(3, 3), edge_images(20, 3)
    assert not does_something(broken, model, x, model(x).argmax(1), Budget(norm, SMALL[norm]))


def test_random_fgsm_needs_a_budget_for_its_random_step() -> None:
    attack = attack_of("random_fgsm")
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
