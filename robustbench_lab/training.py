"""fit(): the one training loop.

Everything random in an epoch is a function of (seed, epoch, image), so that a run resumed from its last complete epoch ends at the same
weights as one that was never stopped, bit for bit on a CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from robustbench_lab.batches import epoch_batches, split_validation, spread
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense, Player
from robustbench_lab.errors import LabError
from robustbench_lab.models import Defended, full_precision, searched_kernels
from robustbench_lab.progress import progress
from robustbench_lab.randomness import stable_hash
from robustbench_lab.threats import is_number, require, require_flag, require_not_negative

CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the GPU


@dataclass(frozen=True, kw_only=True)
class MultiStep:
    """The learning rate times `factor` from each of the epochs `milestones` on."""

    milestones: Sequence[float]
    factor: float

    def __post_init__(self) -> None:
        listed = isinstance(self.milestones, list | tuple) and all(map(is_number, self.milestones))
        require(listed, "milestones", "a list of epochs", self.milestones)
        require_not_negative(self.factor, "factor")

    def __call__(self, epoch: float, epochs: int) -> float:
        return self.factor ** sum(epoch >= milestone for milestone in self.milestones)


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Linear warm-up from `start` to 1 over the first `warmup` share of training, then linear decay to `end`.

    Source: Smith and Topin 2019, arXiv:1708.07120, in the piecewise linear form of Wong et al. 2020 (Fast AT), arXiv:2001.03994.
    """

    warmup: float
    start: float
    end: float

    def __post_init__(self) -> None:
        require(is_number(self.warmup) and 0 < self.warmup < 1, "warmup", "a share of training in (0, 1)", self.warmup)
        require_not_negative(self.start, "start")
        require_not_negative(self.end, "end")

    def __call__(self, epoch: float, epochs: int) -> float:
        done = epoch / epochs
        if done < self.warmup:
            return self.start + (1 - self.start) * done / self.warmup
        return 1 + (self.end - 1) * (done - self.warmup) / (1 - self.warmup)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train, whatever the defense.

    optimizer: takes parameters, returns a torch optimiser. schedule: (epoch, fractional; epochs) -> factor on its learning rate.
    crop_padding, flip: augmentation, drawn anew each epoch. weight_decay belongs to the optimiser.
    precision: fp32 or bf16 (autocast) of the training passes; attack_precision: of the searches within training.
    channels_last, compile: memory layout and torch.compile, for speed.
    validation: share of the training images, the last ones, that are held out. patience: epochs without a better validation accuracy
    after which training stops (null: never). keep: the last weights, or those of best validation accuracy.
    """

    epochs: int
    batch_size: int
    optimizer: Callable[..., Optimizer]
    schedule: Callable[[float, int], float]
    crop_padding: int
    flip: bool
    precision: str
    attack_precision: str
    channels_last: bool
    compile: bool
    validation: float
    patience: int | None
    keep: str

    def __post_init__(self) -> None:
        for key in ("epochs", "batch_size"):
            value = getattr(self, key)
            require(isinstance(value, int) and value >= 1, key, "a whole number >= 1", value)
        require(isinstance(self.crop_padding, int) and self.crop_padding >= 0, "crop_padding", "a whole number >= 0", self.crop_padding)
        for key in ("precision", "attack_precision"):
            require(getattr(self, key) in ("fp32", "bf16"), key, "fp32 or bf16", getattr(self, key))
        for key in ("flip", "channels_last", "compile"):
            require_flag(getattr(self, key), key)
        require(is_number(self.validation) and 0 <= self.validation < 1, "validation", "a share in [0, 1)", self.validation)
        require(
            self.patience is None or (isinstance(self.patience, int) and self.patience >= 1),
            "patience",
            "a whole number >= 1, or null",
            self.patience,
        )
        require(self.keep in ("last", "best"), "keep", "last or best", self.keep)
        selects = self.keep == "best" or self.patience is not None
        require(not selects or self.validation > 0, "validation", "a share > 0, because keep=best and patience need one", self.validation)


@dataclass
class State:
    """Where training stands after a complete epoch: everything that the next one needs."""

    epoch: int = 0
    model: dict[str, Tensor] = field(default_factory=dict)
    best: dict[str, Tensor] = field(default_factory=dict)
    optimizers: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def best_epoch(self) -> int:
        """Epochs done when validation accuracy was highest (the first of equals); 0 before the first."""
        accuracies = [row.get("validation_accuracy", -1.0) for row in self.history]
        return accuracies.index(max(accuracies)) + 1 if accuracies else 0

    def finished(self, recipe: Recipe) -> bool:
        stale = recipe.patience is not None and self.epoch - self.best_epoch >= recipe.patience
        return self.epoch >= recipe.epochs or (stale and self.epoch > 0)


def fit(
    defense: Defense,
    model: Defended,
    train_data: ImageSet,
    recipe: Recipe,
    seed: int,
    state: State | None = None,
    save: Callable[[State], None] = lambda state: None,
    source: Defended | None = None,
) -> State:
    """Train the model in place, from `state` if there is one, and hand each complete epoch's state to `save`.

    The model and the data lie on one device. source: the trained model that a `Taught` defense learns from.
    Returns the last state; the model then holds the weights that the recipe keeps.
    Raises LabError, naming epoch, step and player, when a loss is not finite; the states saved before stay good.
    """
    train, validation = split_validation(len(train_data), recipe.validation)
    teacher = None if source is None else source.eval().requires_grad_(False)
    if (extra := defense.extra_images(teacher, _chosen(train_data, train), seed)) is not None:
        train = torch.cat([train, torch.arange(len(extra)) + len(train_data)])
        train_data = train_data.followed_by(extra)
    if state is None:
        state = State()
        defense.prepare(model, _chosen(train_data, train))
    else:
        model.load_state_dict(state.model)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.compile:
        torch.compiler.reset()  # a sweep trains many models in one process, and dynamo keeps only so many versions of a function
        model.network.compile(dynamic=False)  # a smaller last batch gets kernels of its own, and does not slow the others
    model.attach_fast_copy(recipe.attack_precision, recipe.channels_last, recipe.compile)
    players = defense.players(model)
    optimizers = {player.name: recipe.optimizer(list(player.parameters)) for player in players}
    base_lr = {name: [group["lr"] for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
    restore_optimizers(optimizers, state.optimizers)
    visits = len(train) * defense.copies
    steps = max(1, visits // recipe.batch_size + (visits % recipe.batch_size > 1))

    with (
        progress(total=recipe.epochs * steps, initial=state.epoch * steps, unit="step", desc="train") as bar,
        full_precision(),
        searched_kernels(),
    ):
        while not state.finished(recipe):
            epoch, started = state.epoch, time.perf_counter()
            torch.manual_seed(stable_hash(seed, "epoch", epoch))  # dropout and other draws that are not tied to images
            watch = LossWatch(players, epoch)
            model.train()
            for step, batch in enumerate(epoch_batches(train_data, train, recipe, defense.copies, seed, epoch, teacher)):
                factor = recipe.schedule(epoch + step / steps, recipe.epochs)
                for player in players:
                    optimizer = optimizers[player.name]
                    for group, lr in zip(optimizer.param_groups, base_lr[player.name], strict=True):
                        group["lr"] = lr * factor
                    optimizer.zero_grad(set_to_none=True)
                    loss = backward(player, model, batch, recipe.precision)
                    optimizer.step()
                    watch.see(player.name, loss, step)
                defense.after_step(model)
                bar.update()
                if step % CHECK_EVERY == CHECK_EVERY - 1:
                    bar.set_postfix(epoch=f"{epoch + 1}/{recipe.epochs}", loss=f"{watch.mean(players[0].name):.4f}", refresh=False)
            row = {"epoch": epoch + 1, **{f"loss_{name}": watch.mean(name) for name in optimizers}}
            seconds = time.perf_counter() - started  # after the means, which wait for the device
            row |= {"lr_factor": factor, "seconds": seconds, "images_per_second": visits / seconds}
            with torch.no_grad():  # what it draws does not count: each epoch seeds its random numbers anew
                row |= defense.epoch_metrics(model.eval(), train_data.batches(spread(train), recipe.batch_size))
            if len(validation):
                row["validation_accuracy"] = accuracy(model, train_data, validation, recipe.batch_size)
            state = advance(state, model, optimizers, row, recipe)
            save(state)
    model.load_state_dict(state.best if recipe.keep == "best" else state.model)
    return state


def _chosen(data: ImageSet, positions: Tensor) -> ImageSet:
    """Those of the images at different positions; all of them are not copied."""
    return data if len(positions) == len(data) else data.subset(positions)


def backward(player: Player, model: Defended, batch: Batch, precision: str) -> Tensor:
    """Add the gradient of the player's loss to its parameters, term by term; returns the loss, detached."""
    total = torch.zeros((), device=batch.x.device)
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = player.loss(model, batch)
    terms = iter([loss]) if isinstance(loss, Tensor) else loss
    while True:
        with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=precision == "bf16"):
            term = next(terms, None)
        if term is None:
            return total
        term.backward()
        total = total + term.detach()


def advance(state: State, model: Defended, optimizers: dict[str, Optimizer], row: dict[str, Any], recipe: Recipe) -> State:
    """The state after one more epoch, in tensors of its own on the CPU."""
    weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}
    after = State(state.epoch + 1, weights, state.best, optimizer_tensors(optimizers), [*state.history, row])
    if recipe.keep == "best" and after.best_epoch == after.epoch:
        after.best = weights
    return after


@torch.no_grad()
def accuracy(model: Defended, data: ImageSet, positions: Tensor, batch_size: int) -> float:
    """Share of correct predictions in eval mode; leaves the model in it."""
    model.eval()
    correct = sum((model(x).argmax(dim=1) == y).sum() for x, y, _ in data.batches(positions, batch_size))
    return float(correct) / len(positions)


class LossWatch:
    """Sums each player's loss on the device, and remembers the first step at which it was not finite; looks only when asked."""

    def __init__(self, players: Sequence[Player], epoch: int) -> None:
        self.epoch = epoch
        self.sums: dict[str, Tensor] = {}
        self.first_bad: dict[str, Tensor] = {}
        self.steps = 0

    def see(self, player: str, loss: Tensor, step: int) -> None:
        loss = loss.detach().float()
        never = torch.full_like(loss, torch.inf)
        bad = torch.where(torch.isfinite(loss), never, torch.full_like(loss, step))
        self.sums[player] = self.sums.get(player, torch.zeros_like(loss)) + loss
        self.first_bad[player] = torch.minimum(self.first_bad.get(player, never), bad)
        self.steps = step + 1

    def mean(self, player: str) -> float:
        name, first = min(self.first_bad.items(), key=lambda item: float(item[1]))  # where it began: one player's spoils the others'
        if torch.isfinite(first):
            raise LabError(
                f"the loss of player {name!r} is not finite in epoch {self.epoch + 1}, step {int(first) + 1}; the checkpoint of epoch "
                f"{self.epoch} is kept; a lower training.optimizer.lr or training.precision=fp32 may help"
            )
        return float(self.sums[player]) / self.steps


def optimizer_tensors(optimizers: dict[str, Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state as flat tensors named player/parameter/key, on the CPU."""
    flat = {}
    for player, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            for key, value in entries.items():
                if value is not None:
                    flat[f"{player}/{index}/{key}"] = torch.as_tensor(value).detach().to("cpu", copy=True).contiguous()
    return flat


def restore_optimizers(optimizers: dict[str, Optimizer], flat: dict[str, Tensor]) -> None:
    states: dict[str, dict[int, dict[str, Tensor]]] = {player: {} for player in optimizers}
    for name, tensor in flat.items():
        player, index, key = name.rsplit("/", 2)
        states[player].setdefault(int(index), {})[key] = tensor.clone()
    for player, optimizer in optimizers.items():
        optimizer.load_state_dict({"state": states[player], "param_groups": optimizer.state_dict()["param_groups"]})
