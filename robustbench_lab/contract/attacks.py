"""The clauses of an attack (attacks.base.Attack), each in every ball that the attack can search.

Attacks are shortened: the contract does not depend on how many steps they take. What an attack refuses is no case of a search: it has a
clause of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.attacks.gradients import kl_divergence
from robustbench_lab.attacks.repeated import Repeated
from robustbench_lab.attacks.worst_of import WorstOf
from robustbench_lab.contract.clause import Clause
from robustbench_lab.contract.trying import (
    clause_of,
    demand,
    demand_unchanged,
    edge_images,
    labels,
    refusal,
    refuses_numbers_that_are_not_finite,
    snapshot,
    streams,
    tiny_net,
)
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted, Queries
from robustbench_lab.models.defended import frozen
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.build import build
from robustbench_lab.threats import NORMS, Budget

PROBLEMS = [(1, 1, 3), (3, 1, 2), (1, 5, 2), (3, 5, 10)]  # channels, images, classes: each pair of the first two, two classes with either
EPS = (0.0, 0.03, 0.3, 50.0, math.inf)
MIDDLE = 0.3  # where a kind that differs from its class's first is tried
BATCHED_EPS = (0.06, MIDDLE, math.inf)
SMALL = {"linf": 0.2, "l2": 0.2, "l0": 1.0}

SHORT = {"steps": 3, "queries": 30, "searches": 2, "generations": 2, "population": 8, "samples": 8, "draws": 20, "eot_samples": 2}
LONGER = {"steps": 250, "queries": 500, "searches": 5, "generations": 10, "population": 40, "samples": 16, "draws": 500, "eot_samples": 2}


def clauses(choice: str, words: Sequence[str] = (), weak: bool = False) -> Iterator[Clause]:
    """weak: an attack that its authors made too weak, or that is noise: then it need not find anything."""
    config, clause = alone("attack", choice, words), clause_of(f"attack={choice}")
    attack: Attack = build(config, "attack", Attack)
    short = shortened(attack, SHORT)

    def balls(*eps: float) -> list[tuple[str, float]]:
        return [(norm, radius) for norm, radius in itertools.product(NORMS, eps) if not refuses(short, ball(norm, radius))]

    yield clause(refuses_what_it_cannot_search, short)
    for norm, eps in balls(*EPS):
        yield clause(
            stays_inside_and_leaves_all_as_it_was,
            *(short, ball(norm, eps)),
            case=f"{norm}-{eps}",
            depends_on="kind" if eps == MIDDLE else "class",
        )
    for norm, eps in balls(MIDDLE):
        yield clause(leaves_a_model_that_is_not_frozen, short, ball(norm, eps), case=norm, depends_on="kind")
        if not attack.needs_gradients:
            yield clause(asks_for_no_gradient, short, ball(norm, eps), case=norm, depends_on="kind")
    if attack.needs_gradients:
        yield clause(is_told_that_queries_give_no_gradient, short, depends_on="kind")
    if not attack.batchwise:
        for norm, eps in balls(*BATCHED_EPS):
            yield clause(
                has_one_result_whatever_the_batch,
                *(short, ball(norm, eps)),
                case=f"{norm}-{eps}",
                depends_on="kind" if eps == MIDDLE else "class",
            )
    for norm in attack.norms:
        depends_on = "choice" if norm == attack.norms[0] else "kind"
        if weak:
            yield clause(searches_and_stays_inside, short, norm, case=norm, depends_on=depends_on)
        else:
            yield clause(breaks_images, shortened(attack, LONGER), norm, case=norm, depends_on=depends_on)
    yield clause(refuses_numbers_that_are_not_finite, "attack", config, Attack, depends_on="kind")


def shortened(attack: Attack, most: dict[str, int]) -> Attack:
    """The attack with less work: no knob that counts rounds above `most`, in the attacks that it consists of as well."""
    knobs: dict[str, Any] = {name: min(getattr(attack, name), limit) for name, limit in most.items() if hasattr(attack, name)}
    if isinstance(attack, Repeated):
        knobs |= {"attack": shortened(attack.attack, most), "times": 2}
    elif isinstance(attack, WorstOf):
        knobs["attacks"] = {name: shortened(part, most) for name, part in attack.attacks.items()}
    return replace(attack, **knobs)


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


def demand_inside(x_adv: Tensor, x: Tensor, budget: Budget) -> None:
    delta = (x_adv.double() - x.double()).flatten(1)
    changed = (x_adv != x).any(dim=1).flatten(1).sum(1).double()
    length = {"linf": delta.abs().amax(1), "l2": delta.square().sum(1).sqrt(), "l0": changed}[budget.norm]
    farthest, low, high = (bound.item() for bound in (length.max(), x_adv.min(), x_adv.max()))
    demand(farthest <= budget.eps + 1e-6, f"an image moved by {farthest:g} in {budget.norm}, farther than eps = {budget.eps:g}")
    demand(low >= -1e-6 and high <= 1 + 1e-6, f"pixels must stay in [0, 1], got {low:g} to {high:g}")


def refuses_what_it_cannot_search(attack: Attack) -> None:
    """A ball of a norm that is not in `norms`, an infinite one with `needs_finite_ball`, and one smaller than a fixed step are refused as
    LabError that names the key, before anything is searched; no other ball is."""
    x = edge_images(5)
    least = {"linf": getattr(attack, "alpha", 0), "l0": getattr(attack, "pixels", 0)}
    for norm, eps in itertools.product(NORMS, EPS):
        budget = ball(norm, eps)
        can = norm in attack.norms and budget.eps >= least.get(norm, 0) and not (attack.needs_finite_ball and eps == math.inf)
        said = "can" if can else "cannot"
        demand(refuses(attack, budget) is not can, f"by its class it {said} search {budget}, but check() says otherwise")
    for norm in NORMS:
        infinite = Budget(norm, math.inf)
        if norm not in attack.norms:
            with refusal(f"budget.norm={norm}") as told:
                attack(tiny_net(), x, labels(5, 3), infinite, streams(5))
            right = (
                told[0].startswith("budget.norm: expected ") and told[0].endswith(f"got {norm!r}") and "the norms that attack" in told[0]
            )
            demand(right, f"expected 'budget.norm: expected ..., the norms that attack ... has, got {norm!r}', got {told[0]!r}")
        elif attack.needs_finite_ball:
            with refusal("budget.eps=inf") as told:
                attack(tiny_net(), x, labels(5, 3), infinite, streams(5))
            right = told[0].startswith("budget.eps: ") and "needs a finite ball, got inf" in told[0]
            demand(right, f"expected 'budget.eps: ... needs a finite ball, got inf', got {told[0]!r}")


def stays_inside_and_leaves_all_as_it_was(attack: Attack, budget: Budget) -> None:
    """x_adv lies in the ball and in [0, 1], in the shape and type of x, detached; the model, x, y and the global random state are left as
    they were; the same streams of random numbers give the same x_adv."""
    for channels, n, count in PROBLEMS:
        model, x, y, rng = tiny_net(channels, count), edge_images(n, channels), labels(n, count), streams(n)
        model.get_submodule("network.backbone.1").train()  # one mode and one flag that differ, to see each restored
        model.get_submodule("network.backbone.4").requires_grad_(False)
        before, x_before, y_before, global_state = snapshot(model), x.clone(), y.clone(), torch.get_rng_state()
        x_adv = search(attack, model, x, y, budget, rng)

        demand_inside(x_adv, x, budget)
        demand(x_adv.shape == x.shape, f"x_adv must have the shape of x, {list(x.shape)}, got {list(x_adv.shape)}")
        demand(x_adv.dtype == x.dtype, f"x_adv must be {x.dtype} as x, got {x_adv.dtype}")
        demand(not x_adv.requires_grad and x_adv.grad_fn is None, "x_adv must be detached")
        demand_unchanged(model, before)
        demand(torch.equal(x, x_before) and not x.requires_grad and x.grad is None, "x was changed, or asks for a gradient")
        demand(torch.equal(y, y_before), "y was changed")
        demand(torch.equal(torch.get_rng_state(), global_state), "torch's global generator was drawn from: all randomness comes from rng")
        again = search(attack, model, x, y, budget, streams(n))
        demand(torch.equal(again, x_adv), "the same rng gave another x_adv")


def leaves_a_model_that_is_not_frozen(attack: Attack, budget: Budget) -> None:
    """Gradients go to the image only, even where the parameters ask for some."""
    model = tiny_net()
    before = snapshot(model)
    attack(model, edge_images(5), labels(5, 3), budget, streams(5))
    demand_unchanged(model, before)


def is_told_that_queries_give_no_gradient(attack: Attack) -> None:
    """With `needs_gradients`, a model that answers queries only is an error of the threat model."""
    for norm in attack.norms:
        with refusal("an attack with gradients on a model that answers queries only; does it need any? (needs_gradients)") as told:
            search(attack, Queries(tiny_net(3, 3), "logits"), edge_images(5, 3), labels(5, 3), ball(norm, MIDDLE), streams(5))
        demand(told[0].startswith("threat_model.sees=queries gives no gradient"), f"another error came first: {told[0]}")


def asks_for_no_gradient(attack: Attack, budget: Budget) -> None:
    """Without `needs_gradients` it finds the same on a model that answers queries only, and without `needs_logits` on labels alone."""
    x, y = edge_images(5, 3), labels(5, 3)
    x_adv = search(attack, tiny_net(3, 3), x, y, budget, streams(5))
    for answers in ("logits",) if attack.needs_logits else ("logits", "labels"):
        found = search(attack, Queries(tiny_net(3, 3), answers), x, y, budget, streams(5))
        demand(torch.equal(x_adv, found), f"x_adv differs where the model answers with {answers} only")


def has_one_result_whatever_the_batch(attack: Attack, budget: Budget) -> None:
    """An image has one result, whatever batch it is in and in which order (unless `batchwise`)."""
    # In double precision: in single, a kernel's rounding depends on the batch, and a search may fork on it.
    n = 10
    model, x, y, rng = tiny_net(3, 10).double(), edge_images(n, 3).double(), labels(n, 10), streams(n)
    together = search(attack, model, x, y, budget, rng)
    for size, order in ((1, torch.arange(n)), (7, torch.arange(n).flip(0)), (n, torch.randperm(n))):
        parts = [search(attack, model, x[at], y[at], budget, rng[at]) for at in order.split(size)]
        torch.testing.assert_close(torch.cat(parts), together[order], atol=1e-9, rtol=0)


def breaks_images(attack: Attack, norm: str) -> None:
    """It finds something: every image on which the loss has a slope is moved, and more than four in five lose some of their true class's
    probability (without `needs_labels`: their output changes more than under noise); with `minimal`, more than four in five are
    misclassified. An attack that is noise by design is asked for this in vain."""
    model, x = tiny_net(3, 3), edge_images(20, 3)
    demand(does_something(attack, model, x, model(x).argmax(1), aimed(attack, norm)), "it did no more to the images than noise would")


def searches_and_stays_inside(attack: Attack, norm: str) -> None:
    """Of an attack that its authors made weak: it searches, and x_adv lies in the ball and in [0, 1]."""
    model, x, budget = tiny_net(3, 3), edge_images(20, 3), aimed(attack, norm)
    demand_inside(search(attack, model, x, model(x).argmax(1), budget, streams(20)), x, budget)


def aimed(attack: Attack, norm: str) -> Budget:
    """A ball in which a search can show what it is worth."""
    if attack.minimal:
        return ball(norm, math.inf if not attack.needs_finite_ball else 0.5)
    return Budget(norm, SMALL[norm])


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
