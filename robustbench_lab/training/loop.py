"""fit(): the one training loop.

Everything random in an epoch is a function of (seed, epoch, image), so that a run resumed from its last complete epoch ends at the same
weights as one that was never stopped, bit for bit on a CPU with as many threads (sums over images are split among them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense, Player
from robustbench_lab.errors import LabError, said
from robustbench_lab.knobs import require
from robustbench_lab.models.defended import Defended, full_precision, searched_kernels
from robustbench_lab.models.network_space import as_shown, check_same_space
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.progress import progress
from robustbench_lab.randomness import stable_hash
from robustbench_lab.training.averaging import Average
from robustbench_lab.training.batches import epoch_batches, split_validation, spread
from robustbench_lab.training.rates import optimizer_and_rates
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.start import begin
from robustbench_lab.training.state import State, advance, restore_optimizers, snapshot

Kept = Callable[[Callable[[], ImageSet | None]], ImageSet | None]
CHECK_EVERY = 50  # steps between looks at the loss: each look waits for the GPU


def fit(
    defense: Defense,
    model: Defended,
    train_data: ImageSet,
    recipe: Recipe,
    seed: int,
    state: State | None = None,
    save: Callable[[State], None] = lambda state: None,
    teacher: Defended | None = None,
    kept: Kept = lambda make: make(),
) -> State:
    """Train the model in place, from `state` if there is one, and hand each complete epoch's state to `save`.

    The model and the data lie on one device. teacher: the trained model that a defense learns from. kept: gives the defense's extra images,
    from an earlier start or made now.
    Returns the last state; the model then holds the weights that the recipe keeps.
    Raises LabError, naming epoch, step and player, when a loss is not finite; the states saved before stay good.
    """
    train, validation = split_validation(len(train_data), recipe.validation)
    if teacher is not None:
        teacher.eval().requires_grad_(False)
    if state is not None:
        model.load_state_dict(state.model)
    else:
        learn_statistics(model, _chosen(train_data, train), seed)
        begin(model, recipe, teacher)  # statistics too, where that run has learned them
    if teacher is not None:
        check_same_space(model, teacher, "defense.teacher")
    train_data = as_shown(model, train_data)
    own = _chosen(train_data, train)
    if (extra := kept(partial(defense.extra_images, model, teacher, own, seed))) is not None:
        added = torch.arange(len(extra)) + len(train_data)
        train = torch.cat([train, added]) if defense.learns_originals else added
        train_data = train_data.followed_by(extra)
    del own  # a copy where images are held out
    if state is None:
        state = State()
        defense.prepare(model, _chosen(train_data, train), teacher)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.compile:
        torch.compiler.reset()  # a sweep trains many models in one process, and dynamo keeps only so many versions of a function
        model.network.compile(dynamic=False)  # a smaller last batch gets kernels of its own, and does not slow the others
    model.attach_fast_copy(recipe.attack_precision, recipe.channels_last, recipe.compile)
    players = defense.players(model)
    optimizers, rates = {}, {}
    for player in players:
        optimizers[player.name], rates[player.name] = optimizer_and_rates(list(player.parameters), model, recipe)
    restore_optimizers(optimizers, state.optimizers)
    average = Average(model, recipe.averaging, state.averaged)
    visits = len(train) * defense.copies
    steps = max(1, visits // recipe.batch_size + (visits % recipe.batch_size > 1))
    passes = [len(passes_of(players, epoch)) for epoch in range(recipe.epochs)]

    with (
        progress(total=sum(passes) * steps, initial=sum(passes[: state.epoch]) * steps, unit="step", desc="train") as bar,
        full_precision(),
        searched_kernels(),
        explained(recipe),
    ):
        while not state.finished(recipe):
            epoch, started = state.epoch, time.perf_counter()
            torch.manual_seed(stable_hash(seed, "epoch", epoch))  # dropout and other draws that are not tied to images
            watch = LossWatch(epoch)
            for number, movers in enumerate(passes_of(players, epoch)):
                train_mode(model, movers[0])
                for step, batch in enumerate(epoch_batches(train_data, train, recipe, defense.copies, seed, epoch, teacher, number)):
                    factor = recipe.factor(epoch + step / steps)
                    for player in movers:
                        if len(movers) > 1 and any(mover.in_eval for mover in movers):
                            train_mode(model, player)
                        optimizer = optimizers[player.name]
                        for group, lr in zip(optimizer.param_groups, rates[player.name], strict=True):
                            group["lr"] = lr * factor
                        optimizer.zero_grad(set_to_none=True)
                        loss = backward(player, model, batch, recipe.precision)
                        optimizer.step()
                        watch.see(player.name, loss, step)
                    defense.after_step(model)
                    average.update()
                    bar.update()
                    if step % CHECK_EVERY == CHECK_EVERY - 1:
                        bar.set_postfix(epoch=f"{epoch + 1}/{recipe.epochs}", loss=f"{watch.mean(movers[0].name):.4f}", refresh=False)
            row = {"epoch": epoch + 1, **{f"loss_{name}": watch.mean(name) for name in watch.sums}}
            seconds = time.perf_counter() - started  # after the means, which wait for the device
            row |= {"lr_factor": factor, "seconds": seconds, "images_per_second": passes[epoch] * visits / seconds}
            with average.shown(), torch.no_grad():  # what it draws does not count: each epoch seeds its random numbers anew
                row |= defense.epoch_metrics(model.eval(), train_data.batches(spread(train), recipe.batch_size))
                if len(validation):
                    told = defense.validation_metrics(model, train_data.batches(validation, recipe.batch_size))
                    row |= told or {"validation_accuracy": accuracy(model, train_data, validation, recipe.batch_size)}
            state = advance(state, model, optimizers, average.snapshot(), row, recipe)
            save(state)
    if state.epoch == 0:  # a run of no epochs is what it began from
        state.model = state.best = snapshot(model)
    model.load_state_dict(state.best if recipe.keep == "best" else state.model | state.averaged)
    return state


@contextmanager
def explained(recipe: Recipe) -> Iterator[None]:
    """What PyTorch refuses and its user can put right, as an error that says which key to change."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise LabError(
            "training.batch_size: BatchNorm has to see more than one value of each channel, and this backbone leaves 1x1 of such an image: "
            "expected batches, and parts of them that a defense looks at alone, of two images or more, got training.batch_size="
            f"{recipe.batch_size}; choose a larger one, or a backbone that leaves more of each image"
        ) from error
    except RuntimeError as error:
        if not recipe.compile or not type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
            raise
        reason = getattr(error, "inner_exception", error)
        raise LabError(
            f"training.compile: torch.compile cannot compile this network here ({said(reason).partition(chr(10))[0]}); it needs a C++ "
            "compiler (Debian: apt install g++; the environment variable CXX names another one), on a GPU Triton and a C compiler (CC); or "
            "train with training.compile=false"
        ) from error


def passes_of(players: Sequence[Player], epoch: int) -> list[list[Player]]:
    """Who moves in which pass over the epoch's images. Raises LabError where nobody does."""
    passes: list[list[Player]] = []
    for player in players:
        if not player.turns.at(epoch):
            continue
        if player.turns.own_pass or not passes or passes[-1][-1].turns.own_pass:
            passes.append([])
        passes[-1].append(player)
    require(bool(passes), "defense", f"a player that moves in epoch {epoch + 1}", [player.name for player in players])
    return passes


def train_mode(model: Defended, player: Player) -> None:
    """Train mode, but for what stays as it is in this player's turn."""
    model.train()
    for module in (*(front for front in model.each_front() if not front.learned), *player.in_eval):
        module.eval()


def _chosen(data: ImageSet, positions: Tensor) -> ImageSet:
    """Those of the images at different positions; all of them are not copied."""
    return data if len(positions) == len(data) else data.subset(positions)


def learn_statistics(model: Defended, images: ImageSet, seed: int) -> None:
    """What the model's own layers learn from the training images before the first step; it goes into buffers."""
    for module in model.modules():
        if isinstance(module, FirstLayer):
            module.fit(images)
    for place, front in enumerate(model.each_front()):
        front.fit(images, torch.Generator().manual_seed(stable_hash(seed, "front", place)))


def backward(player: Player, model: Defended, batch: Batch, precision: str) -> Tensor:
    """Add the gradient of the player's loss to its parameters, term by term; returns the loss, detached."""
    total = torch.zeros((), device=batch.x.device)
    with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = player.loss(model, batch)
    terms = iter([loss]) if isinstance(loss, Tensor) else loss
    try:
        while True:
            with torch.autocast(batch.x.device.type, torch.bfloat16, enabled=precision == "bf16"):
                term = next(terms, None)
            if term is None:
                return total
            term.backward()
            total = total + term.detach()
    finally:
        if isinstance(terms, Generator):  # what it holds open, such as hooks, is closed also where a backward pass fails
            terms.close()


@torch.no_grad()
def accuracy(model: Defended, data: ImageSet, positions: Tensor, batch_size: int) -> float:
    """Share of correct predictions in eval mode; leaves the model in it."""
    model.eval()
    correct = sum((model(x).argmax(dim=1) == y).sum() for x, y, _ in data.batches(positions, batch_size))
    return float(correct) / len(positions)


class LossWatch:
    """Sums each player's loss on the device, and remembers the first step at which it was not finite; looks only when asked."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.sums: dict[str, Tensor] = {}
        self.first_bad: dict[str, Tensor] = {}
        self.steps: dict[str, int] = {}

    def see(self, player: str, loss: Tensor, step: int) -> None:
        loss = loss.detach().float()
        never = torch.full_like(loss, torch.inf)
        bad = torch.where(torch.isfinite(loss), never, torch.full_like(loss, step))
        self.sums[player] = self.sums.get(player, torch.zeros_like(loss)) + loss
        self.first_bad[player] = torch.minimum(self.first_bad.get(player, never), bad)
        self.steps[player] = step + 1

    def mean(self, player: str) -> float:
        name, first = min(self.first_bad.items(), key=lambda item: float(item[1]))  # where it began: one player's spoils the others'
        if torch.isfinite(first):
            raise LabError(
                f"the loss of player {name!r} is not finite in epoch {self.epoch + 1}, step {int(first) + 1}; the checkpoint of epoch "
                f"{self.epoch} is kept; a lower training.optimizer.lr or training.precision=fp32 may help"
            )
        return float(self.sums[player]) / self.steps[player]
