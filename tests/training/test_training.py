"""The training loop: what an epoch visits, what is resumed, what is kept, and what stops it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense, Player
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.training.batches import augment, epoch_batches, split_validation, spread
from robustbench_lab.training.loop import accuracy, fit
from robustbench_lab.training.recipe import MultiStep, OneCycle, Recipe
from robustbench_lab.training.state import State

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
ADAM = partial(torch.optim.Adam, lr=0.01)


def constant(epoch: float, epochs: int) -> float:
    return 1.0


def recipe(**changes: Any) -> Recipe:
    plain = Recipe(
        epochs=4, batch_size=8, optimizer=SGD, schedule=OneCycle(warmup=0.3, start=0.1, end=0.0), crop_padding=1, flip=True,
        precision="fp32", attack_precision="fp32", channels_last=False, compile=False, validation=0.0, patience=None, keep="last",
    )  # fmt: skip
    return replace(plain, **changes)


@pytest.fixture
def data() -> ImageSet:
    """45 random images with labels that a little can be learned of."""
    images = torch.rand(45, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, (images[:, 0, 2:4].mean((1, 2)) * 6).long().clamp(0, 5) % 3, torch.arange(100, 145))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


# Schedules and splits


def test_multi_step() -> None:
    schedule = MultiStep(milestones=[150, 250], factor=0.1)
    rates = [schedule(epoch, 350) for epoch in (0, 149.99, 150, 200, 249.9, 250, 349)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert MultiStep(milestones=[], factor=0.1)(100, 100) == 1


def test_one_cycle() -> None:
    """Up from .1 over 9 of 30 epochs, down to 0 over the other 21."""
    schedule = OneCycle(warmup=0.3, start=0.1, end=0.0)
    rates = [schedule(epoch, 30) for epoch in (0, 3, 4.5, 9, 19.5, 30)]
    assert rates == pytest.approx([0.1, 0.4, 0.55, 1, 0.5, 0])
    with pytest.raises(LabError, match=r"^warmup: "):
        OneCycle(warmup=1.0, start=0.1, end=0.0)


def test_learning_rates_follow_the_schedule(data: ImageSet, tiny_net: Callable[..., Defended]) -> None:
    """45 images in batches of 8: six steps an epoch; the schedule sees fractions of epochs."""
    seen: list[float] = []

    def schedule(epoch: float, epochs: int) -> float:
        seen.append(epoch)
        return 2.0 ** -len(seen)

    rates: list[float] = []

    class Recording(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    fit(Defense(), tiny_net(), data, recipe(epochs=2, schedule=schedule, optimizer=partial(Recording, lr=8.0e-3)), 0)
    assert seen == pytest.approx([step / 6 for step in range(12)])
    assert rates == pytest.approx([8.0e-3 / 2**step for step in range(1, 13)])


@pytest.mark.parametrize(("n", "share", "held_out"), [(100, 0.1, 10), (60_000, 0.1, 6000), (45, 0.2, 9), (10, 0.0, 0), (7, 0.5, 4)])
def test_the_last_images_are_held_out(n: int, share: float, held_out: int) -> None:
    train, validation = split_validation(n, share)
    assert train.tolist() == list(range(n - held_out))
    assert validation.tolist() == list(range(n - held_out, n))


def test_two_images_must_be_left() -> None:
    with pytest.raises(LabError, match=r"^training\.validation: "):
        split_validation(10, 0.9)


def test_a_share_for_validation_is_an_image_at_least() -> None:
    """200 times 0.002 rounds to none, and of none every epoch would be as good as the first."""
    with pytest.raises(LabError, match=r"^training\.validation: .*200 training images"):
        split_validation(200, 0.002)


# What an epoch visits


@pytest.mark.parametrize(("copies", "batch_size"), [(1, 8), (1, 45), (1, 100), (3, 8), (11, 128), (2, 1)])
def test_an_epoch_visits_each_copy_of_each_image_once(copies: int, batch_size: int, data: ImageSet) -> None:
    train = torch.arange(40)
    visits, orders = [], []
    for epoch in (0, 1):
        batches = list(epoch_batches(data, train, recipe(batch_size=batch_size), copies, 0, epoch))
        assert {len(batch.x) for batch in batches[:-1]} <= {batch_size}
        visits = [pair for batch in batches for pair in zip(batch.ids.tolist(), batch.copy.tolist(), strict=True)]
        assert sorted(visits) == [(100 + image, copy) for image in range(40) for copy in range(copies)]
        assert all(batch.epoch == epoch for batch in batches)
        assert all(data.labels[batch.ids - 100].equal(batch.y) for batch in batches)
        orders.append(visits)
    assert orders[0] != orders[1]
    assert visits != sorted(visits)


def test_a_last_batch_of_one_image_is_left_out(data: ImageSet) -> None:
    sizes = [len(batch.x) for batch in epoch_batches(data, torch.arange(41), recipe(batch_size=8), 1, 0, 0)]
    assert sizes == [8] * 5


def test_an_epoch_depends_on_seed_and_number_alone(data: ImageSet) -> None:
    def epoch(seed: int, number: int) -> list[Batch]:
        torch.rand(7)  # the global random state is somewhere else each time
        return list(epoch_batches(data, torch.arange(45), recipe(), 2, seed, number))

    first, again, other = epoch(0, 3), epoch(0, 3), epoch(1, 3)
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.rng.keys, two.rng.keys)
        assert torch.equal(one.fixed_rng.keys, two.fixed_rng.keys)
    assert not torch.equal(first[0].ids, other[0].ids)


def test_random_numbers_of_a_batch_belong_to_image_copy_and_epoch(data: ImageSet) -> None:
    keys: dict[tuple[int, int, int], tuple[int, int]] = {}
    for epoch in (0, 1):
        for batch in epoch_batches(data, torch.arange(45), recipe(), 2, 0, epoch):
            rows = zip(
                batch.ids.tolist(),
                batch.copy.tolist(),
                batch.rng.keys.tolist(),
                batch.fixed_rng.keys.tolist(),
                strict=True,
            )
            keys |= {(image, copy, epoch): (moving, fixed) for image, copy, moving, fixed in rows}
    assert len({moving for moving, _ in keys.values()}) == 180
    assert len({fixed for _, fixed in keys.values()}) == 90
    assert all(keys[image, copy, 0][1] == keys[image, copy, 1][1] for image, copy, _ in keys)


def test_augmentation_differs_across_epochs_and_copies(data: ImageSet) -> None:
    def images(epoch: int, **changes: Any) -> dict[tuple[int, int], Tensor]:
        batches = epoch_batches(data, torch.arange(45), recipe(**changes), 2, 0, epoch)
        return {(i, c): x for b in batches for x, i, c in zip(b.x, b.ids.tolist(), b.copy.tolist(), strict=True)}

    first, second = images(0), images(1)
    assert sum(torch.equal(first[key], second[key]) for key in first) < 25  # of 90: 1 crop in 9 and 1 flip in 2 agree by chance
    assert sum(torch.equal(first[image, 0], first[image, 1]) for image, _ in first) < 25
    plain = images(0, crop_padding=0, flip=False)
    assert all(torch.equal(x, data.images[image - 100]) for (image, _), x in plain.items())
    flipped = images(0, crop_padding=0)
    turned = sum(not torch.equal(x, data.images[image - 100]) for (image, _), x in flipped.items())
    assert 25 < turned < 65
    batch = next(epoch_batches(data, torch.arange(45), recipe(), 1, 0, 0))
    assert augment(batch.x, recipe(crop_padding=0, flip=False), batch.rng) is batch.x


# Bit-equal, twice and resumed

RECIPES = {
    "sgd": recipe(),
    "adam": recipe(optimizer=ADAM, schedule=constant),
    "channels last": recipe(channels_last=True, epochs=3),
    "best": recipe(validation=0.2, keep="best", patience=3, optimizer=ADAM, schedule=constant, epochs=6),
    "no momentum": recipe(optimizer=partial(torch.optim.SGD, lr=0.1)),
}


class NetWithDropout(nn.Module):
    """Draws that are tied to no image, and BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def new_model() -> Defended:
    torch.manual_seed(5)
    return Defended(NetWithDropout())


@pytest.mark.parametrize("defense_name", ["standard", "fm-like", "gda"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_stopped_after_any_epoch_ends_at_the_same_weights(
    name: str, defense_name: str, data: ImageSet, built: Callable[..., Any]
) -> None:
    chosen = {
        "standard": Defense(),
        "fm-like": built("defense", "adversarial_training_pni", "defense.start_epoch=1", "defense.attack.steps=2"),
        "gda": built("defense", "gda", "defense.noisy_copies=1"),
    }[defense_name]
    how = RECIPES[name]
    states: list[State] = []
    model = new_model()
    last = fit(chosen, model, data, how, 3, save=states.append)
    whole = copied(model.state_dict())
    assert [state.epoch for state in states] == list(range(1, last.epoch + 1))

    again = new_model()
    fit(chosen, again, data, how, 3)
    assert same(again.state_dict(), whole)

    for state in states:
        torch.rand(3)
        resumed = Defended(NetWithDropout())  # other first weights: all must come from the state
        seen: list[int] = []
        after = fit(chosen, resumed, data, how, 3, state, save=lambda s, seen=seen: seen.append(s.epoch))  # type: ignore[misc]
        assert seen == list(range(state.epoch + 1, last.epoch + 1))
        assert same(resumed.state_dict(), whole)
        assert same(after.optimizers, last.optimizers)
        assert [row["loss_model"] for row in after.history] == [row["loss_model"] for row in last.history]

    other = new_model()
    fit(chosen, other, data, how, 4)
    assert not same(other.state_dict(), whole)


def test_a_saved_state_is_not_touched_by_later_epochs(data: ImageSet) -> None:
    states: list[State] = []
    snapshots: list[dict[str, Tensor]] = []

    def save(state: State) -> None:
        states.append(state)
        snapshots.append(copied({**state.model, **state.optimizers}))

    fit(Defense(), new_model(), data, recipe(), 0, save=save)
    for state, snapshot in zip(states, snapshots, strict=True):
        assert same({**state.model, **state.optimizers}, snapshot)
    assert not same(states[0].model, states[1].model)
    assert any("momentum_buffer" in name for name in states[0].optimizers)


# What a defense tells of each epoch


@dataclass(frozen=True, kw_only=True)
class Telling(Defense):
    """Draws random numbers, and looks at the first batch through the model."""

    def epoch_metrics(self, model: Defended, batches: Any) -> dict[str, float]:
        x, _, ids = next(iter(batches))
        assert not any(module.training for module in model.modules())
        logits = model(x)
        assert not logits.requires_grad
        return {"first": float(ids[0]), "largest": float(logits.max() + 0 * torch.rand(()))}


@pytest.mark.parametrize("name", ["sgd", "best"])
def test_what_is_told_of_an_epoch_changes_nothing(name: str, data: ImageSet) -> None:
    plain, telling = new_model(), new_model()
    fit(Defense(), plain, data, RECIPES[name], 3)
    states: list[State] = []
    last = fit(Telling(), telling, data, RECIPES[name], 3, save=states.append)
    assert same(plain.state_dict(), telling.state_dict())
    assert [row["first"] for row in last.history] == [100.0] * last.epoch
    resumed = fit(Telling(), Defended(NetWithDropout()), data, RECIPES[name], 3, states[0])
    assert [row["largest"] for row in resumed.history] == [row["largest"] for row in last.history]
    assert len({row["largest"] for row in last.history}) == last.epoch


def test_what_is_told_of_an_epoch_is_about_images_from_everywhere() -> None:
    """Datasets may be sorted by class."""
    assert spread(torch.arange(40)).tolist() == list(range(40))
    assert spread(torch.arange(2_500)).tolist() == list(range(0, 2_500, 3))
    assert len(spread(torch.arange(50_000))) == 1000


# What is kept


def scripted_accuracies(monkeypatch: pytest.MonkeyPatch, accuracies: list[float]) -> None:
    rest = iter(accuracies)
    monkeypatch.setattr("robustbench_lab.training.loop.accuracy", lambda *args: next(rest))


@pytest.mark.parametrize(
    ("keep", "patience", "epochs", "kept"),
    [("best", None, 6, 3), ("best", 2, 5, 3), ("last", 2, 5, 5), ("last", None, 6, 6), ("best", 1, 2, 1)],
)
def test_keep_and_patience(
    keep: str, patience: int | None, epochs: int, kept: int, data: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Validation accuracies .5 .4 .7 .7 .6 .1: the best is the third, the first of equals."""
    scripted_accuracies(monkeypatch, [0.5, 0.4, 0.7, 0.7, 0.6, 0.1])
    states: list[State] = []
    model = new_model()
    last = fit(Defense(), model, data, recipe(epochs=6, validation=0.2, keep=keep, patience=patience), 0, save=states.append)
    assert last.epoch == len(states) == epochs
    assert same(model.state_dict(), states[kept - 1].model)
    assert [row["validation_accuracy"] for row in last.history] == [0.5, 0.4, 0.7, 0.7, 0.6, 0.1][:epochs]
    if keep == "best":
        assert last.best_epoch == kept


def test_training_does_not_see_the_validation_images(data: ImageSet) -> None:
    seen: set[int] = set()

    @dataclass(frozen=True, kw_only=True)
    class Watching(Defense):
        def prepare(self, model: Defended, train_data: Any, teacher: nn.Module | None) -> None:
            seen.update(train_data.ids.tolist())

        def loss(self, model: Defended, batch: Batch) -> Tensor:
            seen.update(batch.ids.tolist())
            return super().loss(model, batch)

    state = fit(Watching(), new_model(), data, recipe(epochs=2, validation=0.2), 0)
    assert seen == set(range(100, 136))
    model = new_model()
    model.load_state_dict(state.model)
    assert state.history[-1]["validation_accuracy"] == accuracy(model, data, torch.arange(36, 45), 4)
    x, y, _ = next(data.batches(torch.arange(36, 45), 9))
    assert state.history[-1]["validation_accuracy"] == pytest.approx((model.eval()(x).argmax(1) == y).float().mean().item())


def test_prepare_comes_once_and_not_again_after_a_resume(data: ImageSet) -> None:
    calls: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Preparing(Defense):
        def prepare(self, model: Defended, train_data: Any, teacher: nn.Module | None) -> None:
            calls.append(len(train_data))

    states: list[State] = []
    fit(Preparing(), new_model(), data, recipe(epochs=2), 0, save=states.append)
    fit(Preparing(), new_model(), data, recipe(epochs=2), 0, states[0])
    assert calls == [45]


# What stops it


@dataclass(frozen=True, kw_only=True)
class Failing(Defense):
    """A loss that is not finite at one step (from 1) of one epoch (from 0) for one of two players."""

    value: Any  # no knob: a float would have to be finite
    player: str
    step: int
    epoch: int = 1

    def players(self, model: Defended) -> list[Player]:
        steps = {"first": [0, 0], "second": [0, 0]}

        def loss_of(name: str) -> Callable[[Defended, Batch], Tensor]:
            def loss(model: Defended, batch: Batch) -> Tensor:
                epoch, step = steps[name]
                steps[name] = [batch.epoch, step + 1 if epoch == batch.epoch else 1]
                fails = (name, batch.epoch, steps[name][1]) == (self.player, self.epoch, self.step)
                return Defense.loss(self, model, batch) * (self.value if fails else 1.0)

            return loss

        head = list(model.network.get_submodule("body.5").parameters())
        body = [p for p in model.parameters() if all(p is not q for q in head)]
        return [Player("first", body, loss_of("first")), Player("second", head, loss_of("second"))]


@pytest.mark.parametrize("player", ["first", "second"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 3, 6])
def test_a_loss_that_is_not_finite(step: int, value: float, player: str, data: ImageSet) -> None:
    """The step and player where it began, not those that it spread to; the epoch is not saved."""
    states: list[State] = []
    with pytest.raises(LabError, match=rf"player '{player}' is not finite in epoch 2, step {step}; the checkpoint of epoch 1 "):
        fit(Failing(value=value, player=player, step=step), new_model(), data, recipe(), 0, save=states.append)
    assert [state.epoch for state in states] == [1]
    assert all(tensor.isfinite().all() for tensor in states[0].model.values())


def test_it_stops_within_a_long_epoch(data: ImageSet) -> None:
    """Batches of two from three copies: 67 steps; the look after step 50 ends it."""
    steps: list[int] = []

    @dataclass(frozen=True, kw_only=True)
    class Broken(Defense):
        @property
        def copies(self) -> int:
            return 3

        def loss(self, model: Defended, batch: Batch) -> Tensor:
            steps.append(1)
            return super().loss(model, batch) * torch.nan

    with pytest.raises(LabError, match=r"epoch 1, step 1;"):
        fit(Broken(), new_model(), data, recipe(batch_size=2), 0)
    assert len(steps) == 50


# Players


class TwoNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2] * self.u + self.v


@dataclass(frozen=True, kw_only=True)
class Alternating(Defense):
    """u lowers u v, then v raises it, then v is cut at 3.1."""

    def players(self, model: Defended) -> list[Player]:
        net = model.network
        assert isinstance(net, TwoNumbers)
        return [
            Player("low", [net.u], lambda model, batch: net.u * net.v),
            Player("high", [net.v], lambda model, batch: -net.u * net.v),
        ]

    def after_step(self, model: Defended) -> None:
        model.network.get_parameter("v").data.clamp_(max=3.1)


def test_players_take_turns_within_a_step(data: ImageSet) -> None:
    """By hand at rate .1. Step 1: u = 1 - .1 * 3 = .7, v = 3 + .1 * .7 = 3.07. Step 2: u = .7 - .307 = .393,
    v = 3.07 + .0393, cut at 3.1. Step 3: u = .393 - .31 = .083, v = 3.1 + .0083, cut again. The losses are those before each move.
    """
    model = Defended(TwoNumbers())
    how = recipe(epochs=1, batch_size=15, optimizer=partial(torch.optim.SGD, lr=0.1), schedule=constant)
    state = fit(Alternating(), model, data, how, 0)
    assert model.state_dict()["network.u"].item() == pytest.approx(0.083, abs=1e-6)
    assert model.state_dict()["network.v"].item() == pytest.approx(3.1, abs=1e-6)
    assert state.history[0]["loss_low"] == pytest.approx((3 + 0.7 * 3.07 + 0.393 * 3.1) / 3, abs=1e-5)
    assert state.history[0]["loss_high"] == pytest.approx(-(0.7 * 3 + 0.393 * 3.07 + 0.083 * 3.1) / 3, abs=1e-5)


def test_players_keep_their_own_optimizer_state_when_resumed(data: ImageSet) -> None:
    states: list[State] = []
    model = Defended(TwoNumbers())
    fit(Alternating(), model, data, recipe(), 0, save=states.append)
    assert {name.split("/")[0] for name in states[0].optimizers} == {"low", "high"}
    resumed = Defended(TwoNumbers())
    fit(Alternating(), resumed, data, recipe(), 0, states[1])
    assert same(resumed.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 2.5}, "batch_size"),
        ({"crop_padding": -1}, "crop_padding"),
        ({"precision": "fp16"}, "precision"),
        ({"attack_precision": "tf32"}, "attack_precision"),
        ({"validation": 1}, "validation"),
        ({"keep": "first"}, "keep"),
        ({"keep": "best"}, "validation"),
        ({"patience": 3}, "validation"),
    ],
)
def test_wrong_recipes(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(LabError, match=rf"^{key}: expected "):
        recipe(**changes)


# Precision, layout, compilation, device


KNOBS = {
    "bf16": {"precision": "bf16", "attack_precision": "bf16"},
    "channels_last": {"channels_last": True},
    "both": {"precision": "bf16", "attack_precision": "bf16", "channels_last": True},
}


@pytest.mark.parametrize("knobs", KNOBS.values(), ids=KNOBS)
def test_other_precisions_and_layouts_learn_and_resume_at_the_same_weights(
    knobs: dict[str, Any], data: ImageSet, tiny_net: Callable[..., Defended], built: Callable[..., Any]
) -> None:
    defense, how, states = built("defense", "adversarial_training", "defense.attack.steps=2"), recipe(**knobs), []
    whole = fit(defense, tiny_net(), data, how, 0, save=states.append)
    resumed = fit(defense, tiny_net(), data, how, 0, states[1])
    assert same(whole.model, resumed.model)
    assert all(tensor.is_contiguous() and tensor.dtype != torch.bfloat16 for tensor in whole.model.values())
    assert whole.history[-1]["loss_model"] < whole.history[0]["loss_model"]


def test_compiled_training_is_the_same_training(
    data: ImageSet, tiny_net: Callable[..., Defended], built: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through dynamo, but without a compiler: what the compiler makes of the graph is torch's own."""
    compiled = []

    def eager(function: Any, **options: Any) -> Any:
        compiled.append(function)
        return torch_compile(function, **{**options, "backend": "eager"})

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", eager)
    defense, model = built("defense", "adversarial_training", "defense.attack.steps=2"), tiny_net()
    fast = fit(defense, model, data, recipe(epochs=2, compile=True), 0)
    assert len(compiled) == 2, "the network and its fast copy"
    plain = fit(defense, tiny_net(), data, recipe(epochs=2), 0)
    assert fast.model.keys() == plain.model.keys()
    for name, tensor in plain.model.items():
        torch.testing.assert_close(fast.model[name], tensor, msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("knobs", [{}, *KNOBS.values(), {"compile": True}], ids=["plain", *KNOBS, "compiled"])
def test_training_on_a_gpu(knobs: dict[str, Any], data: ImageSet, tiny_net: Callable[..., Defended], built: Callable[..., Any]) -> None:
    defense = built("defense", "adversarial_training", "defense.attack.steps=2")
    state = fit(defense, tiny_net().cuda(), data.to("cuda"), recipe(**knobs), 0)
    assert all(tensor.device.type == "cpu" for tensor in state.model.values())
    assert state.history[-1]["loss_model"] < state.history[0]["loss_model"]
