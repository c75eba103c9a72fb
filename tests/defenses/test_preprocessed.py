"""Any fronts before standard training: by words, in their order, each model with its own."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.preprocessed import Preprocessed
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import require
from robustbench_lab.models.front import Front
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.training.loop import fit
from robustbench_lab.training.runs import objects

CHOICES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "front").glob("*.yaml"))
AGAIN = "+defense.fronts.again={_target_: robustbench_lab.fronts.bit_depth.BitDepth, _partial_: true, bits: 1}"
FEWER = {"quilting": ["defense.fronts.quilting.patches=1000"]}  # than the digits have places for


@pytest.mark.parametrize("name", CHOICES)
def test_every_front_is_a_word_and_keeps_the_contract(
    name: str, run_objects: Callable[..., Any], edge_images: Callable[..., Tensor], digits: tuple[ImageSet, ImageSet]
) -> None:
    words = ["defense=preprocessed", f"front@defense.fronts=[{name}]", *FEWER.get(name, [])]
    words.append("backbone=small_resnet")  # takes images of any size
    model = run_objects(*words)[1].eval()
    (front,) = model.fronts
    assert isinstance(front, Front)
    front.fit(digits[0], torch.Generator().manual_seed(0))
    if front.needs_teacher:
        front.learn_from(objects(run_at_words(words).teacher)[1])
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


def test_the_short_word_for_fronts_is_the_group_s() -> None:
    def named(*words: str) -> str:
        return run_at_words(["defense=preprocessed", *words]).fingerprint

    assert named("defense.fronts=[bit_depth]", "defense.fronts.bit_depth.bits=4") == named("defense.fronts.bit_depth.bits=4")
    with pytest.raises(LabError, match="blur"):
        named("defense.fronts=[blur]")


class Halved(Front):
    """Half of each pixel, plus what another run has told it."""

    needs_teacher = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("told", torch.zeros(()))
        self.seen = 0

    def learn_from(self, teacher: nn.Module) -> None:
        self.told.fill_(float(next(teacher.parameters()).detach().flatten()[0].abs().clamp(max=0.5)))

    def transform(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return x / 2 + self.told


def test_slow_fronts_see_each_training_image_once(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    """Over two epochs of 40 images the front sees 40 while training; the network learns from what it showed."""
    words = ("backbone=small_cnn", "training.epochs=2", "training.batch_size=20", "training.flip=false", "training.crop_padding=0")
    _, _, _, recipe = run_objects(*words, "training.validation=0")
    teacher = run_objects("backbone=small_cnn", "seed=4")[1]
    few = digits[0].subset(torch.arange(40))
    for train_on, times in (("transformed_once", 40), ("transformed", 80), ("originals", 0)):
        defense = Preprocessed(fronts={"halved": Halved}, order=None, train_on=train_on)
        model = defense.build(lambda: run_objects("backbone=small_cnn")[1].network)
        learned: list[Tensor] = []
        model.network.register_forward_pre_hook(lambda module, args: learned.append(args[0].detach()))  # noqa: B023
        fit(defense, model, few, recipe, 0, teacher=teacher)
        assert model.fronts[0].seen == times
        assert float(model.fronts[0].told) > 0
        told = float(model.fronts[0].told)
        x = next(few.batches(torch.arange(40), 40))[0]
        shown = x if train_on == "originals" else x / 2 + told
        seen = torch.cat(learned[:2])  # the first epoch, in another order
        assert (torch.cdist(seen.flatten(1), shown.flatten(1)).amin(dim=1) < 1e-2).all()


def test_a_front_that_learns_needs_another_run(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    _, _, _, recipe = run_objects("training.epochs=1")
    defense = Preprocessed(fronts={"halved": Halved}, order=None, train_on="transformed")
    with pytest.raises(LabError, match=r"defense\.fronts: expected for Halved the words of the run that it learns from"):
        fit(defense, defense.build(lambda: run_objects("backbone=small_cnn")[1].network), digits[0].subset(torch.arange(40)), recipe, 0)


def test_the_run_that_a_front_learns_from_is_this_one_s_teacher() -> None:
    """Its words are no part of the name, its content is."""
    words = ["defense=preprocessed", "backbone=small_cnn"]
    plain = run_at_words(words)
    taught = run_at_words([*words, "+defense.fronts.bit_depth.teacher=[defense=standard]"])
    again = run_at_words([*words, "+defense.fronts.bit_depth.teacher=[defense=standard,seed=0]"])
    other = run_at_words([*words, "+defense.fronts.bit_depth.teacher=[defense=standard,seed=1]"])
    assert plain.teacher is None
    assert taught.teacher is not None
    assert taught.teacher.fingerprint == run_at_words(["defense=standard", "backbone=small_cnn"]).fingerprint
    assert len({run.fingerprint for run in (plain, taught, again, other)}) == 3
    assert again.fingerprint == taught.fingerprint


class Small(Front):
    """Takes images of 16 pixels or more."""

    def check(self, shape: Sequence[int]) -> None:
        require(min(shape[1:]) >= 16, "window", "at most the image", shape)


def test_a_front_says_which_images_it_cannot_take(run_objects: Callable[..., Any]) -> None:
    defense = Preprocessed(fronts={"small": Small}, order=None, train_on="transformed")
    with pytest.raises(LabError, match=r"^defense\.fronts\.small\.window: expected at most the image"):
        defense.build(lambda: run_objects("backbone=small_cnn")[1].network)


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
        (
            ["defense.fronts=[quilting]", "defense.fronts.quilting.neighbours=3"],
            r"^defense._stochastic_: expected true .*, or of its front",
        ),
        (["defense.fronts.bit_depth.bits=9"], r"^defense.fronts.bit_depth.bits: expected a whole number >= 1 and <= 8"),
    ],
)
def test_what_does_not_fit_is_named(words: list[str], said: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=said):
        run_objects("defense=preprocessed", *words)
