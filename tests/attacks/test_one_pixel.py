"""One-Pixel: models that one pixel flips, an exhaustive search, and ART."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.one_pixel import evaluate, paint
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.views import Counted
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

VARIANTS = ["one_pixel", "one_pixel_fm"]


class Keys(nn.Module):
    """Class 1 (of K) where each of the given pixels is near its colour; the nearer the colours are, the likelier."""

    def __init__(self, keys: dict[tuple[int, int], list[float]], classes: int) -> None:
        super().__init__()
        self.keys, self.classes = keys, classes

    def forward(self, x: Tensor) -> Tensor:
        logits = x.new_zeros(len(x), self.classes)
        for (row, column), colour in self.keys.items():
            logits[:, 1] -= (x[:, :, row, column] - torch.tensor(colour)).abs().amax(1)
        logits[:, 1] += 0.1
        logits[:, 2:] = -9.0
        return logits


def streams(n: int) -> ImageRandom:
    return ImageRandom.of(torch.arange(n), 7)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_finds_the_one_pixel_that_flips_the_class(name: str, classes: int, built: Callable[..., Any]) -> None:
    """Each of its three channels has to come within .1 of a colour: a thousandth of all colours, at one place of twelve."""
    model = Counted(Keys({(2, 1): [0.9, 0.1, 0.3]}, classes))
    x, y = torch.full((10, 3, 4, 3), 0.5), torch.zeros(10, dtype=torch.int64)
    attack = built("attack", name, "attack.generations=40")
    x_adv = attack(model, x, y, Budget("l0", 1), streams(10))
    assert (model(x_adv).argmax(1) == 1).all()
    changed = (x_adv != x).any(1)
    assert changed.flatten(1).sum(1).tolist() == [1] * 10
    assert changed[:, 2, 1].all()
    assert model.forward_images < 10 * 400 * 20  # images leave the generation in which they break


def test_two_pixels_flip_what_one_does_not(built: Callable[..., Any]) -> None:
    model = Keys({(0, 0): [1.0], (2, 1): [0.0]}, 2)
    x, y = torch.full((6, 1, 3, 2), 0.5), torch.zeros(6, dtype=torch.int64)
    one, two = (
        built("attack", "one_pixel", f"attack.pixels={pixels}", "attack.generations=30")(model, x, y, Budget("l0", 2), streams(6))
        for pixels in (1, 2)
    )
    assert (model(one).argmax(1) == 0).all()
    torch.testing.assert_close((one - x).abs().flatten(1).amax(1), torch.full((6,), 0.5))  # but it goes as far as one pixel can
    assert (model(two).argmax(1) == 1).all()
    assert (Budget("l0", 2).distance(two, x) == 2).all()


def test_the_fitness_by_hand() -> None:
    """log(e^2 + e^3) - 1 against class 0; the order stays where the true class's probability is one in float32."""

    class Table(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 2.0, 3.0], [50.0, 0.0, -1.0], [50.0, 1.0, -1.0]])[: len(x)]

    members = torch.zeros(1, 3, 1, 3)
    odds, wrong = evaluate(Table(), torch.zeros(1, 1, 2, 2), torch.tensor([0]), members, 99)
    assert odds[0, 0].item() == pytest.approx(2.313262, abs=1e-5)
    assert odds[0, 2] > odds[0, 1]
    assert wrong.tolist() == [[True, False, False]]


def test_paint() -> None:
    """Row .5 of 4 is row 2, column .99 of 3 is column 2; of two on one place the later one counts."""
    x = torch.zeros(1, 2, 4, 3)
    painted = paint(x, torch.tensor([[[0.5, 0.99, 0.1, 0.2], [0.0, 0.0, 0.3, 0.4], [0.01, 0.3, 0.5, 0.6]]]))
    expected = torch.zeros(1, 2, 4, 3)
    expected[0, :, 2, 2], expected[0, :, 0, 0] = torch.tensor([0.1, 0.2]), torch.tensor([0.5, 0.6])
    assert torch.equal(painted, expected)
    assert not x.any()


def test_the_first_population(built: Callable[..., Any]) -> None:
    x = torch.zeros(50, 3, 8, 8)
    for name, low, deviation in (("one_pixel", 0.157, 0.37), ("one_pixel_fm", 0.0, 0.289)):
        members = built("attack", name).first(x, streams(50))
        assert members.shape == (50, 400, 1, 5)
        assert members[..., :2].mean() == pytest.approx(0.5, abs=0.01)
        assert (members[..., 2:] == 0).float().mean() == pytest.approx(low, abs=0.01)  # P(N(128, 127) < 0) = .157
        assert members[..., 2:].std() == pytest.approx(deviation, abs=0.02)
        assert 0 <= members.min() <= members.max() <= 1
    assert not torch.equal(members[0], members[1])


@pytest.mark.parametrize(("parent", "weight"), [("random", 0.5), ("best", 0.5), ("random", [0.25, 0.75])])
def test_a_child_varies_a_member_by_the_difference_of_two_others(parent: str, weight: Any, built: Callable[..., Any]) -> None:
    """Four members: the three of a child are those beside its own parent, in each order; the best one as base may be any."""
    colours = [0.4, 0.43, 0.5, 0.63]
    members = torch.tensor(colours).view(1, 4, 1, 1).expand(300, -1, -1, 3).clone()
    members[..., :2] = 0.5
    overrides = ["attack.population=4", f"attack.parent={parent}", f"attack.differential_weight={weight}"]
    odds = torch.tensor([[0.0, 0.0, 7.0, 0.0]]).expand(300, -1)
    children = built("attack", "one_pixel", *overrides).vary(members, odds, streams(300))
    assert (children[..., :2] == 0.5).all()
    seen = children[..., 0, 2]
    for index in range(4):
        orders = list(itertools.permutations([colour for i, colour in enumerate(colours) if i != index]))
        if isinstance(weight, float):
            possible = {round((base if parent == "random" else 0.5) + weight * (one - other), 4) for one, other, base in orders}
            assert {round(value, 4) for value in seen[:, index].tolist()} == possible
        else:
            steps = torch.tensor([[base + share * (one - other) for share in (0.25, 0.75)] for one, other, base in orders])
            low, high = steps.amin(1), steps.amax(1)
            value = seen[:, index, None]
            assert ((value >= low - 1e-6) & (value <= high + 1e-6)).any(1).all()
            assert len(seen[:, index].unique()) > 100


def test_a_child_outside_its_range(built: Callable[..., Any]) -> None:
    """Its colour is cut, its place drawn anew."""
    members = torch.rand(200, 8, 1, 3)
    children = built("attack", "one_pixel", "attack.population=8", "attack.differential_weight=2").vary(
        members, torch.zeros(200, 8), streams(200)
    )
    assert children.min() >= 0
    assert children.max() <= 1
    assert children[..., :2].max() < 1
    for value in (0.0, 1.0):
        assert (children[..., 2] == value).float().mean() > 0.1
        assert not (children[..., :2] == value).any()


def test_a_colour_outside_its_range_may_be_drawn_anew(built: Callable[..., Any]) -> None:
    """As SciPy does: a child of members near white is white nowhere, and its new colour is any."""
    members = torch.cat([torch.rand(300, 8, 1, 2), 0.9 + 0.1 * torch.rand(300, 8, 1, 1)], dim=3)
    how = ["attack.population=8", "attack.differential_weight=2"]
    cut, redrawn = (
        built("attack", "one_pixel", *how, f"attack.outside={outside}").vary(members, torch.zeros(300, 8), streams(300))[..., 2]
        for outside in ("cut", "redraw")
    )
    beyond = cut == 1
    assert 0.2 < beyond.float().mean() < 0.8
    assert torch.equal(redrawn[~beyond], cut[~beyond])
    assert redrawn[beyond].mean().item() == pytest.approx(0.5, abs=0.05)
    assert redrawn[beyond].std().item() == pytest.approx(12**-0.5, abs=0.05)


def test_crossover(built: Callable[..., Any]) -> None:
    members = 0.4 + 0.2 * torch.rand(100, 8, 1, 5)
    children = built("attack", "one_pixel", "attack.population=8", "attack.crossover=0.3").vary(members, torch.zeros(100, 8), streams(100))
    assert (children != members).float().mean() == pytest.approx(0.3, abs=0.03)


def test_without_a_verdict_all_generations_are_used(built: Callable[..., Any]) -> None:
    model = Counted(Keys({(0, 0): [1.0]}, 2))
    model.decides = False  # type: ignore[assignment]
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    attack = built("attack", "one_pixel", "attack.population=20", "attack.generations=30")
    x_adv = attack(model, x, y, Budget("l0", 1), streams(3))
    assert model.forward_images == 3 * 20 * 31
    assert (x_adv[:, 0, 0, 0] == 1.0).all()  # and the search goes beyond the boundary, at .9


@pytest.fixture(scope="module")
def images(digits: tuple[ImageSet, ImageSet]) -> tuple[Tensor, Tensor]:
    x, y, _ = next(digits[1].batches(torch.arange(30), 30))
    return x, y


def test_finds_what_an_exhaustive_search_finds(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """Of 192 pixels and values, at least four break each image that must be found: the first 200 members alone miss one in 67 of those."""
    x, y = images
    ways = torch.zeros(30)
    for row, column, value in itertools.product(range(8), range(8), (0.0, 0.5, 1.0)):
        painted = x.clone()
        painted[:, :, row, column] = value
        ways += digits_model(painted).argmax(1) != y
    x_adv = built("attack", "one_pixel", "attack.population=200", "attack.generations=10")(digits_model, x, y, Budget("l0", 1), streams(30))
    broken = digits_model(x_adv).argmax(1) != y
    assert (ways >= 4).sum() >= 3
    assert broken[ways >= 4].all()
    assert (Budget("l0", 1).distance(x_adv, x) <= 1).all()


def test_art(digits_model: Defended, images: tuple[Tensor, Tensor], built: Callable[..., Any]) -> None:
    """ART's differential evolution with as many members and generations: it breaks no more images."""
    pytest.importorskip("art", reason="the parity extra is not installed")
    evasion = pytest.importorskip("art.attacks.evasion")
    classification = pytest.importorskip("art.estimators.classification")
    x, y = (tensor[:12] for tensor in images)
    estimator = classification.PyTorchClassifier(
        digits_model, nn.CrossEntropyLoss(), input_shape=(1, 8, 8), nb_classes=10, clip_values=(0, 1), device_type="cpu"
    )
    one_hot = nn.functional.one_hot(y, 10).numpy()
    theirs = torch.from_numpy(evasion.PixelAttack(estimator, th=1, es=1, max_iter=2).generate(x.numpy(), one_hot))
    digits_model.eval()
    x_adv = built("attack", "one_pixel_fm", "attack.population=399", "attack.generations=2")(
        digits_model, x, y, Budget("l0", 1), streams(12)
    )
    assert (digits_model(x_adv).argmax(1) != y).sum() >= (digits_model(theirs).argmax(1) != y).sum()


@pytest.mark.parametrize("name", VARIANTS)
def test_more_pixels_than_the_budget_are_refused(name: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^attack\.pixels: 3 pixels are more than budget\.eps = 2 allows; set budget\.eps=3"):
        built("attack", name, "attack.pixels=3").check(Budget("l0", 2))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("pixels=0", "pixels"),
        ("population=3", "population"),
        ("generations=0", "generations"),
        ("differential_weight=0", "differential_weight"),
        ("differential_weight=[1,0.5]", "differential_weight"),
        ("differential_weight=[1,1,1]", "differential_weight"),
        ("differential_weight=a", "differential_weight"),
        ("parent=worst", "parent"),
        ("crossover=0", "crossover"),
        ("colours=red", "colours"),
        ("outside=wrap", "outside"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^attack\.{key}: expected .*, got "):
        built("attack", "one_pixel", f"attack.{override}")
