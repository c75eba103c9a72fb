"""The sparse feature masker: its loss by hand and against the closed form, whose pass moves what, and what a gray box sees of it."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.sfm import SparseFeatureMasker, cosine
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.bit_depth import BitDepth
from robustbench_lab.fronts.mask import MaskFront
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.training.loop import backward, fit
from robustbench_lab.training.state import State

WORDS = (
    "defense=sfm",
    "defense.width=4",
    "defense.levels=2",
    "defense.first_epoch=1",
    "defense.fronts=[bit_depth]",
    "backbone=small_resnet",
)


@pytest.fixture
def sfm(run_objects: Callable[..., Any]) -> Callable[..., SparseFeatureMasker]:
    """The defense with other knobs."""
    made = run_objects(*WORDS)[2]
    return lambda **knobs: replace(made, **knobs)


@pytest.fixture
def batch(digits: tuple[ImageSet, ImageSet]) -> Batch:
    x, y, ids = next(digits[0].batches(torch.arange(16), 16))
    return Batch(x, y, ids, torch.zeros_like(ids), 1, ImageRandom.of(ids, 0, 1), ImageRandom.of(ids, 0))


def image_norms(**knobs: Any) -> dict[str, Any]:
    return {**dict.fromkeys(("sparsity_reduction", "semantic_reduction", "reconstruction_reduction"), "image"), **knobs}


# The loss


def test_the_loss_of_an_image_of_two_pixels(sfm: Callable[..., SparseFeatureMasker]) -> None:
    """(.6, .8) under (.5, .25): |m x|_1 = .5, |x - m x|_2 = |(.3, .6)| = .3 sqrt 5; logits (1, 0) and (3, 4) have cosine .6."""
    x, masks = torch.tensor([0.6, 0.8]).view(1, 1, 1, 2), torch.tensor([0.5, 0.25]).view(1, 1, 1, 2)
    answers, masked = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    for reductions in ({}, image_norms()):
        defense = sfm(sparsity_weight=2.0, semantic_weight=10.0, reconstruction_weight=3.0, **reductions)
        expected = 2 * 0.5 + 10 * 0.4 + 3 * 0.3 * math.sqrt(5)
        assert float(defense.mask_loss(x, masks * x, answers, masked)) == pytest.approx(expected, rel=1e-6)
        ones = float(defense.mask_loss(x, x, answers, answers))
        assert ones == pytest.approx(2 * 1.4)
        zeros = float(defense.mask_loss(x, 0 * x, answers, torch.zeros(1, 2)))
        assert zeros == pytest.approx(3 * 1.0 + 10 * 1)


def test_what_each_reduction_makes_of_two_images(sfm: Callable[..., SparseFeatureMasker]) -> None:
    """2x2 images of .5 and of 1, masks of .6 and 0. Lengths of what goes: .4 * 1 and 2; of both together sqrt(.16 + 4)."""
    x = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    masked = torch.tensor([0.6, 0.0]).view(2, 1, 1, 1) * x
    answers, masked_answers = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 5.0], [0.0, 1.0]])
    terms = {"sparsity": (1.2, 0.6), "semantic": (1.0, 0.5), "reconstruction": (math.sqrt(4.16), 1.2)}
    for term, by_reduction in terms.items():
        weights = {f"{name}_weight": float(name == term) for name in terms}
        for reduction, expected in zip(("batch", "image"), by_reduction, strict=True):
            loss = sfm(**weights, **{f"{term}_reduction": reduction}).mask_loss(x, masked, answers, masked_answers)
            assert float(loss) == pytest.approx(expected, rel=1e-6), (term, reduction)


def test_the_cosine_where_there_is_none() -> None:
    a = torch.tensor([[0.0, 0.0], [1.0, 1.0]], requires_grad=True)
    similar = cosine(a, torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
    torch.testing.assert_close(similar, torch.tensor([0.0, 1.0]))
    similar.sum().backward()
    assert a.grad is not None
    assert a.grad.isfinite().all()
    assert not a.grad[0].any()


@pytest.mark.parametrize(("copies", "ones"), [(6, True), (7, False)])
def test_a_batch_of_copies_of_a_grey_image(copies: int, ones: bool, sfm: Callable[..., SparseFeatureMasker]) -> None:
    """n values of v, B copies, a constant mask t: w1 B n v t + w3 (1 - t) sqrt(B n) v. Ones are best until w1 sqrt(B n) > w3: n = 16 and
    w1 = .1 give B = 6.25. By image, ones are best for any B."""
    x = torch.full((copies, 1, 4, 4), 0.3)
    same = torch.ones(copies, 3)

    def loss(defense: SparseFeatureMasker, t: float) -> float:
        return float(defense.mask_loss(x, t * x, same, same))

    weights = {"sparsity_weight": 0.1, "reconstruction_weight": 1.0, "semantic_weight": 0.0}
    whole = sfm(**weights)
    assert loss(whole, 0.5) == pytest.approx(0.1 * copies * 16 * 0.3 * 0.5 + 0.5 * math.sqrt(copies * 16) * 0.3, rel=1e-5)
    assert (loss(whole, 1) < loss(whole, 0.5) < loss(whole, 0)) is ones
    alone = sfm(**weights, **image_norms())
    assert loss(alone, 1) < loss(alone, 0.5) < loss(alone, 0)


def photographs(n: int, size: int = 16) -> Tensor:
    """Smooth, nearly grey images, as photographs are: sum_p (a_p / s_p)^2 is about .96 of the number of values, as on CIFAR-10."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 1, 4, 4, generator=rng, dtype=torch.float64)
    colour = 0.25 * torch.rand(n, 3, 4, 4, generator=rng, dtype=torch.float64)
    return torch.nn.functional.interpolate(0.1 + 0.7 * coarse + 0.8 * colour, size=size, mode="bilinear")


def freely(defense: SparseFeatureMasker, x: Tensor, steps: int = 400) -> Tensor:
    """The masks [B, 1, H, W] at which the loss without its semantic term is least, by projected Adam with a falling rate."""
    masks = torch.full_like(x[:, :1], 0.5, requires_grad=True)
    optimizer = torch.optim.Adam([masks], lr=0.05, betas=(0.9, 0.95))
    same = torch.ones(len(x), 2, dtype=x.dtype)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps) ** 2
        optimizer.zero_grad()
        defense.mask_loss(x, masks * x, same, same).backward()
        optimizer.step()
        with torch.no_grad():
            masks.clamp_(0, 1)
    return masks.detach()


def closed_form(x: Tensor, ratio: float) -> Tensor:
    """m_p = max(0, 1 - ratio D a_p / s_p^2), D = |x - m x|, by iterating D from above."""
    brightness, squared = x.sum(dim=1, keepdim=True), x.square().sum(dim=1, keepdim=True)
    distance = squared.sum().sqrt()
    for _ in range(3000):
        taken = (ratio * distance * brightness / squared).clamp(max=1)
        distance = (squared * taken.square()).sum().sqrt()
    return 1 - taken


@pytest.mark.parametrize(
    ("size", "reductions", "sparse"), [(128, {}, True), (32, {}, False), (128, image_norms(), False)], ids=["128", "32", "image"]
)
def test_free_masks_reach_the_closed_form(
    size: int, reductions: dict[str, Any], sparse: bool, sfm: Callable[..., SparseFeatureMasker]
) -> None:
    """Images of a quarter of CIFAR-10's pixels and twice its weight on sparsity have its balance: in a batch of 32 masks of ones are best,
    in one of 128 dark pixels go; by image, ones are best at any size."""
    x, weight = photographs(size), 2 * 2.5e-3
    balance = weight * math.sqrt(float((x.sum(dim=1) / x.square().sum(dim=1).sqrt()).square().sum()))
    assert (balance > 1) is (size == 128)
    best = closed_form(x, weight) if sparse else torch.ones_like(x[:, :1])
    if sparse:
        assert float((best * x).sum() / x.sum()) < 0.1
        assert float((best == 0).double().mean()) > 0.5
    defense = sfm(sparsity_weight=weight, semantic_weight=0.0, **reductions)
    torch.testing.assert_close(freely(defense, x), best, atol=1e-2, rtol=0)
    if sparse:  # the loss is convex, so that this is its minimum: flat at masks between 0 and 1, rising at 0
        masks, same = best.clone().requires_grad_(), torch.ones(size, 2, dtype=x.dtype)
        (slope,) = torch.autograd.grad(defense.mask_loss(x, masks * x, same, same), masks)
        slope = slope / (weight * x.sum(dim=1, keepdim=True))  # of the sparsity's
        assert float(slope[best > 0].abs().max()) < 1e-3
        assert float(slope[best == 0].min()) > -1 - 1e-3  # autograd says 0 for |m x| at m = 0, where upwards it is 1


# Whose pass moves what


def moved(model: Defended, before: dict[str, Tensor]) -> set[str]:
    """The parts, fronts or network, of which a parameter or buffer is not what it was."""
    return {name.partition(".")[0] for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("words", [(), ("defense.training_order=aligned",), ("defense.train_on_masked=true",)], ids=str)
def test_each_pass_moves_its_own_parameters_and_buffers(words: tuple[str, ...], run_objects: Callable[..., Any], batch: Batch) -> None:
    _, model, defense, _ = run_objects(*WORDS, *words)
    model.train()
    for player, own in zip(defense.players(model), ("network", "fronts"), strict=True):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        model.zero_grad()
        optimizer = torch.optim.SGD(player.parameters, lr=1e-3)
        backward(player, model, batch, "fp32")
        assert {name.partition(".")[0] for name, parameter in model.named_parameters() if parameter.grad is not None} == {own}
        optimizer.step()
        assert moved(model, before) == {own}
        assert {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


def test_the_order_of_masks_and_pre_processing(run_objects: Callable[..., Any], batch: Batch) -> None:
    """Worked out from the parts: as published, images of few levels are masked; aligned, masked images are brought to few levels."""
    few = "defense.fronts.bit_depth.bits=2"
    for order in ("as_published", "aligned"):
        _, model, defense, _ = run_objects(*WORDS, few, f"defense.training_order={order}")
        model.network.eval()
        fixed, mask, x = BitDepth(2), model.fronts[0].eval(), batch.x
        if order == "as_published":
            came, masked = fixed(x), mask(fixed(x))
            expected = defense.mask_loss(came, masked, model.network(came), model.network(masked))
        else:
            masked = mask(x)
            expected = defense.mask_loss(x, masked, model.network(fixed(x)), model.network(fixed(masked)))
        torch.testing.assert_close(defense.masker_loss(model, batch), expected)
        torch.testing.assert_close(model(x), model.network(fixed(mask(x))), msg="in use, the mask comes first")
        torch.testing.assert_close(
            defense.loss(model, batch), torch.nn.functional.cross_entropy(model.network(fixed(x)), batch.y), msg="without masks"
        )


def test_the_classifier_may_learn_from_masked_images_too(run_objects: Callable[..., Any], batch: Batch) -> None:
    _, model, defense, _ = run_objects(*WORDS, "defense.train_on_masked=true")
    model.network.eval()
    model.fronts.train()
    shown = BitDepth(5)(batch.x)
    plain = torch.nn.functional.cross_entropy(model.network(shown), batch.y)
    torch.testing.assert_close(defense.loss(model, replace(batch, epoch=0)), plain, msg="there are no masks yet")
    half = defense.loss(model, batch) - plain / 2
    masked = model.fronts[0].eval()(shown)
    torch.testing.assert_close(2 * half, torch.nn.functional.cross_entropy(model.network(masked), batch.y))


@pytest.fixture
def trained(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> Callable[..., tuple[Defended, list[State]]]:
    """Three epochs of 40 digits with these words, from a state if there is one: the model, and the state after each epoch."""

    def train(*words: str, state: State | None = None, stop: Callable[[], None] = lambda: None) -> tuple[Defended, list[State]]:
        few = ("training.epochs=3", "training.batch_size=16", "training.validation=0", "training.optimizer.lr=0.01")
        _, model, defense, recipe = run_objects(*WORDS, *few, *words)
        model.fronts[0].register_forward_pre_hook(lambda module, args: stop())
        states: list[State] = []
        fit(defense, model, digits[0].subset(torch.arange(40)), recipe, 0, state=state, save=states.append)
        return model, states

    return train


def test_resumed_in_the_middle_of_the_maskers_pass_it_ends_at_the_same_weights(trained: Callable[..., Any]) -> None:
    """Killed in the second step of the masker's pass of the third epoch, whose classifier's pass is over."""
    whole, states = trained()
    steps = iter(range(100))

    def stop() -> None:
        if next(steps) == 4:  # three steps of the second epoch, and one
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(stop=stop)
    resumed, _ = trained(state=states[1])
    assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True))
    assert set(states[0].history[0]) >= {"loss_classifier", "mask_mean", "mask_zeros", "mask_brightness", "mask_cosine"}
    assert ["loss_masker" in row for row in states[2].history] == [False, True, True]


def test_a_frozen_classifier_is_trained_before_the_masker_alone(trained: Callable[..., Any]) -> None:
    _, states = trained("defense.classifier=frozen")
    networks = [{name: tensor for name, tensor in state.model.items() if name.startswith("network")} for state in states]
    assert all(torch.equal(networks[0][name], networks[2][name]) for name in networks[0])
    assert ["loss_classifier" in row for row in states[2].history] == [True, False, False]
    assert any(not torch.equal(states[0].model[name], states[2].model[name]) for name in states[0].model if name.startswith("fronts"))


def test_the_masker_has_a_learning_rate_of_its_own(run_objects: Callable[..., Any]) -> None:
    _, model, defense, _ = run_objects(*WORDS, "defense.masker_lr_factor=0.25")
    classifier, masker = defense.players(model)
    (group,) = masker.parameters
    assert group["lr_factor"] == 0.25
    assert {id(parameter) for parameter in group["params"]} == {id(parameter) for parameter in model.fronts.parameters()}
    assert (masker.turns.own_pass, masker.turns.first_epoch, classifier.turns.until) == (True, 1, None)


def test_what_an_epoch_says_of_masks(run_objects: Callable[..., Any], batch: Batch) -> None:
    """Of constant masks of a quarter, and of ones: a sigmoid of the last layer's bias."""
    _, model, defense, _ = run_objects(*WORDS)
    head = model.eval().fronts[0].masker.head
    for share in (0.25, 1.0):
        with torch.no_grad():
            head.weight.zero_()
            head.bias.fill_(math.log(share / (1 - share)) if share < 1 else 30.0)
        said = defense.epoch_metrics(model, [(batch.x, batch.y, batch.ids)])
        expected = {"mask_mean": share, "mask_zeros": 0.0, "mask_brightness": share}
        assert {key: said[key] for key in expected} == pytest.approx(expected, abs=1e-5)
        assert (abs(said["mask_cosine"] - 1) < 1e-5) is (share == 1)


# What is seen and what is refused


def test_the_gray_box_has_the_mask_and_not_the_pre_processing(run_objects: Callable[..., Any]) -> None:
    model = run_objects(*WORDS)[1].eval()
    gray, x = model.without_fixed_fronts(), torch.rand(2, 1, 8, 8)
    assert [type(front) for front in model.fronts] == [MaskFront, BitDepth]
    assert [type(front) for front in gray.fronts] == [MaskFront]
    torch.testing.assert_close(gray(x), model.network(model.fronts[0](x)))
    torch.testing.assert_close(model(x), model.network(BitDepth(5)(model.fronts[0](x))))


def test_the_classifier_begins_as_the_undefended_one(run_objects: Callable[..., Any]) -> None:
    ours, plain = (run_objects(*words, "backbone=small_resnet")[1].network for words in (WORDS, ("defense=standard",)))
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True))


def test_pre_processing_is_any_list(run_objects: Callable[..., Any]) -> None:
    fronts = run_objects(*WORDS, "defense.fronts=[dimming,bit_depth]", "defense.fronts.bit_depth.bits=3")[1].fronts
    assert [type(front).__name__ for front in fronts] == ["MaskFront", "Dimming", "BitDepth"]
    assert [type(front) for front in run_objects(*WORDS, "defense.fronts=[]")[1].fronts] == [MaskFront]
    assert run_at_words([*WORDS, "defense.fronts=[random_mask]"]).random_output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["defense.levels=4"], r"^defense\.levels: expected images whose sides can be halved 4 times, multiples of 16 of at least 16"),
        (["defense.classifier=frozen", "defense.first_epoch=0"], r"^defense\.first_epoch: expected 1 or more with classifier=frozen"),
        (
            ["defense.classifier=frozen", "defense.train_on_masked=true"],
            r"^defense\.train_on_masked: expected false with",
        ),
        (["defense.sparsity_weight=0", "defense.semantic_weight=0", "defense.reconstruction_weight=0"], r"^defense\.sparsity_weight: "),
        (["defense.sparsity_reduction=mean"], r"^defense\.sparsity_reduction: expected batch or image, got 'mean'"),
        (["defense.training_order=reversed"], r"^defense\.training_order: expected as_published or aligned"),
        (["defense.order=[median]"], r"^defense\.order: expected bit_depth, each once"),
        (["defense.fronts.bit_depth.bits=9"], r"^defense\.fronts\.bit_depth\.bits: "),
    ],
)
def test_what_does_not_fit_is_named(words: list[str], said: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=said):
        run_objects(*WORDS, *words)


def test_the_masker_begins_before_training_ends(sfm: Callable[..., SparseFeatureMasker]) -> None:
    sfm(first_epoch=5).check_epochs(6)
    with pytest.raises(LabError, match=r"^defense\.first_epoch: expected less than training\.epochs=5, .*the masker's training begins"):
        sfm(first_epoch=5).check_epochs(5)
