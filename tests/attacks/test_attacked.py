"""What attacks ask of a model: nobody may forget it, and a plain module says nothing but its logits."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.base import ASKED, Attacked, Plain, attacked
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Averaged, Counted, Queries
from robustbench_lab.models.defended import Defended, cross_entropy, frozen
from robustbench_lab.models.fast_copy import FastCopy
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget


class Scaled(nn.Module):
    """A wrapper that says all but what it is told to forget."""

    def __init__(self, model: nn.Module, forgets: str | None) -> None:
        super().__init__()
        self.model = model
        said = {"decides": False, "stochastic": False, "samples": 1, "own_loss": cross_entropy, "draw": self.forward}
        for name, value in said.items():
            if name != forgets:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.model(x)


def linear() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def searched(attack: Any, model: nn.Module) -> Tensor:
    x = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return attack(model, x, torch.tensor([0, 1, 2]), Budget("linf", 0.1), ImageRandom.of(torch.arange(3), 0))


@pytest.mark.parametrize("inside", [linear, lambda: Defended(linear())])
@pytest.mark.parametrize("forgets", ASKED)
def test_a_wrapper_that_forgets_a_word_fails_at_once(forgets: str, inside: Callable[[], nn.Module], built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^model: expected a Scaled that says .*it does not say {forgets}$"):
        searched(built("attack", "fgsm"), Scaled(inside(), forgets))
    assert searched(built("attack", "fgsm"), Scaled(inside(), None)).shape == (3, 1, 2, 2)


def test_a_wrapper_that_says_nothing_around_a_model_that_does(built: Callable[..., Any]) -> None:
    noisy = Defended(linear(), stochastic=True)
    with pytest.raises(
        LabError, match=r"^model: expected a Sequential that says .*does not say decides, stochastic, samples, own_loss, draw"
    ):
        searched(built("attack", "fgsm"), nn.Sequential(noisy))


def test_a_plain_module_says_nothing_but_its_logits(built: Callable[..., Any]) -> None:
    module = linear()
    plain = attacked(module)
    assert isinstance(plain, Plain)
    assert (plain.decides, plain.stochastic, plain.samples, plain.own_loss) == (False, False, 1, cross_entropy)
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(plain(x), module(x))
    assert torch.equal(plain.draw(x), module(x))
    attack = built("attack", "pgd")
    assert torch.equal(searched(attack, module), searched(attack, plain))


def test_everything_that_attacks_meet_says_all(built: Callable[..., Any]) -> None:
    noisy, quiet = Defended(linear(), stochastic=True), Defended(linear())
    quiet.attach_fast_copy()
    with frozen(quiet) as fast:
        assert isinstance(fast, FastCopy)
        seen: list[Attacked] = [noisy, quiet, fast, Queries(noisy, "logits"), Averaged(noisy, 3), Counted(Averaged(noisy, 3), False, True)]
        assert all(attacked(model) is model for model in seen)  # type: ignore[arg-type]
    assert [model.stochastic for model in seen] == [True, False, False, True, True, True]
    assert [model.samples for model in seen] == [1, 1, 1, 1, 3, 3]
    assert not any(model.decides for model in seen)
