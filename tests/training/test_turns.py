"""Players with a pass of their own, who wait, and who keep modules in eval mode; resumed, they end at the same weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense, Player, Turns
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front
from robustbench_lab.training.loop import fit, passes_of
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.state import State

EPOCHS = 4


class Masked(nn.Module):
    """A classifier with BatchNorm behind a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.mask = nn.Parameter(torch.ones(5, 5))
        self.classifier = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x * self.mask)


@dataclass(frozen=True, kw_only=True)
class Alternating(Defense):
    """The classifier's pass, then, from `first_epoch` on, the mask's, in which the classifier stands still. seen: who saw which images."""

    seen: Any
    own_pass: bool = True
    first_epoch: int = 1

    def players(self, model: Defended) -> list[Player]:
        net = model.network
        assert isinstance(net, Masked)

        def loss_of(name: str, model: Defended, batch: Batch) -> Tensor:
            self.seen.append((name, batch.epoch, batch.ids.tolist(), float(batch.rng.uniform(1)[0]), net.classifier.training))
            return self.loss(model, batch) + 0.01 * net.mask.abs().sum()

        return [
            Player("classifier", net.classifier.parameters(), partial(loss_of, "classifier")),
            Player("mask", [net.mask], partial(loss_of, "mask"), Turns(self.own_pass, self.first_epoch), in_eval=[net.classifier]),
        ]


def recipe() -> Recipe:
    return Recipe(
        epochs=EPOCHS, batch_size=8, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9),
        schedule=lambda epoch, epochs: 1 - epoch / epochs, crop_padding=1, flip=True,
        precision="fp32", attack_precision="fp32", channels_last=False, compile=False, validation=0.0,
        patience=None, keep="last",
    )  # fmt: skip


@pytest.fixture
def data() -> ImageSet:
    images = torch.rand(40, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return ImageSet(images, torch.arange(40) % 3, torch.arange(40))


def model(fronts: Sequence[Front] = ()) -> Defended:
    torch.manual_seed(0)
    return Defended(Masked(), fronts)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_pass_of_its_own_sees_each_image_once_in_another_order(data: ImageSet) -> None:
    seen: list[tuple[str, int, list[int], float, bool]] = []
    fit(Alternating(seen=seen), model(), data, recipe(), 0)
    for epoch in range(EPOCHS):
        names = [name for name, at, *_ in seen if at == epoch]
        assert names == ["classifier"] * 5 + (["mask"] * 5 if epoch >= 1 else [])
        passes = [[image for who, at, ids, *_ in seen if (who, at) == (name, epoch) for image in ids] for name in ("classifier", "mask")]
        assert sorted(passes[0]) == list(range(40))
        if epoch:
            assert sorted(passes[1]) == list(range(40))
            assert passes[0] != passes[1]
    draws = [draw for *_, draw, _ in seen]
    assert len(set(draws)) == len(draws), "each pass has random numbers of its own"


@pytest.mark.parametrize("own_pass", [True, False])
def test_who_waits_or_stands_still_does_not_move(own_pass: bool, data: ImageSet) -> None:
    """The classifier is in train mode in its own turn, in eval mode in the mask's; its BatchNorm counts its own five passes an epoch."""
    seen: list[tuple[str, int, list[int], float, bool]] = []
    states: list[State] = []
    fit(Alternating(seen=seen, own_pass=own_pass), model(), data, recipe(), 0, save=states.append)
    assert all(training is (name == "classifier") for name, *_, training in seen)
    assert torch.equal(states[0].model["network.mask"], torch.ones(5, 5))
    assert not torch.equal(states[1].model["network.mask"], torch.ones(5, 5))
    assert [int(state.model["network.classifier.1.num_batches_tracked"]) for state in states] == [5, 10, 15, 20]
    assert ["loss_mask" in row for row in states[-1].history] == [False, True, True, True]


@pytest.mark.parametrize("own_pass", [True, False])
@pytest.mark.parametrize("after", [1, 2, 3])
def test_stopped_after_any_epoch_it_ends_at_the_same_weights(after: int, own_pass: bool, data: ImageSet) -> None:
    states: list[State] = []
    whole = model()
    fit(Alternating(seen=[], own_pass=own_pass), whole, data, recipe(), 0, save=states.append)
    resumed = model()
    fit(Alternating(seen=[], own_pass=own_pass), resumed, data, recipe(), 0, state=states[after - 1])
    assert same(resumed.state_dict(), whole.state_dict())


def test_a_fixed_front_stays_in_eval_mode(data: ImageSet) -> None:
    class Dense(Front):
        learned = False

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def transform(self, x: Tensor) -> Tensor:
            return self.norm(x)

    front = Dense()
    before = {name: tensor.clone() for name, tensor in front.state_dict().items()}
    fit(Alternating(seen=[]), model([front]), data, recipe(), 0)
    assert same(front.state_dict(), before)


def test_who_moves_in_which_pass() -> None:
    def names(*turns: Turns, epoch: int = 0) -> list[list[int]]:
        players = [Player(str(number), [], lambda model, batch: batch.x.sum(), turn) for number, turn in enumerate(turns)]
        return [[int(player.name) for player in movers] for movers in passes_of(players, epoch)]

    step, own, late = Turns(), Turns(own_pass=True), Turns(first_epoch=2)
    assert names(step, step) == [[0, 1]]
    assert names(step, own) == [[0], [1]]
    assert names(own, step, step) == [[0], [1, 2]]
    assert names(step, own, own, step) == [[0], [1], [2], [3]]
    assert names(step, late, epoch=1) == [[0]]
    assert names(step, late, epoch=2) == [[0, 1]]
    first = Turns(until=2)
    assert names(first, late, epoch=1) == [[0]]
    assert names(first, late, epoch=2) == [[1]]
    with pytest.raises(LabError, match=r"^defense: expected a player that moves in epoch 2"):
        names(late, epoch=1)
