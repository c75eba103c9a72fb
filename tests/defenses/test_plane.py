"""The six ways of Efficient Defenses' toy study: what each adds to the points."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.models.defended import Defended
from robustbench_lab.threats import Budget
from robustbench_lab.training.batches import epoch_batches
from robustbench_lab.training.loop import fit

WORDS = ("dataset=moons", "backbone=mlp_toy", "training=plane")
POINTS = 200


@pytest.fixture(scope="module")
def undefended(run_objects: Callable[..., Any]) -> tuple[Defended, ImageSet]:
    """The undefended network after fewer but larger steps, right on nearly all of the points, and the points."""
    with torch.random.fork_rng(devices=[]):
        dataset, model, defense, recipe = run_objects(*WORDS, f"dataset.samples={POINTS}", "training.optimizer.lr=0.01")
        data = dataset.load("train", root=Path(), download=False, workers=0)
        fit(defense, model, data, replace(recipe, epochs=100), seed=0)
    model.eval().requires_grad_(False)
    assert (model(data.images).argmax(1) == data.labels).float().mean() > 0.99
    return model, data


def wrong(model: Defended, images: torch.Tensor, labels: torch.Tensor) -> float:
    return (model(images).argmax(1) != labels).float().mean().item()


@pytest.mark.parametrize(
    "words", [("defense=static_adversarial_training", "defense.budget.norm=l2"), ("defense=static_vat", "defense.attack.xi=null")]
)
def test_l2_steps(words: tuple[str, ...], undefended: tuple[Defended, ImageSet], run_objects: Callable[..., Any]) -> None:
    """Each point's example lies .3 of the points' units away, 4 of which are the pixel range, or at the box's edge."""
    model, data = undefended
    defense = run_objects(*WORDS, *words, "defense.budget.eps=0.3/4")[2]
    extra = defense.extra_images(model, model, data, 0)
    assert len(extra) == POINTS
    inside = ((extra.images > 0) & (extra.images < 1)).flatten(1).all(dim=1)
    assert inside.sum() > 0.9 * POINTS
    distance = Budget("l2", 1).distance(extra.images, data.images)
    torch.testing.assert_close(distance[inside], torch.full_like(distance[inside], 0.075), rtol=1e-4, atol=0)


def test_jsma_steps(undefended: tuple[Defended, ImageSet], run_objects: Callable[..., Any]) -> None:
    """Single features by theta up or down, until the network is fooled: nearly all are, in whole steps where no edge is met."""
    model, data = undefended
    extra = run_objects(*WORDS, "defense=static_jsma", "defense.attack.theta=0.1/4")[2].extra_images(model, model, data, 0)
    assert torch.equal(extra.labels, data.labels)
    assert wrong(model, extra.images, data.labels) > 0.95
    steps = (extra.images - data.images).flatten(1) / 0.025
    inside = ((extra.images > 0) & (extra.images < 1)).flatten(1).all(dim=1)
    assert (steps[inside] - steps[inside].round()).abs().max() < 1e-3
    assert steps.round().max() > 1
    assert steps.round().min() < -1


@pytest.mark.parametrize("words", [("defense=uniform_augmentation", "defense.reach=0.5196/4"), ("defense=gda", "defense.sigma=0.3/4")])
def test_noisy_points(words: tuple[str, ...], undefended: tuple[Defended, ImageSet], run_objects: Callable[..., Any]) -> None:
    """Each point and one more, .3 of the points' units away in each coordinate on average (root mean square), in the box."""
    data = undefended[1]
    _, _, defense, recipe = run_objects(*WORDS, *words, "defense.noisy_copies=1", "defense.clip=true")
    added = []
    for batch in epoch_batches(data, torch.arange(POINTS), recipe, defense.copies, 0, 0):
        x = defense.augmented(batch)
        assert torch.equal(x[batch.copy == 0], batch.x[batch.copy == 0])
        assert 0 <= x.min() <= x.max() <= 1
        added.append((x - batch.x)[batch.copy == 1])
    assert torch.cat(added).shape == (POINTS, 2, 1, 1)
    assert torch.cat(added).square().mean().sqrt().item() == pytest.approx(0.075, rel=0.1)
