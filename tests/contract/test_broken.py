"""Clauses notice what breaks them: each of these is an attack, defense, backbone or dataset that keeps all the others."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.backbones.base import Backbone, check_problem, global_average_pool, sequence
from robustbench_lab.contract import Clause, attacks, backbones, check_attack, clauses, datasets, defenses, trying
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.datasets.digits import Digits
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.errors import LabError, MissingFiles
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.build import dataset_of
from robustbench_lab.threats import Budget

BALL = Budget("linf", 0.3)
Search = Callable[[nn.Module, Tensor, Tensor, Budget, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Searching(Attack):
    """An attack that is one function."""

    by: Callable[..., Tensor]
    norms: ClassVar[tuple[str, ...]] = ("linf",)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: Any) -> Tensor:
        return self.by(model, x, y, budget, rng)


def step(model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: Any) -> Tensor:
    x = x.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y, reduction="sum"), x)
    return x.detach() + budget.eps * gradient.sign()


def right(*given: Any) -> Tensor:
    return BALL.project(step(*given), given[1])


def into_the_network(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    F.cross_entropy(model(x), rest[0]).backward()
    return x.clone()


def in_train_mode(model: nn.Module, *rest: Any) -> Tensor:
    model.train()
    return right(model, *rest)


def by_the_batch(model: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    return (x + (x.mean() - 0.5) * 0.1).clamp(0, 1)


STAYS = attacks.stays_inside_and_leaves_all_as_it_was


@pytest.mark.parametrize(
    ("by", "check", "said"),
    [
        (step, STAYS, "pixels must stay in"),
        (lambda *given: 1 - given[1], STAYS, "farther than eps = 0.3"),
        (lambda *given: right(*given).double(), STAYS, "must be torch.float32"),
        (lambda *given: given[1].clamp_(0.01, 1), STAYS, "x was changed"),
        (lambda *given: (given[1] + 0.01 * torch.rand(())).clamp(0, 1), STAYS, "global generator"),
        (in_train_mode, attacks.leaves_a_model_that_is_not_frozen, "a module's mode"),
        (into_the_network, attacks.leaves_a_model_that_is_not_frozen, "a parameter, its gradient"),
        (by_the_batch, attacks.has_one_result_whatever_the_batch, "not close"),
        (lambda *given: given[1].clone(), attacks.is_told_that_queries_give_no_gradient, "none was raised"),
        (right, attacks.asks_for_no_gradient, "gives no gradient"),
    ],
)
def test_an_attack(by: Search, check: Callable[..., None], said: str) -> None:
    given = () if check is attacks.is_told_that_queries_give_no_gradient else (BALL,)
    check(Searching(by=right), *given) if check is not attacks.asks_for_no_gradient else None
    with pytest.raises((AssertionError, LabError), match=said):
        check(Searching(by=by), *given)


def test_an_attack_that_does_not_refuse_what_it_cannot_search() -> None:
    class Careless(Searching):
        def check(self, budget: Budget) -> None:
            """Nothing is refused."""

    with pytest.raises(AssertionError, match="it cannot search"):
        attacks.refuses_what_it_cannot_search(Careless(by=right))


@dataclass(frozen=True, kw_only=True)
class Learning(Defense):
    """Standard training with another loss."""

    by: Callable[[Defended, Batch], Tensor]

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        return self.by(model, batch)


def standard(model: Defended, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.x), batch.y)


def upwards(model: Defended, batch: Batch) -> Tensor:
    """The loss of standard training, whose gradient points the other way."""
    loss = standard(model, batch)
    return 2 * loss.detach() - loss


@pytest.mark.parametrize(
    ("by", "check", "said"),
    [
        (upwards, defenses.trains_every_parameter_and_lowers_the_loss, "did not lower the loss"),
        (lambda model, batch: standard(model, batch) * 0, defenses.trains_every_parameter_and_lowers_the_loss, "gradient of zeros"),
        (
            lambda model, batch: standard(model, replace(batch, x=batch.x + torch.rand_like(batch.x))),
            defenses.has_the_same_loss_twice,
            "draws from torch's global generator",
        ),
        (lambda model, batch: standard(model.eval(), batch), defenses.moves_batch_norm_by_its_own_passes_only, "no pass was made in train"),
        (
            lambda model, batch: standard(model, batch) + 0 * model.network.backbone.body(batch.x).mean(),
            defenses.moves_batch_norm_by_its_own_passes_only,
            "moved 2 times in 1 passes",
        ),
    ],
)
def test_a_defense(by: Callable[..., Tensor], check: Callable[..., None], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of_digits = defenses.trained

    def trained(config: Any, *where: Any, **seed: int) -> tuple[Defended, Defense]:
        return of_digits({"_target_": "robustbench_lab.defenses.base.Defense"}, *where, **seed)[0], Learning(by=config["by"])

    monkeypatch.setattr(defenses, "trained", trained)
    given = {
        defenses.trains_every_parameter_and_lowers_the_loss: ("small_cnn", 0),
        defenses.moves_batch_norm_by_its_own_passes_only: (False,),
    }.get(check, ())
    check({"by": standard}, *given)
    with pytest.raises(AssertionError, match=said):
        check({"by": by}, *given)


class Network(Backbone):
    def __init__(self, classes: float, channels: float, size: float, stage: nn.Module, name: str = "stage1") -> None:
        check_problem(classes, channels, size)  # type: ignore[arg-type]
        conv = nn.Conv2d(int(channels), 4, 3, padding=1)
        super().__init__(sequence(stem=conv, **{name: stage}), global_average_pool(), nn.Linear(4, int(classes)))


class Functional(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu() if x.mean() > 0 else x


@pytest.mark.parametrize(
    ("stage", "check", "said"),
    [
        (nn.Sequential(nn.ReLU(), Functional()), backbones.has_activations_used_once_and_never_in_place, "is a function"),
        (nn.ReLU(inplace=True), backbones.has_activations_used_once_and_never_in_place, "works in place"),
        (nn.Identity(), backbones.has_activations_used_once_and_never_in_place, "no nn.ReLU"),
        (nn.Sequential(nn.ReLU(), nn.Hardtanh(2, 3)), backbones.learns_with_every_parameter, "gradient of zeros"),
        (nn.Sequential(nn.ReLU(), nn.Hardtanh(2, 3)), backbones.maps_usual_images_to_logits, "gets no gradient"),
        (Branching(), backbones.maps_usual_images_to_logits, "control flow"),
    ],
)
def test_a_backbone(stage: nn.Module, check: Callable[..., None], said: str) -> None:
    check(functools.partial(Network, stage=nn.ReLU()))
    with pytest.raises((AssertionError, torch.fx.proxy.TraceError), match=said):
        check(functools.partial(Network, stage=stage))


def test_a_backbone_whose_stages_have_numbers() -> None:
    with pytest.raises(AssertionError, match="a number in place of a name"):
        backbones.has_parts_that_can_be_read_and_replaced(functools.partial(Network, stage=nn.ReLU(), name="1"))


def test_a_backbone_that_takes_any_problem() -> None:
    with pytest.raises(AssertionError, match=r"expected a LabError for dataset\.size=0"):
        backbones.refuses_a_wrong_problem(lambda classes, channels, size: Network(10, 3, 32, nn.ReLU()), "size", 0)


def digits() -> Digits:
    return dataset_of({"dataset": alone("dataset", "digits")}, Digits)


@dataclass(frozen=True, kw_only=True)
class Reading(Digits):
    """The digits, read otherwise."""

    def _read(self, split: Any, root: Path, **how: Any) -> ImageSet:
        return self.changed(super()._read(split, root, **how), split)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changed", "check", "given", "said"),
    [
        (lambda read, split: replace_set(read, ids=read.ids + 1), datasets.has_images_labels_and_ids, ("test",), "ids must be 0"),
        (
            lambda read, split: replace_set(read, labels=read.labels.clamp(max=8)),
            datasets.has_images_labels_and_ids,
            ("test",),
            "no image has",
        ),
        (lambda read, split: replace_set(read, images=read.images // 64 * 64), datasets.has_images_labels_and_ids, ("test",), "cut off"),
        (lambda read, split: read.subset(torch.randperm(len(read))), datasets.reads_the_same_twice, (), "global generator"),
        (
            lambda read, split: replace_set(read, images=read.images * 0),
            datasets.shows_no_training_image_in_the_test_split,
            (),
            "1 of the 1",
        ),
        (
            lambda read, split: (_ for _ in ()).throw(FileNotFoundError("x.npy")),
            datasets.says_what_is_missing,
            (),
            "MissingFiles, got FileNot",
        ),
    ],
)
def test_a_dataset(changed: Any, check: Callable[..., None], given: tuple[str, ...], said: str) -> None:
    check(digits(), *given)
    broken = type("Broken", (Reading,), {"changed": staticmethod(changed)})
    with pytest.raises(AssertionError, match=said):
        check(broken(**vars(digits())), *given)


def replace_set(read: ImageSet, **parts: Tensor) -> ImageSet:
    return ImageSet(**{"images": read.images, "labels": read.labels, "ids": read.ids, **parts})


def test_a_dataset_with_a_default() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Defaulted(Digits):
        test_fraction: float = 0.2

    with pytest.raises(AssertionError, match="test_fraction has a default"):
        datasets.asks_for_every_knob(Defaulted(**vars(digits())))


# What is told


def test_a_clause_that_does_not_hold_names_the_choice_itself_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attacks, "demand_inside", lambda *given: attacks.demand(False, "an image moved by 9"))
    told = r"^attack=fgsm: stays_inside_and_leaves_all_as_it_was\[linf-0.0\]: an image moved by 9\n\(the clause: x_adv lies in the ball"
    with pytest.raises(AssertionError, match=told):
        check_attack("fgsm")


def test_a_clause_leaves_the_random_state_and_the_threads() -> None:
    def draw() -> None:
        torch.rand(1)

    state, threads = torch.get_rng_state(), torch.get_num_threads()
    trying.clause_of("attack=any")(draw)()
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_words_belong_to_the_choice() -> None:
    with pytest.raises(LabError, match=r"^attack\.steps: expected a whole number >= 1, got 0"):
        clauses("attack", "pgd", ["attack.steps=0"])
    with pytest.raises(LabError, match="no_such"):
        clauses("attack", "no_such")


def test_files_that_are_not_there_are_an_exception_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTBENCH_LAB_DATA", str(tmp_path))
    there: Iterator[Clause] = (clause for clause in clauses("dataset", "mnist") if clause.name == "has_images_labels_and_ids[test]")
    with pytest.raises(MissingFiles, match="dataset 'mnist' is not in"):
        next(there)()
