"""Networks side by side: each learns by itself, and the mean of their logits answers."""

from collections.abc import Callable
from typing import Any

import torch

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.training.loop import fit


def test_each_member_learns_as_it_would_alone(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    """One epoch of plain SGD: the first member ends where the undefended network of the same seed ends."""
    words = ("backbone=small_cnn", "training.epochs=1", "training.batch_size=20", "training.validation=0")
    few = digits[0].subset(torch.arange(40))
    ended = {}
    for defense_word in ("defense=ensemble", "defense=standard"):
        _, model, defense, recipe = run_objects(defense_word, *words)
        fit(defense, model, few, recipe, 0)
        ended[defense_word] = model.network
    ensemble, alone = ended["defense=ensemble"], ended["defense=standard"]
    first, second = ensemble.members
    for ours, theirs in zip(first.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert any(not torch.equal(one, other) for one, other in zip(first.parameters(), second.parameters(), strict=True))
    x = torch.rand(3, 1, 8, 8)
    torch.testing.assert_close(ensemble.eval()(x), (first(x) + second(x)) / 2)
