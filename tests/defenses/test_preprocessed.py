"""Any fronts before standard training: by words, in their order, each model with its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lab.errors import LabError
from robustbench_lab.models.front import Front
from robustbench_lab.settings.identity import run_at_words

CHOICES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "front").glob("*.yaml"))
AGAIN = "+defense.fronts.again={_target_: robustbench_lab.fronts.bit_depth.BitDepth, _partial_: true, bits: 1}"


@pytest.mark.parametrize("name", CHOICES)
def test_every_front_is_a_word_and_keeps_the_contract(
    name: str, run_objects: Callable[..., Any], edge_images: Callable[..., Tensor]
) -> None:
    words = ["defense=preprocessed", f"front@defense.fronts=[{name}]", "backbone=small_cnn"]
    model = run_objects(*words)[1].eval()
    (front,) = model.fronts
    assert isinstance(front, Front)
    x = edge_images(6, 1, 8)
    before = x.clone()
    shown = front(x.requires_grad_())
    assert torch.equal(x, before)
    assert 0 <= shown.detach().min() <= shown.detach().max() <= 1
    assert torch.autograd.grad(model(x).square().sum(), x)[0].any()
    assert torch.equal(front(x), shown) is not front.random
    assert model.stochastic is front.random
    other = run_objects(*words)[1]
    assert other.fronts[0] is not front, "what a front learns is its model's"
    assert torch.equal(other.eval().network(x), model.network(x))


def test_fronts_come_in_the_order_of_the_words(run_objects: Callable[..., Any]) -> None:
    words = ["defense=preprocessed", "front@defense.fronts=[bit_depth]", "defense.fronts.bit_depth.bits=3", "backbone=small_cnn"]
    model = run_objects(*words, AGAIN)[1]
    assert [front.bits for front in model.fronts] == [3, 1]


def test_their_order_is_part_of_the_runs_name() -> None:
    def named(*words: str) -> str:
        return run_at_words(["defense=preprocessed", *words]).fingerprint

    assert named(AGAIN) != named(AGAIN, "defense.order=[again,bit_depth]")
    assert named(AGAIN) == named(AGAIN, "defense.order=[bit_depth,again]")
    assert named() == named("front@defense.fronts=[bit_depth]")
    assert named() != named("defense.fronts.bit_depth.bits=4")


def test_the_network_behind_bit_depth_is_that_of_feature_squeezing(run_objects: Callable[..., Any]) -> None:
    ours = run_objects("defense=preprocessed", "defense.fronts.bit_depth.bits=1", "backbone=small_cnn")[1].eval()
    theirs = run_objects("defense=feature_squeezing", "backbone=small_cnn")[1].eval()
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["front@defense.fronts=[]"], r"^defense.fronts: expected one or more choices of conf/front"),
        (["defense.fronts.bit_depth._partial_=false"], r"^defense.fronts.bit_depth: expected what makes a Front, with _partial_: true"),
        (["defense.order=[median]"], r"^defense.order: expected bit_depth, each once"),
        (["defense.fronts.bit_depth.bits=9"], r"^defense.fronts.bit_depth.bits: expected a whole number >= 1 and <= 8"),
    ],
)
def test_what_does_not_fit_is_named(words: list[str], said: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=said):
        run_objects("defense=preprocessed", *words)
