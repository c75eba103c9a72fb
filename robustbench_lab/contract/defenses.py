"""The clauses of a defense (defenses.base.Defense), on the embedded digits: with and without BatchNorm, at both ends of training."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import Attack
from robustbench_lab.contract.clause import Clause
from robustbench_lab.contract.trying import clause_of, demand, refuses_numbers_that_are_not_finite
from robustbench_lab.datasets.base import Dataset, ImageSet
from robustbench_lab.defenses.base import Batch, Defense, Player
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.alone import alone
from robustbench_lab.settings.build import build, dataset_of
from robustbench_lab.settings.identity import Run, run_at_words
from robustbench_lab.training.loop import backward
from robustbench_lab.training.runs import objects

FIRST, LATE = 0, 10_000  # epochs: before and after whatever starts late
BACKBONES = ("small_resnet", "small_cnn")  # with BatchNorm and without
DENSITY = "pixelcnn_small"  # of a defense that trains no classifier
USUAL = ("small_resnet", LATE)  # what a kind that differs from its class's first is tried with

Config = Mapping[str, Any]


def clauses(choice: str, words: Sequence[str] = ()) -> Iterator[Clause]:
    config, clause = alone("defense", choice, words), clause_of(f"defense={choice}")
    defense: Defense = build(config, "defense", Defense)
    yield clause(makes_a_step, choice, words)
    backbones = (DENSITY,) if defense.trains_density else BACKBONES
    for backbone, epoch in itertools.product(backbones, (FIRST, LATE)):
        if starts_late(defense) or (backbone, epoch) in zip(backbones, (LATE, FIRST), strict=False):
            yield clause(
                trains_every_parameter_and_lowers_the_loss,
                *(config, backbone, epoch),
                case=f"{backbone}-{'first' if epoch == FIRST else 'late'}",
                depends_on="kind" if (backbone, epoch) == USUAL else "class",
            )
    for fast in (False, True):
        yield clause(
            moves_batch_norm_by_its_own_passes_only,
            *(config, fast),
            case="fast copy" if fast else "plain",
            depends_on="kind" if fast else "class",
        )
    yield clause(holds_no_learned_state, config, depends_on="kind")
    yield clause(has_the_same_loss_twice, config, depends_on="kind")
    if type(defense).extra_images is not Defense.extra_images:
        yield clause(has_the_same_extra_images_at_every_start, config, depends_on="kind")
    yield clause(refuses_numbers_that_are_not_finite, "defense", config, Defense, depends_on="kind")


@functools.cache
def run_on(backbone: str) -> Run:
    return run_at_words([f"backbone={backbone}", "dataset=digits", "defense=standard", "training=digits"])


def trained(config: Config, backbone: str = "small_resnet", seed: int = 0) -> tuple[Defended, Defense]:
    """The model and the defense of a config on digits, before training; backbone: of a classifier."""
    run = run_on(DENSITY if build(config, "defense", Defense).trains_density else backbone)
    return objects(Run({**run.config, "defense": config, "seed": seed}, run.choices))[1:3]


@functools.cache
def digits() -> ImageSet:
    """The embedded digits that training learns from."""
    return dataset_of(run_on("small_cnn").config, Dataset).load("train", root=Path(), download=False, workers=0)


def source() -> Defended:
    """What a Taught defense learns from."""
    run = run_on("small_cnn")
    return objects(Run({**run.config, "seed": 9}, run.choices))[1].eval().requires_grad_(False)


def batch_at(epoch: int, n: int = 24) -> Batch:
    with torch.random.fork_rng(devices=[]):
        teacher = source()
    x, y, ids = next(digits().batches(torch.arange(n), n))
    copy = torch.arange(n) % 2
    return Batch(x, y, ids, copy, epoch, ImageRandom.of(ids, 0, epoch), ImageRandom.of(ids, 0), teacher)


def starts_late(defense: Defense) -> bool:
    """Whether its first epochs differ from the later ones."""
    return any(field.name.endswith("epoch") and getattr(defense, field.name) > 0 for field in fields(defense))


def makes_a_step(choice: str, words: Sequence[str]) -> None:
    """As `train defense=<choice>` builds it, each of its players has a loss whose gradients are finite numbers."""
    backbone = DENSITY if build(alone("defense", choice, words), "defense", Defense).trains_density else "small_cnn"
    _, model, defense, _ = objects(run_at_words([f"defense={choice}", f"backbone={backbone}", *words]))
    model.train()
    for player in defense.players(model):
        backward(player, model, batch_at(LATE), "fp32")
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    demand(gradients, "no parameter got a gradient")
    demand(all(gradient.isfinite().all() for gradient in gradients), "a gradient is not finite")


def trains_every_parameter_and_lowers_the_loss(config: Config, backbone: str, epoch: int) -> None:
    """Each parameter belongs to a player and gets a gradient, finite and not zero; four steps on one batch lower each player's loss.
    A player that waits for its first epoch leaves its parameters alone."""
    model, defense = trained(config, backbone)
    batch = batch_at(epoch)
    model.train()
    movers = defense.players(model)
    players = [player for player in movers if player.turns.at(epoch)]
    waiting = [_optimizer(player, torch.optim.SGD, 1) for player in movers if player not in players]  # their turn comes late
    optimizers = [_optimizer(player, torch.optim.Adam, 2e-3) for player in players]
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    losses: list[list[float]] = []
    for _ in range(4):
        losses.append([])
        for player, optimizer in zip(players, optimizers, strict=True):
            optimizer.zero_grad()
            loss = backward(player, model, batch, "fp32")
            demand(loss.dim() == 0, f"the loss of player {player.name} must be a scalar, got {list(loss.shape)}")
            losses[-1].append(loss.item())
            optimizer.step()
        defense.after_step(model)
    kept = {id(parameter) for optimizer in waiting for group in optimizer.param_groups for parameter in group["params"]}
    for path, parameter in model.named_parameters():
        demand(parameter.requires_grad, f"{path} asks for no gradient")
        if id(parameter) in kept:
            demand(torch.equal(parameter, before[path]), f"{path} moved before its player's first epoch")
            continue
        demand(parameter.grad is not None, f"{path} got no gradient: is it a player's, and in the loss?")
        demand(parameter.grad.isfinite().all(), f"{path} got a gradient that is not finite")  # type: ignore[union-attr]
        demand(parameter.grad.any(), f"{path} got a gradient of zeros")  # type: ignore[union-attr]
    for player, values in zip(players, zip(*losses, strict=True), strict=True):
        demand(values[-1] < values[0], f"four steps on one batch did not lower the loss of player {player.name}: {values}")
    demand(players, "nobody moves")
    demand(not waiting or epoch == FIRST, f"a player still waits in epoch {LATE}")


def moves_batch_norm_by_its_own_passes_only(config: Config, fast: bool) -> None:
    """The network's BatchNorm statistics move by the loss's own passes in train mode, not by an attack's; the loss leaves each module's
    mode, each parameter's flag and gradient as they were."""
    model, defense = trained(config)
    norms = [module for module in model.network.modules() if isinstance(module, nn.BatchNorm2d)]
    if fast:
        model.attach_fast_copy()
    model.train()
    norm_in_eval = list(model.modules())[-1].eval()  # one module in the other mode, to see the modes restored one by one
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    for epoch in (FIRST, LATE):
        tracked = _tracked(norms)
        with _passes_outside_attacks(model) as passes:
            for player in (player for player in defense.players(model) if player.turns.at(epoch)):
                loss = player.loss(model, batch_at(epoch))
                scalar = all(term.dim() == 0 for term in ([loss] if isinstance(loss, Tensor) else loss))
                demand(scalar, f"the loss of player {player.name} must be a scalar, or an iterator over scalars")
        moved, own = _tracked(norms) - tracked, sum(passes)
        demand(own >= 1, f"in epoch {epoch} no pass was made in train mode")
        told = f"in epoch {epoch} BatchNorm's statistics moved {moved} times in {own} passes of the loss in train mode"
        demand(moved == own or not norms, told)
        demand([module.training for module in model.modules()] == modes, "a module's mode was not left as it was")
        demand([parameter.requires_grad for parameter in model.parameters()] == flags, "a parameter's flag was not left as it was")
        demand(all(parameter.grad is None for parameter in model.parameters()), "a parameter got a gradient before any backward pass")
    demand(not norm_in_eval.training, "a module in eval mode was put in train mode")


def holds_no_learned_state(config: Config) -> None:
    """A defense is a frozen dataclass of knobs without tensors: everything learned is in the model's state_dict, and a fresh model that
    loads it predicts the same."""
    model, defense = trained(config)
    description, batch = repr(defense), batch_at(LATE)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    defense.loss(model, batch).backward()
    optimizer.step()

    demand(isinstance(defense, Defense), f"expected a Defense, got {type(defense).__name__}")
    demand(type(defense).__dataclass_params__.frozen, "the dataclass is not frozen")  # type: ignore[attr-defined]
    names = {field.name for field in fields(defense)}
    demand(set(vars(defense)) == names, f"it holds more than its knobs: {', '.join(sorted(set(vars(defense)) ^ names))}")
    demand(not _tensors_in(defense), "a knob holds a tensor or a module")
    demand(repr(defense) == description, "a knob changed in a step")

    def predicted(of: Defended) -> Tensor:
        torch.manual_seed(0)  # what is stochastic must draw the same
        return of.eval()(batch.x)

    other, _ = trained(config, seed=1)
    demand(not torch.equal(predicted(other), predicted(model)), "two seeds give the same weights")
    other.load_state_dict(model.state_dict())
    demand(torch.equal(predicted(other), predicted(model)), "a fresh model with the same state_dict predicts otherwise")


def has_the_same_loss_twice(config: Config) -> None:
    """The loss is a function of model, batch and random state, and leaves the batch as it was; from torch's global generator it draws if,
    and only if, the model says that it is stochastic."""
    model, defense = trained(config, "small_cnn")
    model.train()
    batch, state = batch_at(LATE), torch.get_rng_state()
    x, y = batch.x.clone(), batch.y.clone()
    first = defense.loss(model, batch)
    drew = not torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(state)
    demand(torch.equal(defense.loss(model, batch), first), "the same batch has another loss")
    demand(torch.equal(batch.x, x) and torch.equal(batch.y, y), "the batch was changed")
    told = "draws" if drew else "does not draw"
    demand(drew is model.stochastic, f"the loss {told} from torch's global generator, but the model says stochastic={model.stochastic}")


def has_the_same_extra_images_at_every_start(config: Config) -> None:
    """A resumed run learns from the same extra images, of the images' shape and in [0, 1], with ids of their own; the teacher is left as it
    was."""
    teacher, few = source(), digits().subset(torch.arange(30))
    model, defense = trained(config)
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    extra, again = (defense.extra_images(model, teacher, few, 0) for _ in range(2))
    if extra is None or again is None:
        demand(extra is again and defense.learns_originals, "extra images at one start and none at another, or nothing to learn from")
        return
    demand(torch.equal(extra.images, again.images), "another start has other images")
    demand(extra.images.shape[1:] == few.images.shape[1:], f"expected images {few.shape}, got {extra.shape}")
    demand(extra.images.min() >= 0 and extra.images.max() <= 1, "images must lie in [0, 1]")
    ids = torch.cat([few.ids, extra.ids]).tolist()
    demand(len(set(ids)) == len(ids), "an id is also that of another image")
    demand(all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items()), "the teacher's weights were changed")
    demand(not any(parameter.requires_grad for parameter in teacher.parameters()), "the teacher's parameters ask for gradients")


def _optimizer(player: Player, kind: Callable[..., torch.optim.Optimizer], lr: float) -> torch.optim.Optimizer:
    return kind(player.parameters, lr=lr)


def _tracked(norms: Sequence[nn.BatchNorm2d]) -> int:
    """How many batches the first of them, if any, has seen."""
    return int(norms[0].num_batches_tracked) if norms and norms[0].num_batches_tracked is not None else 0


def _tensors_in(value: object) -> list[object]:
    """Tensors and modules anywhere in a value."""
    if isinstance(value, Tensor | nn.Module):
        return [value]
    if is_dataclass(value):
        return [found for field in fields(value) for found in _tensors_in(getattr(value, field.name))]
    if isinstance(value, dict):
        return [found for entry in value.values() for found in _tensors_in(entry)]
    return [found for entry in value for found in _tensors_in(entry)] if isinstance(value, list | tuple | set) else []


@contextmanager
def _passes_outside_attacks(model: Defended) -> Iterator[list[bool]]:
    """The training mode at each forward pass of the network, or of the first of several, that no attack asked for."""
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

    network = next((part for part in model.network.modules() if isinstance(part, Classifier)), model.network)
    handle = network.register_forward_pre_hook(hook)
    try:
        with patch.object(Attack, "__call__", call):
            yield seen
    finally:
        handle.remove()
