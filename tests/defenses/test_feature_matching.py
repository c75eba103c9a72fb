"""How FM's embeddings and features move, what becomes of them under each reading of eq. 7, and whether a collapse is told."""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.feature_matching import FullpleLoss, LabelEmbeddings
from robustbench_lab.models.defended import Defended
from robustbench_lab.training.loop import fit
from robustbench_lab.training.state import State

CLEAN = ["backbone=small_cnn", "defense=fm", "defense.adversarial_weight=0", "defense.start_epoch=0"]
EMBEDDINGS = "network.backbone.head.weight"


def test_the_two_forces_on_three_points() -> None:
    """Features at the origin. Their own embedding, (3, 4), is 5 away: both are drawn together, by a unit vector each. (0.3, -0.4) is 0.5
    away, within beta = 0.6: pushed apart. (0, 2) lies beyond beta: nothing."""
    head = LabelEmbeddings(2, 3, init_std=1)
    head.weight.data = torch.tensor([[3.0, 4.0], [0.3, -0.4], [0.0, 2.0]])
    features = torch.zeros(1, 2, requires_grad=True)
    loss = FullpleLoss(0.1, 0.6, "sum")(head(features), torch.tensor([0]))
    assert loss.item() == pytest.approx(5 - 0.1 + 0.6 - 0.5)
    on_features, on_embeddings = torch.autograd.grad(loss.sum(), [features, head.weight])
    assert on_features[0].tolist() == pytest.approx([-0.6 + 0.6, -0.8 - 0.8])
    assert on_embeddings.flatten().tolist() == pytest.approx([0.6, 0.8, -0.6, 0.8, 0, 0])


def trained(run_objects: Callable[..., Any], images: ImageSet, *words: str, state: State | None = None) -> tuple[Defended, list[State]]:
    """FM on these digits by the digits' recipe, without adversarial training; and the states after each epoch."""
    _, model, defense, recipe = run_objects(*CLEAN, *words)
    states: list[State] = []
    fit(defense, model, images, recipe, 0, state, save=states.append)
    return model, states


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> ImageSet:
    return digits[0].subset(torch.arange(600))


@torch.no_grad()
def right(model: Defended, images: ImageSet) -> float:
    every = images.batches(torch.arange(len(images)), 500)
    return float(sum((model.eval()(x).argmax(dim=1) == y).sum() for x, y, _ in every)) / len(images)


def test_the_root_over_everything_learns_what_that_over_the_length_does(
    run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]
) -> None:
    """A rate of 1 carries the embeddings together before digits are told apart: beta 0.21 stops them in time, 0.0056 does not."""
    words = ["backbone=small_resnet", "training.epochs=8", "training.optimizer.lr=1"]
    whole, length = (right(trained(run_objects, digits[0], *words, f"defense.radical={one}")[0], digits[1]) for one in ("whole", "length"))
    assert whole > 0.9
    assert whole >= length


def test_the_own_distance_falls_by_the_sum_of_the_rates(run_objects: Callable[..., Any], images: ImageSet) -> None:
    """With momentum 0.9 and ten classes an embedding moves by the learning rate a step, whatever has been learned: the race."""
    words = ["training.epochs=1", "training.schedule.warmup=0.01", "training.schedule.end=1", "training.optimizer.lr=0.2"]
    words += ["training.optimizer.weight_decay=0", "training.optimizer.nesterov=false", "training.batch_size=20"]
    _, (state,) = trained(run_objects, images, *words)
    _, model, _, _ = run_objects(*CLEAN, *words)
    moved = (state.model[EMBEDDINGS] - model.get_parameter(EMBEDDINGS)).norm(dim=1)
    assert 0.2 * 30 * 0.6 < moved.mean() < 0.2 * 30 * 1.1


@pytest.mark.parametrize("words", [[], ["training.optimizer.weight_decay=0.1"]])
def test_fixed_embeddings_stay_as_they_began(run_objects: Callable[..., Any], images: ImageSet, words: list[str]) -> None:
    words = ["defense.embedding_lr=0", "training.epochs=2", *words]
    before = run_objects(*CLEAN, *words)[1]
    model, states = trained(run_objects, images.subset(torch.arange(128)), *words)
    assert EMBEDDINGS not in dict(model.named_parameters())
    assert torch.equal(model.get_buffer(EMBEDDINGS), before.get_buffer(EMBEDDINGS))
    assert torch.equal(states[-1].model[EMBEDDINGS], before.get_buffer(EMBEDDINGS))
    assert states[-1].history[-1]["embedding_step"] == 0


@pytest.mark.parametrize("factor", [0.1, 0.01])
def test_embeddings_have_a_rate_of_their_own(run_objects: Callable[..., Any], images: ImageSet, factor: float) -> None:
    """Without momentum and decay the first step of the embeddings is the factor's share of the usual one, and the network's is the same."""
    words = ["training.epochs=1", "training.optimizer.momentum=0", "training.optimizer.nesterov=false", "training.optimizer.weight_decay=0"]
    began = {name: tensor.clone() for name, tensor in run_objects(*CLEAN, *words)[1].state_dict().items()}
    first = images.subset(torch.arange(64))
    steps = []
    for share in (1, factor):
        state = trained(run_objects, first, *words, f"defense.embedding_lr={share}")[1][0]
        steps.append({name: state.model[name] - tensor for name, tensor in began.items() if tensor.is_floating_point()})
    usual, slow = steps
    torch.testing.assert_close(slow[EMBEDDINGS], usual[EMBEDDINGS] * factor, rtol=1e-3, atol=1e-6)
    for name in usual.keys() - {EMBEDDINGS}:
        torch.testing.assert_close(slow[name], usual[name])


@pytest.mark.parametrize("factor", [0, 0.1, 1])
def test_resumed_bit_for_bit(run_objects: Callable[..., Any], images: ImageSet, factor: float) -> None:
    """What metrics.jsonl tells is the same too, but for the seconds."""
    words = ["training.epochs=3", f"defense.embedding_lr={factor}"]
    model, states = trained(run_objects, images.subset(torch.arange(128)), *words)
    again, later = trained(run_objects, images.subset(torch.arange(128)), *words, state=states[0])
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    told = [[{k: v for k, v in row.items() if "second" not in k} for row in one[-1].history] for one in (states, later)]
    assert told[0] == told[1]
    assert told[0][-1]["beta"] == pytest.approx((256 * 7e-4) ** 0.5)


# A collapse is told while it happens


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if "fall together" in record.message]


def test_an_honest_training_is_not_called_a_collapse(
    run_objects: Callable[..., Any], images: ImageSet, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trained(run_objects, images, "training.epochs=3", "training.optimizer.lr=0.01")
    assert warned(caplog) == []


def test_a_collapse_is_told_once(run_objects: Callable[..., Any], images: ImageSet, caplog: pytest.LogCaptureFixture) -> None:
    """At this rate one epoch brings the embeddings together; under the root over the length alone nothing parts them again."""
    words = ["training.epochs=4", "training.optimizer.lr=1", "training.batch_size=16", "defense.radical=length"]
    with caplog.at_level(logging.WARNING):
        _, states = trained(run_objects, images, *words)
    row = states[-1].history[0]
    assert row["smallest_embedding_distance"] < max(row["beta"], row["embedding_step"])
    (message,) = warned(caplog)
    assert "less than one step of the optimiser" in message
    assert "defense.embedding_lr=0.01" in message


@pytest.mark.parametrize(
    ("apart", "step", "said"),
    [(0.5, 0.1, None), (0.1, 0.01, "less than beta, 0.21"), (0.3, 0.4, "less than one step of the optimiser, 0.4")],
)
def test_what_counts_as_a_collapse(
    built: Callable[..., Any], caplog: pytest.LogCaptureFixture, apart: float, step: float, said: str | None
) -> None:
    from robustbench_lab.defenses.feature_matching import embeddings_of

    defense = built("defense", "fm", "defense.adversarial_weight=0")
    model = defense.build(lambda: _classifier(64))
    embeddings = embeddings_of(model)
    embeddings.weight.data.zero_()
    embeddings.weight.data[range(3), range(3)] = apart / 2**0.5
    embeddings.step = torch.tensor(step)
    batch: tuple[Tensor, Tensor, Tensor] = (torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), torch.arange(4))
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        for _ in range(2):
            told = defense.epoch_metrics(model.eval(), [batch])
    assert told["smallest_embedding_distance"] == pytest.approx(apart)
    assert len(warned(caplog)) == int(said is not None)
    if said:
        assert said in warned(caplog)[0]
        embeddings.weight.data *= 100
        with torch.no_grad():
            defense.epoch_metrics(model, [batch])
            embeddings.weight.data /= 100
            defense.epoch_metrics(model, [batch])
        assert len(warned(caplog)) == 2, "again, after they have parted"


def _classifier(length: int) -> torch.nn.Module:
    from torch import nn

    from robustbench_lab.backbones.base import Backbone, sequence
    from robustbench_lab.models.defended import Classifier

    return Classifier(nn.Identity(), Backbone(sequence(flatten=nn.Flatten()), nn.Identity(), nn.Linear(length, 3)))


def test_the_radical_is_part_of_the_recipe_that_is_published(built: Callable[..., Any]) -> None:
    assert replace(built("defense", "fm"), radical="length").fullple(64).beta == pytest.approx(5.6e-3)
