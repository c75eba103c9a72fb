"""The papers' formulas, with numbers worked out by hand."""

import functools
import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.defenses.feature_matching import FullpleLoss, LabelEmbeddings
from robustbench_lab.defenses.gaussian_augmentation import BoundedReLU
from robustbench_lab.defenses.label_smoothing import smoothed
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended, cross_entropy
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget
from robustbench_lab.training.batches import epoch_batches


class OnePixel(nn.Module):
    """Logits [x, -x] of one pixel: cross-entropy log(1 + exp(-2 x)) for class 0."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * torch.cat([x.flatten(1), -x.flatten(1)], dim=1)


@dataclass(frozen=True, kw_only=True)
class Lower(GradientAttack):
    """An attack that lowers every pixel by eps, and remembers what it was asked."""

    loss: Any = "ce"
    labels: str = "ground_truth"
    random_start: str = "gaussian"
    eot_samples: int = 1
    seen: list = field(default_factory=list)

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        self.seen.append((self.loss, y, model))
        return budget.project(x - budget.eps, x)


def batch_of(*pixels: float, epoch: int = 100, y: int = 0) -> Batch:
    n = len(pixels)
    ids = torch.arange(n)
    x, rng = torch.tensor(pixels).view(n, 1, 1, 1), ImageRandom.of(ids, 0)
    return Batch(x, torch.full((n,), y), ids, torch.zeros(n, dtype=torch.int64), epoch, rng, rng)


def with_attack(defense: Any, **knobs: Any) -> Any:
    return replace(defense, attack=Lower(), budget=Budget("linf", 0.2), **knobs)


def ce(x: float) -> float:
    """OnePixel's cross-entropy of class 0."""
    return math.log(1 + math.exp(-2 * x))


# Feature matching: eq. 6 to 10


@pytest.mark.parametrize(
    ("radical", "length", "alpha", "beta"),
    [
        ("whole", 64, 3.577709e-4, 0.2116601),  # the roots of 64 * 2e-9 = 1.28e-7 and 64 * 7e-4 = 0.0448
        ("whole", 512, 1.011929e-3, 0.5986652),  # of 1.024e-6 and 0.3584
        ("length", 64, 1.6e-8, 5.6e-3),  # sqrt(64) = 8, times 2e-9 and 7e-4
        ("length", 512, 4.525483e-8, 1.5839192e-2),  # sqrt(512) = 22.627417
    ],
)
def test_fm_alpha_and_beta(radical: str, length: int, alpha: float, beta: float, built: Callable[..., Any]) -> None:
    """Eq. 7, in both readings."""
    loss = built("defense", "fm", f"defense.radical={radical}").fullple(length)
    assert loss.alpha == pytest.approx(alpha, rel=1e-6)
    assert loss.beta == pytest.approx(beta, rel=1e-6)
    assert loss.negatives == "sum"


@pytest.mark.parametrize(
    ("negatives", "expected"),
    [
        # Distances (.5, .1, .3, .9), alpha .2, beta .6. Label 0: positive .3; negatives .5, .3, 0.
        # Label 1: positive 0; negatives .1, .3, 0. Label 3: positive .7; negatives .1, .5, .3.
        ("sum", [0.3 + 0.8, 0.4, 0.7 + 0.9]),
        ("mean", [0.3 + 0.8 / 3, 0.4 / 3, 0.7 + 0.3]),
        ("hardest", [0.3 + 0.5, 0.3, 0.7 + 0.5]),
    ],
)
def test_fullple_loss(negatives: str, expected: list[float]) -> None:
    distances = torch.tensor([[0.5, 0.1, 0.3, 0.9]]).expand(3, 4)
    loss = FullpleLoss(0.2, 0.6, negatives)(-distances, torch.tensor([0, 1, 3]))
    assert loss.tolist() == pytest.approx(expected, abs=1e-6)
    settled = FullpleLoss(0.2, 0.6, negatives)(-torch.tensor([[0.1, 0.7, 0.7]]), torch.tensor([0]))
    assert settled.item() == 0


def test_fm_scores_are_distances() -> None:
    """Features (3, 4) lie 5 from (0, 0), 2 from (3, 6) and 0 from (3, 4); the nearest is predicted (eq. 8, 9)."""
    head = LabelEmbeddings(2, 3, init_std=1)
    head.weight.data = torch.tensor([[0.0, 0.0], [3.0, 6.0], [3.0, 4.0]])
    features = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    logits = head(features)
    assert (-logits[0]).tolist() == pytest.approx([5, 2, 0], abs=1e-6)
    assert logits.argmax(1).tolist() == [2, 0]
    gradient = torch.autograd.grad(logits.sum(), features)[0]  # at distance 0: finite
    assert gradient[0].tolist() == pytest.approx([-3 / 5, -4 / 5 + 1], abs=1e-6)
    assert sum(p.numel() for p in head.parameters()) == 6
    assert head(features.bfloat16()).dtype == torch.float32


def test_fm_scores_see_the_scale_of_alpha() -> None:
    """A distance of 1e-8, below alpha for length 64, is told from one of 3e-8, above it."""
    head = LabelEmbeddings(1, 2, init_std=1)
    head.weight.data = torch.zeros(2, 1)
    assert (-head(torch.tensor([[1e-8], [3e-8]]))[:, 0]).tolist() == pytest.approx([1e-8, 3e-8], rel=0.01)


def test_fm_tells_how_far_apart_its_classes_are(built: Callable[..., Any]) -> None:
    """Embeddings (0, 0), (3, 4), (0, 6): the nearest two lie 13 ** .5 apart. Features (0, 1) of class 0 lie 1
    from their own and 18 ** .5 from the next; (3, 4) of class 1, 0 and 13 ** .5; (0, 2) of class 2, 4 and 2."""
    backbone = nn.Sequential(OrderedDict(flatten=nn.Flatten(), head=LabelEmbeddings(2, 3, init_std=1)))
    backbone.head.weight.data = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 6.0]])
    pixels = torch.tensor([[0.0, 1.0], [3.0, 4.0], [0.0, 2.0]]).view(3, 1, 1, 2)
    y, ids = torch.tensor([0, 1, 2]), torch.arange(3)
    batches = [(pixels[:2], y[:2], ids[:2]), (pixels[2:], y[2:], ids[2:])]
    with torch.no_grad():
        told = built("defense", "fm").epoch_metrics(Defended(Classifier(nn.Identity(), backbone)).eval(), batches)
    assert told == pytest.approx(
        {
            "smallest_embedding_distance": 13**0.5,
            "mean_own_distance": (1 + 0 + 4) / 3,
            "mean_nearest_other_distance": (18**0.5 + 13**0.5 + 2) / 3,
            "median_gap": 18**0.5 - 1,  # of this, 13 ** .5 - 0 and 13 ** .5 - 2
            "beta": (2 * 7e-4) ** 0.5,
            "embedding_step": 0,
        }
    )


@pytest.mark.parametrize(("backbone", "count"), [("resnet18", 11_173_952), ("vgg19", 20_040_512)])
def test_fm_parameter_counts(backbone: str, count: int, run_objects: Callable[..., Any]) -> None:
    """Table 1: ten fewer than the backbone's, its biases."""
    model = run_objects("dataset=cifar10", f"backbone={backbone}", "defense=fm")[1]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == count
    embeddings = model.get_parameter("network.backbone.head.weight")
    assert embeddings.shape == (10, 512)
    assert embeddings.std().item() == pytest.approx(1, abs=0.05)
    assert model.own_loss.beta == pytest.approx(0.5986652)


def test_fm_needs_a_linear_head(built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^backbone: .* replaces the linear head"):
        built("defense", "fm").build(lambda: Classifier(nn.Identity(), nn.Identity()))


def test_fm_adversarial_part_starts_late_and_weighs_half(built: Callable[..., Any]) -> None:
    """Eq. 10. Distances (1 - x, x); alpha, beta near 0: the loss of class 0 is 1 - x. Clean .4, adversarial .6."""
    defense = with_attack(built("defense", "fm"))
    assert (defense.start_epoch, defense.clean_weight, defense.adversarial_weight) == (20, 0.5, 0.5)

    class Distances(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x.flatten(1) - 1, -x.flatten(1)], dim=1)

    model = Defended(Distances(), own_loss=FullpleLoss(0.0, 1e-6, "sum"))
    assert defense.loss(model, batch_of(0.6, epoch=19)).item() == pytest.approx(0.4, abs=1e-5)
    assert not defense.attack.seen
    assert defense.loss(model, batch_of(0.6, epoch=20)).item() == pytest.approx(0.5 * 0.4 + 0.5 * 0.6, abs=1e-5)
    other = replace(defense, clean_weight=2, adversarial_weight=3)
    assert other.loss(model, batch_of(0.6, epoch=20)).item() == pytest.approx(2 * 0.4 + 3 * 0.6, abs=1e-5)
    assert defense.attack.seen[0][2].own_loss is model.own_loss
    assert built("defense", "fm").attack.loss == "own"
    assert built("defense", "fm").attack.labels == "predicted"


# Adversarial training and TRADES


@pytest.mark.parametrize(
    ("name", "clean", "adversarial", "start"),
    [("adversarial_training", 0, 1, 0), ("adversarial_training_pni", 0.5, 0.5, 5)],
)
def test_adversarial_training_weights(name: str, clean: float, adversarial: float, start: int, built: Callable[..., Any]) -> None:
    """Pixels .7 and .3, lowered to .5 and .1."""
    defense, model = with_attack(built("defense", name)), Defended(OnePixel())
    expected = clean * (ce(0.7) + ce(0.3)) / 2 + adversarial * (ce(0.5) + ce(0.1)) / 2
    assert defense.loss(model, batch_of(0.7, 0.3, epoch=start)).item() == pytest.approx(expected, abs=1e-6)
    if start:
        assert defense.loss(model, batch_of(0.7, 0.3, epoch=start - 1)).item() == pytest.approx((ce(0.7) + ce(0.3)) / 2, abs=1e-6)
        assert len(defense.attack.seen) == 1
    else:
        with pytest.raises(LabError, match=r"^adversarial_weight: "):
            replace(defense, adversarial_weight=0)


def test_trades_loss(built: Callable[..., Any]) -> None:
    """CE + 6 KL, where KL(p || q) = p0 ln(p0 / q0) + p1 ln(p1 / q1), p clean and q adversarial."""
    defense, model, batch = with_attack(built("defense", "trades")), Defended(OnePixel()).train(), batch_of(0.7, 0.3)

    def kl(x: float, x_adv: float) -> float:
        p, q = 1 / (1 + math.exp(-2 * x)), 1 / (1 + math.exp(-2 * x_adv))
        return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))

    by_hand = (ce(0.7) + ce(0.3)) / 2 + 6 * (kl(0.7, 0.5) + kl(0.3, 0.1)) / 2
    loss = defense.loss(model, batch)
    assert loss.item() == pytest.approx(by_hand, abs=1e-6)

    # The authors' code: KLDivLoss(size_average=False), a sum, divided by the batch size.
    logits, logits_adv = model(batch.x), model(batch.x - 0.2)
    robust = nn.KLDivLoss(reduction="sum")(nn.functional.log_softmax(logits_adv, dim=1), nn.functional.softmax(logits, dim=1)) / 2
    theirs = cross_entropy(logits, batch.y).mean() + 6.0 * robust
    torch.testing.assert_close(loss, theirs)
    gradients = [torch.autograd.grad(value, list(model.parameters()))[0] for value in (loss, theirs)]  # through both predictions
    torch.testing.assert_close(*gradients)


def test_trades_searches_for_disagreement_with_the_clean_prediction(built: Callable[..., Any]) -> None:
    defense, batch = with_attack(built("defense", "trades")), batch_of(0.7, 0.3)
    model = Defended(nn.Sequential(OnePixel(), nn.Dropout(0.5))).train()
    defense.loss(model, batch)
    ((loss, target, _),) = defense.attack.seen
    p = 1 / (1 + math.exp(-1.4))
    assert target[0].tolist() == pytest.approx([p, 1 - p])  # in eval mode: nothing dropped
    assert loss(torch.tensor([[1.4, 0.0]]), target[:1]).item() == pytest.approx(0, abs=1e-6)
    assert loss(torch.tensor([[0.0, 0.0]]), target[:1]).item() > 0.1
    assert model.training
    with pytest.raises(LabError, match=r"^attack\.labels: expected ground_truth"):
        replace(defense, attack=Lower(labels="predicted"))
    with pytest.raises(LabError, match=r"^attack\.random_start: .*none"):  # no slope at the clean image: the search would stand still
        replace(defense, attack=Lower(random_start="none"))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    ("name", "epoch", "passes"),
    [
        ("standard", 0, 1),
        ("adversarial_training", 0, 1),
        ("adversarial_training_pni", 4, 1),
        ("adversarial_training_pni", 5, 2),
        ("fm", 19, 1),
        ("fm", 20, 2),
        ("trades", 0, 2),
        ("gda", 0, 1),
        ("label_smoothing", 0, 1),
    ],
)
def test_passes_that_move_batch_norm(name: str, epoch: int, passes: int, fast: bool, run_objects: Callable[..., Any]) -> None:
    """Clean and adversarial images pass once each in train mode; searches, and TRADES' target of the search, in eval mode."""
    _, model, defense, _ = run_objects(f"defense={name}")
    if fast:
        model.attach_fast_copy()
    batch = batch_of(0.7, 0.3, epoch=epoch)
    defense.loss(model.train(), replace(batch, x=batch.x.expand(2, 1, 8, 8)))
    counts = [int(module.num_batches_tracked or 0) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert counts == [passes] * len(counts)
    assert len(counts) > 3


# Label smoothing


def test_smoothed_labels() -> None:
    assert smoothed(torch.tensor([2, 0]), 3, 0.9).tolist() == [
        pytest.approx([0.05, 0.05, 0.9]),
        pytest.approx([0.9, 0.05, 0.05]),
    ]
    assert smoothed(torch.tensor([0]), 10, 0.9)[0].tolist() == pytest.approx([0.9] + [0.1 / 9] * 9)
    assert smoothed(torch.tensor([1]), 2, 1.0).tolist() == [[0, 1]]


def test_label_smoothing_loss(built: Callable[..., Any]) -> None:
    """Class 0 at .7: .9 ln(1 + e^-1.4) + .1 ln(1 + e^1.4)."""
    loss = built("defense", "label_smoothing").loss(Defended(OnePixel()), batch_of(0.7))
    assert loss.item() == pytest.approx(0.9 * math.log(1 + math.exp(-1.4)) + 0.1 * math.log(1 + math.exp(1.4)), abs=1e-6)


# Gaussian augmentation and the bounded ReLU


@pytest.fixture
def noisy(built: Callable[..., Any]) -> Callable[..., dict[int, dict[tuple[int, int], Tensor]]]:
    """The augmented images of epochs 0 and 1 by (image, copy)."""
    data = ImageSet(torch.rand(7, 1, 12, 12), torch.zeros(7, dtype=torch.int64), torch.arange(20, 27))

    def make(*overrides: str, name: str = "gda", seed: int = 0) -> dict[int, dict[tuple[int, int], Tensor]]:
        defense = built("defense", name, *overrides)
        recipe = replace(built("training", "digits"), batch_size=8)
        images: dict[int, dict[tuple[int, int], Tensor]] = {0: {}, 1: {}}
        for epoch in images:
            for batch in epoch_batches(data, torch.arange(7), recipe, defense.copies, seed, epoch):
                x = defense.augmented(batch)
                for one, image, copy in zip(x, batch.ids.tolist(), batch.copy.tolist(), strict=True):
                    images[epoch][image, copy] = one - data.images[image - 20] if "defense.clip=true" not in overrides else one
        return images

    return make


def test_gda_copies(noisy: Callable[..., dict[int, dict[tuple[int, int], Tensor]]]) -> None:
    """Ten noisy copies and the original, sigma .3, the same in every epoch, unclipped."""
    first, second = noisy().values()
    assert first.keys() == second.keys() == {(image, copy) for image in range(20, 27) for copy in range(11)}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(first[image, 0].any() for image in range(20, 27))
    noise = {key: value for key, value in first.items() if key[1] > 0}
    drawn = torch.cat([value.flatten() for value in noise.values()])
    assert drawn.std().item() == pytest.approx(0.3, rel=0.03)
    assert drawn.mean().item() == pytest.approx(0, abs=0.015)
    assert len({value[0, 0, 0].item() for value in noise.values()}) == 70  # no two copies or images share their noise


def test_gda_knobs(noisy: Callable[..., dict[int, dict[tuple[int, int], Tensor]]]) -> None:
    first, second = noisy("defense.resample_each_epoch=true", "defense.noisy_copies=2").values()
    assert {copy for _, copy in first} == {0, 1, 2}
    assert not any(torch.equal(first[20, copy], second[20, copy]) for copy in (1, 2))
    only_noise = noisy("defense.include_clean=false", "defense.noisy_copies=3", "defense.sigma=0.05")[0]
    assert {copy for _, copy in only_noise} == {0, 1, 2}
    assert torch.cat([value.flatten() for value in only_noise.values()]).std().item() == pytest.approx(0.05, rel=0.06)
    clipped = torch.stack(list(noisy("defense.clip=true", "defense.noisy_copies=3")[0].values()))
    assert (clipped.min(), clipped.max()) == (0, 1)


@pytest.mark.parametrize("name", ["gda", "uniform_augmentation"])
def test_noisy_copies_follow_the_seed(name: str, noisy: Callable[..., dict[int, dict[tuple[int, int], Tensor]]]) -> None:
    first, again, other = (noisy(name=name, seed=seed)[0] for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if key[1] > 0)


def test_gda_noise_is_gaussian(noisy: Callable[..., dict[int, dict[tuple[int, int], Tensor]]]) -> None:
    """Within one, two and three standard deviations: .683, .954, .997; uniform noise has no third."""
    drawn = torch.cat([value.flatten() for key, value in noisy()[0].items() if key[1] > 0]).abs()
    shares = [(drawn < n * 0.3).float().mean().item() for n in (1, 2, 3)]
    assert shares == pytest.approx([0.683, 0.954, 0.997], abs=0.015)


def test_uniform_augmentation_copies(noisy: Callable[..., dict[int, dict[tuple[int, int], Tensor]]]) -> None:
    """Ten noisy copies and the original, in [-.5196, .5196], with a standard deviation of .3, the same in every epoch."""
    first, second = noisy(name="uniform_augmentation").values()
    assert first.keys() == second.keys() == {(image, copy) for image in range(20, 27) for copy in range(11)}
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not any(first[image, 0].any() for image in range(20, 27))
    noise = {key: value for key, value in first.items() if key[1] > 0}
    drawn = torch.cat([value.flatten() for value in noise.values()])
    assert drawn.std().item() == pytest.approx(0.3, rel=0.02)
    assert drawn.mean().item() == pytest.approx(0, abs=0.01)
    assert 0.515 < -drawn.min() < 0.51961
    assert 0.515 < drawn.max() < 0.51961
    quarters = torch.histc(drawn, 4, -0.5196, 0.5196) / len(drawn)
    assert quarters.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert len({value[0, 0, 0].item() for value in noise.values()}) == 70  # no two copies or images share their noise


def test_uniform_augmentation_knobs(noisy: Callable[..., dict[int, dict[tuple[int, int], Tensor]]]) -> None:
    uniform = functools.partial(noisy, name="uniform_augmentation")
    first, second = uniform("defense.resample_each_epoch=true", "defense.noisy_copies=2", "defense.reach=0.1").values()
    assert {copy for _, copy in first} == {0, 1, 2}
    assert not any(torch.equal(first[20, copy], second[20, copy]) for copy in (1, 2))
    assert 0.095 < torch.cat([value.flatten() for value in first.values()]).abs().max() < 0.10001
    only_noise = uniform("defense.include_clean=false", "defense.noisy_copies=3")[0]
    assert {copy for _, copy in only_noise} == {0, 1, 2}
    assert all(value.any() for value in only_noise.values())
    clipped = torch.stack(list(uniform("defense.clip=true", "defense.noisy_copies=3")[0].values()))
    assert (clipped.min(), clipped.max()) == (0, 1)


@pytest.mark.parametrize("name", ["gda", "uniform_augmentation", "squeezed_training", "standard"])
def test_the_loss_looks_at_the_augmented_images(name: str, built: Callable[..., Any]) -> None:
    """Cross-entropy of what `augmented` returns, which is the batch itself where nothing is augmented."""
    defense, model = built("defense", name), Defended(OnePixel())
    batch = replace(batch_of(0.7, 0.3), copy=torch.tensor([1, 4]))
    x = defense.augmented(batch)
    pixels = x.flatten().tolist()
    assert defense.loss(model, batch).item() == pytest.approx((ce(pixels[0]) + ce(pixels[1])) / 2, abs=1e-6)
    assert torch.equal(x, batch.x) == (name == "standard")


def test_gda_learns_from_the_noisy_images(built: Callable[..., Any]) -> None:
    defense, model = built("defense", "gda"), Defended(OnePixel())
    batch = replace(batch_of(0.7, 0.3), copy=torch.tensor([0, 4]))
    pixels = defense.augmented(batch).flatten().tolist()
    assert pixels[0] == pytest.approx(0.7)
    assert defense.loss(model, batch).item() == pytest.approx((ce(pixels[0]) + ce(pixels[1])) / 2, abs=1e-6)


@pytest.mark.parametrize(("name", "bounded"), [("bounded_relu", True), ("gda_bounded_relu", True), ("gda", False), ("standard", False)])
@pytest.mark.parametrize("backbone", ["small_resnet", "efficient_defenses_cnn", "efficient_defenses_resnet"])
def test_bounded_relus(name: str, bounded: bool, backbone: str, run_objects: Callable[..., Any]) -> None:
    """Every activation is cut off at t = 1, or none is."""
    dataset = "digits" if backbone == "small_resnet" else "mnist"
    model = run_objects(f"dataset={dataset}", f"backbone={backbone}", f"defense={name}")[1]
    plain = run_objects(f"dataset={dataset}", f"backbone={backbone}")[1]
    relus = [module for module in plain.modules() if isinstance(module, nn.ReLU)]
    bounds = [module.bound for module in model.modules() if isinstance(module, BoundedReLU)]
    assert len(relus) > 2
    assert bounds == ([1] * len(relus) if bounded else [])
    assert any(isinstance(module, nn.ReLU) for module in model.modules()) is not bounded


def test_standard_training_is_cross_entropy(built: Callable[..., Any]) -> None:
    defense = built("defense", "standard")
    assert type(defense) is Defense
    assert defense.loss(Defended(OnePixel()), batch_of(0.7, 0.3)).item() == pytest.approx((ce(0.7) + ce(0.3)) / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "override", "key"),
    [
        ("fm", "defense.negatives=all", "negatives"),
        ("fm", "defense.alpha=0", "alpha"),
        ("fm", "defense.start_epoch=-1", "start_epoch"),
        ("fm", "defense.budget.eps=-1", "budget.eps"),
        ("fm", "defense.budget.eps=inf", "budget.eps"),
        ("fm", "defense.attack.steps=0", "attack.steps"),
        ("adversarial_training", "defense.clean_weight=-1", "clean_weight"),
        ("trades", "defense.beta=0", "beta"),
        ("trades", "defense.attack.labels=predicted", "attack.labels"),
        ("label_smoothing", "defense.true_weight=1.1", "true_weight"),
        ("fm", "defense.alpha=inf", "alpha"),
        ("fm", "defense.beta=inf", "beta"),
        ("fm", "defense.embedding_std=inf", "embedding_std"),
        ("fm", "defense.embedding_lr=-1", "embedding_lr"),
        ("fm", "defense.radical=all", "radical"),
        ("fm", "defense.clean_weight=inf", "clean_weight"),
        ("fm", "defense.adversarial_weight=nan", "adversarial_weight"),
        ("adversarial_training", "defense.adversarial_weight=inf", "adversarial_weight"),
        ("trades", "defense.beta=inf", "beta"),
        ("vat", "defense.weight=inf", "weight"),
        ("vat", "defense.xi=inf", "xi"),
        ("adv_bnn", "defense.kl_weight=inf", "kl_weight"),
        ("pni", "defense.places=[[weight]]", "places"),
        ("gda", "defense.sigma=inf", "sigma"),
        ("gda", "defense.sigma=nan", "sigma"),
        ("gda", "defense.sigma=true", "sigma"),
        ("gda", "defense.bound=inf", "bound"),
        ("bounded_relu", "defense.bound=inf", "bound"),
        ("bounded_relu", "defense.bound=true", "bound"),
        ("gda", "defense.sigma=0", "sigma"),
        ("gda", "defense.noisy_copies=0", "noisy_copies"),
        ("gda", "defense.clip=1", "clip"),
        ("gda", "defense.bound=0", "bound"),
        ("gda", "defense.include_clean=no_idea", "include_clean"),
        ("uniform_augmentation", "defense.reach=0", "reach"),
        ("uniform_augmentation", "defense.reach=inf", "reach"),
        ("uniform_augmentation", "defense.noisy_copies=0", "noisy_copies"),
        ("uniform_augmentation", "defense.resample_each_epoch=1", "resample_each_epoch"),
        ("squeezed_training", "defense.bit_depth=9", "bit_depth"),
        ("bounded_relu", "defense.bound=0", "bound"),
    ],
)
def test_a_wrong_knob_fails_when_built(name: str, override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: "):
        built("defense", name, override)
