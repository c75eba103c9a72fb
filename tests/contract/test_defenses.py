"""Every file of conf/defense keeps every clause of the defense contract; every recipe, budget and threat model builds.

Each choice is put together by Hydra and makes one step. The clauses are tried with one choice of each class, and with those that differ
from it other than by numbers; both backbones and both ends of training, where they make a difference.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from contract_choices import classes, described, kinds, made, names, others
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.settings.identity import Run
from robustbench_lab.settings.overrides import RUN_GROUPS
from robustbench_lab.threats import NORMS, VIEWS, Budget, ThreatModel
from robustbench_lab.training.loop import backward
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.runs import objects

FIRST, LATE = 0, 10_000  # epochs: before and after whatever starts late
BACKBONES = ("small_resnet", "small_cnn")
Objects = tuple[Any, Defended, Defense, Recipe]


@functools.cache
def run_on(backbone: str) -> Run:
    cfg, choices = compose("train", [f"backbone={backbone}"])
    return Run(plain(cfg, *RUN_GROUPS, "seed"), {group: choices[group] for group in RUN_GROUPS})


def trained(name: str, backbone: str = "small_resnet", seed: int = 0) -> tuple[Defended, Defense]:
    """The model and the defense of one YAML file on digits."""
    run = run_on(backbone)
    return objects(Run({**run.config, "defense": described("defense", name), "seed": seed}, run.choices))[1:3]


def starts_late(defense: Defense) -> bool:
    """Whether its first epochs differ from the later ones."""
    return any(field.name.endswith("epoch") and getattr(defense, field.name) > 0 for field in fields(defense))


def of_each(chosen: list[str]) -> list[tuple[str, str, int]]:
    """Each of them with either backbone; at both ends of training with both, if it starts late."""
    return [
        (name, backbone, epoch)
        for name in chosen
        for backbone, epoch in itertools.product(BACKBONES, (FIRST, LATE))
        if starts_late(made("defense", name)) or (backbone, epoch) in zip(BACKBONES, (LATE, FIRST), strict=True)
    ]


@pytest.fixture
def source(run_objects: Callable[..., Objects]) -> Defended:
    """What a Taught defense learns from."""
    return run_objects("backbone=small_cnn", "seed=9")[1].eval().requires_grad_(False)


@pytest.fixture
def batch_at(digits: tuple[ImageSet, ImageSet], source: Defended) -> Callable[[int], Batch]:
    def make(epoch: int, n: int = 24) -> Batch:
        x, y, ids = next(digits[0].batches(torch.arange(n), n))
        copy = torch.arange(n) % 2
        return Batch(x, y, ids, copy, epoch, ImageRandom.of(ids, 0, epoch), ImageRandom.of(ids, 0), source)

    return make


def tensors_in(value: object) -> list[object]:
    """Tensors and modules anywhere in a value."""
    if isinstance(value, Tensor | nn.Module):
        return [value]
    if is_dataclass(value):
        return [found for field in fields(value) for found in tensors_in(getattr(value, field.name))]
    if isinstance(value, dict):
        return [found for entry in value.values() for found in tensors_in(entry)]
    return [found for entry in value for found in tensors_in(entry)] if isinstance(value, list | tuple | set) else []


@contextmanager
def passes_outside_attacks(model: Defended, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """The training mode at each forward pass of the network that no attack asked for."""
    seen: list[bool] = []
    attacking: list[Attack] = []
    original = Attack.__call__

    def call(self: Attack, *args: Any) -> Tensor:
        attacking.append(self)
        try:
            return original(self, *args)
        finally:
            attacking.pop()

    def hook(module: nn.Module, args: object) -> None:
        if not attacking:
            seen.append(module.training)

    with monkeypatch.context() as patch:
        patch.setattr(Attack, "__call__", call)
        handle = model.network.register_forward_pre_hook(hook)
        yield seen
        handle.remove()


@pytest.mark.parametrize("name", names("defense"))
def test_every_choice_makes_a_step(name: str, run_objects: Callable[..., Objects], batch_at: Callable[[int], Batch]) -> None:
    _, model, defense, _ = run_objects(f"defense={name}", "backbone=small_cnn")
    model.train()
    for player in defense.players(model):
        backward(player, model, batch_at(LATE), "fp32")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


STEPS = of_each(classes("defense")) + [(name, "small_resnet", LATE) for name in others("defense")]


@pytest.mark.parametrize(("name", "backbone", "epoch"), STEPS)
def test_steps_train_every_parameter_and_lower_the_loss(name: str, backbone: str, epoch: int, batch_at: Callable[[int], Batch]) -> None:
    model, defense = trained(name, backbone)
    batch = batch_at(epoch)
    model.train()
    movers = defense.players(model)
    players = [player for player in movers if player.turns.first_epoch <= epoch]
    waiting = [torch.optim.SGD(player.parameters, lr=1) for player in movers if player not in players]  # their turn comes late
    optimizers = [torch.optim.Adam(player.parameters, lr=2e-3) for player in players]
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    losses: list[list[float]] = []
    for _ in range(4):
        losses.append([])
        for player, optimizer in zip(players, optimizers, strict=True):
            optimizer.zero_grad()
            loss = backward(player, model, batch, "fp32")
            assert loss.dim() == 0
            losses[-1].append(loss.item())
            optimizer.step()
        defense.after_step(model)
    kept = {id(parameter) for optimizer in waiting for group in optimizer.param_groups for parameter in group["params"]}
    for path, parameter in model.named_parameters():
        assert parameter.requires_grad, path
        if id(parameter) in kept:
            assert torch.equal(parameter, before[path]), path
            continue
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
        assert parameter.grad.any(), path
    assert all(values[-1] < values[0] for values in zip(*losses, strict=True)), losses
    assert players
    assert not waiting or epoch == FIRST


COPIED = [*((name, fast) for name in classes("defense") for fast in (False, True)), *((name, True) for name in others("defense"))]


@pytest.mark.parametrize(("name", "fast"), COPIED)
def test_only_the_defense_s_own_passes_move_batch_norm(
    name: str, fast: bool, batch_at: Callable[[int], Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, defense = trained(name)
    norm = next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.num_batches_tracked is not None
    if fast:
        model.attach_fast_copy()
    model.train()
    norm_in_eval = list(model.modules())[-1].eval()  # one module in the other mode, to see the modes restored one by one
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    for epoch in (FIRST, LATE):
        tracked = int(norm.num_batches_tracked)
        with passes_outside_attacks(model, monkeypatch) as passes:
            for player in (player for player in defense.players(model) if player.turns.first_epoch <= epoch):
                loss = player.loss(model, batch_at(epoch))
                assert all(term.dim() == 0 for term in ([loss] if isinstance(loss, Tensor) else loss))
        assert int(norm.num_batches_tracked) - tracked == sum(passes) >= 1
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == flags
        assert all(parameter.grad is None for parameter in model.parameters())
    assert not norm_in_eval.training


@pytest.mark.parametrize("name", kinds("defense"))
def test_holds_no_learned_state(name: str, batch_at: Callable[[int], Batch]) -> None:
    """Everything learned is in the state_dict: a fresh model that loads it predicts the same."""
    model, defense = trained(name)
    description, batch = repr(defense), batch_at(LATE)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    defense.loss(model, batch).backward()
    optimizer.step()

    assert isinstance(defense, Defense)
    assert type(defense).__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert set(vars(defense)) == {field.name for field in fields(defense)}
    assert not tensors_in(defense)
    assert repr(defense) == description

    def predicted(of: Defended) -> Tensor:
        torch.manual_seed(0)  # what is stochastic must draw the same
        return of.eval()(batch.x)

    other, _ = trained(name, seed=1)
    assert not torch.equal(predicted(other), predicted(model))
    other.load_state_dict(model.state_dict())
    assert torch.equal(predicted(other), predicted(model))


@pytest.mark.parametrize("name", kinds("defense"))
def test_a_loss_is_the_same_twice(name: str, batch_at: Callable[[int], Batch]) -> None:
    model, defense = trained(name, "small_cnn")
    model.train()
    batch, state = batch_at(LATE), torch.get_rng_state()
    x, y = batch.x.clone(), batch.y.clone()
    first = defense.loss(model, batch)
    drew = not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    assert torch.equal(defense.loss(model, batch), first)
    assert torch.equal(batch.x, x)
    assert torch.equal(batch.y, y)
    assert drew is model.stochastic  # only a stochastic model draws from the global generator


WITH_EXTRA_IMAGES = [name for name in kinds("defense") if type(made("defense", name)).extra_images is not Defense.extra_images]


@pytest.mark.parametrize("name", WITH_EXTRA_IMAGES)
def test_extra_images_are_the_same_at_every_start(name: str, digits: tuple[ImageSet, ImageSet], source: Defended) -> None:
    """A resumed run must learn from the same images; and the source is left as it was."""
    defense, few = made("defense", name), digits[0].subset(torch.arange(30))
    before = {key: value.clone() for key, value in source.state_dict().items()}
    extra, again = (defense.extra_images(source, few, 0) for _ in range(2))
    assert extra is not None
    assert again is not None
    assert torch.equal(extra.images, again.images)
    assert extra.images.shape[1:] == few.images.shape[1:]
    assert 0 <= extra.images.min() <= extra.images.max() <= 1
    ids = torch.cat([few.ids, extra.ids]).tolist()
    assert len(set(ids)) == len(ids)
    assert all(torch.equal(value, before[key]) for key, value in source.state_dict().items())
    assert not any(parameter.requires_grad for parameter in source.parameters())


@pytest.mark.parametrize("name", names("training"))
def test_recipes_build(name: str, built: Callable[..., Any], tiny_net: Callable[..., Defended]) -> None:
    recipe = built("training", name)
    assert isinstance(recipe, Recipe)
    optimizer = recipe.optimizer(list(tiny_net().parameters()))
    assert isinstance(optimizer, torch.optim.Optimizer)
    factors = [recipe.schedule(share * recipe.epochs, recipe.epochs) for share in (0, 0.1, 0.5, 0.9, 0.999)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("name", names("budget"))
def test_budgets_build(name: str, built: Callable[..., Any]) -> None:
    budget = built("budget", name)
    assert isinstance(budget, Budget)
    assert budget.norm in NORMS
    assert budget.eps > 0


@pytest.mark.parametrize("name", names("threat_model"))
def test_threat_models_build(name: str, built: Callable[..., Any]) -> None:
    threat_model = built("threat_model", name)
    assert isinstance(threat_model, ThreatModel)
    assert threat_model.sees in VIEWS


def test_every_view_has_a_threat_model(built: Callable[..., Any]) -> None:
    assert {built("threat_model", name).sees for name in names("threat_model")} == set(VIEWS)
