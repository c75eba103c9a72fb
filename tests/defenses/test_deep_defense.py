"""Deep Defense: its regulariser by hand and by finite differences, its two branches, and what a step leaves alone."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Player
from robustbench_lab.defenses.deep_defense import DeepDefense, same_dropout
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import FirstLayer, Normalise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.training.loop import backward, fit


@pytest.fixture
def deep_defense(built: Callable[..., Any]) -> DeepDefense:
    return built("defense", "deep_defense", "defense.strength=2", "defense.c=3", "defense.d=0.5")


def model_of(backbone: nn.Module, first: nn.Module | None = None) -> Defended:
    return Defended(Classifier(first or FirstLayer(), backbone)).double()


def linear(weights: Tensor, bias: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], len(weights)))
    with torch.no_grad():
        net[1].weight.copy_(weights)
        net[1].bias.copy_(bias)
    return net


def small_cnn(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    maps = [nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Dropout(dropout), nn.Flatten()]
    net = nn.Sequential(*maps, nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return net


def batch(x: Tensor, y: Tensor) -> Batch:
    ids = torch.arange(len(x))
    rng = ImageRandom.of(ids, 0)
    return Batch(x, y, ids, torch.zeros_like(ids), 0, rng, rng)


def some(n: int = 12, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, 4, 4, dtype=torch.float64, generator=generator), torch.randint(3, (n,), generator=generator)


def regulariser(defense: DeepDefense, model: Defended, x: Tensor, y: Tensor) -> Tensor:
    with same_dropout(model) as masks:
        return defense.regulariser(model, masks, x, y)


def gradients(value: Tensor, model: nn.Module) -> list[Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]


def test_a_linear_classifier_has_a_closed_form(deep_defense: DeepDefense) -> None:
    """Right: 1.02 times the smallest |w_j - w_y| . x over its norm; wrong: the way to the label alone. Value and gradient."""
    torch.manual_seed(1)
    model = model_of(linear(torch.randn(4, 16, dtype=torch.float64), torch.randn(4, dtype=torch.float64)))
    x = torch.rand(20, 1, 4, 4, dtype=torch.float64)
    y = torch.arange(20) % 4
    layer, total, branches = model.network.backbone[1], torch.zeros((), dtype=torch.float64), set()
    for image, label in zip(x.flatten(1), y.tolist(), strict=True):
        logits = layer(image)
        own = int(logits.argmax())
        goals = [label] if own != label else [j for j in range(4) if j != own]
        ways = [(logits[own] - logits[j]) / (layer.weight[own] - layer.weight[j]).norm() for j in goals]
        rho = 1.02 * torch.stack(ways).min() / image.norm()
        total = total + ((0.5 * rho).exp() if own != label else (-3 * rho).exp())
        branches.add(own == label)
    assert branches == {True, False}, "both branches"
    # One step: past the label's boundary a wrong image may meet a third class.
    ours, closed = regulariser(replace(deep_defense, steps=1), model, x, y), total / 20
    assert float(ours.detach()) == pytest.approx(float(closed.detach()), rel=1e-9)
    for one, other in zip(gradients(ours, model), gradients(closed, model), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_by_hand(deep_defense: DeepDefense) -> None:
    """Logits (2 x1, -2 x1). (1, 1) of class 0 is right: 1.02 off, rho 1.02 / sqrt 2. The same of class 1 is wrong, as far off."""
    model = model_of(linear(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]), torch.zeros(2)))
    x, rho = torch.ones(2, 1, 1, 2, dtype=torch.float64), 1.02 / math.sqrt(2)
    found = regulariser(deep_defense, model, x, torch.tensor([0, 1]))
    assert float(found.detach()) == pytest.approx((math.exp(-3 * rho) + math.exp(0.5 * rho)) / 2, rel=1e-9)
    found = regulariser(replace(deep_defense, shape="linear"), model, x, torch.tensor([0, 1]))
    assert float(found.detach()) == pytest.approx((-3 * rho + 0.5 * rho) / 2, rel=1e-9)


@pytest.mark.parametrize("changes", [{}, {"shape": "linear"}, {"wrong_images": False}, {"candidates": 2}])
def test_the_gradient_is_that_of_finite_differences(deep_defense: DeepDefense, changes: dict[str, Any]) -> None:
    defense, model, (x, y) = replace(deep_defense, **changes), model_of(small_cnn()), some(24)
    right = model(x).argmax(1) == y
    assert 4 < int(right.sum()) < 20
    found = gradients(regulariser(defense, model, x, y), model)
    for parameter, gradient in zip(model.parameters(), found, strict=True):
        for place in range(0, parameter.numel(), max(1, parameter.numel() // 4)):
            flat, either = parameter.data.view(-1), []
            before = float(flat[place])
            for change in (1e-6, -1e-6):
                flat[place] = before + change
                either.append(float(regulariser(defense, model, x, y).detach()))
            flat[place] = before
            assert float(gradient.flatten()[place]) == pytest.approx((either[0] - either[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_a_batch_is_the_mean_of_its_images(deep_defense: DeepDefense) -> None:
    model, (x, y) = model_of(small_cnn()), some()
    together = gradients(regulariser(deep_defense, model, x, y), model)
    alone = [gradients(regulariser(deep_defense, model, x[i : i + 1], y[i : i + 1]), model) for i in range(len(x))]
    for one, *others in zip(together, *alone, strict=True):
        torch.testing.assert_close(one, torch.stack(others).mean(dim=0), rtol=1e-8, atol=1e-10)


def test_a_step_moves_right_images_off_and_brings_wrong_ones_near(deep_defense: DeepDefense) -> None:
    model, (x, y) = model_of(small_cnn()), some(24)
    with same_dropout(model) as masks:
        right = model(x).argmax(1) == y
        before = deep_defense.distances(model, masks, x, y, right).detach()
        for chosen, sign in ((right, 1), (~right, -1)):
            for parameter in model.parameters():
                parameter.grad = None
            regulariser(deep_defense, model, x[chosen], y[chosen]).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 1e-4 * parameter.grad
            after = deep_defense.distances(model, masks, x, y, right).detach()
            assert sign * float((after - before)[chosen].sum()) > 0
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 1e-4 * parameter.grad


def test_distances_are_those_of_what_the_network_is_fed(deep_defense: DeepDefense) -> None:
    """x' = (x - .5) / .25: the distance to the boundary of x'1 + x'2 = 1 is known there, and |x'| is not |x|."""
    model = model_of(linear(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), torch.tensor([-1.0, 1.0])), Normalise([0.5], [0.25]))
    x = torch.tensor([[[[1.0, 0.75]]]], dtype=torch.float64)  # x' = (2, 1)
    with same_dropout(model) as masks:
        rho = deep_defense.distances(model, masks, x, torch.tensor([0]), torch.tensor([True]))
    assert float(rho.detach()) == pytest.approx(1.02 * (2 / math.sqrt(2)) / math.sqrt(5), rel=1e-6)


def test_two_terms_whose_sum_is_the_loss(deep_defense: DeepDefense) -> None:
    model, (x, y) = model_of(small_cnn()), some()
    terms = deep_defense.players(model)[0].loss(model, batch(x, y))
    assert isinstance(terms, Iterator)
    clean, distance = terms
    torch.testing.assert_close(clean, nn.functional.cross_entropy(model(x), y))
    torch.testing.assert_close(distance, 2 * regulariser(deep_defense, model, x, y))


def test_the_regulariser_of_chosen_layers(deep_defense: DeepDefense) -> None:
    model, (x, y) = model_of(small_cnn()), some()
    whole = gradients(regulariser(deep_defense, model, x, y), model)
    part = gradients(regulariser(replace(deep_defense, layers=["backbone.5.*"]), model, x, y), model)
    for (name, _), one, other in zip(model.named_parameters(), whole, part, strict=True):
        torch.testing.assert_close(other, one if "backbone.5." in name else torch.zeros_like(one))
    assert any(bool(gradient.any()) for gradient in part)
    with pytest.raises(LabError, match=r"^defense\.layers: expected globs.*network\.backbone\.0\.weight.*'conv9'"):
        replace(deep_defense, layers=["conv9"]).build(lambda: model.network)


def test_dropout_drops_the_same_values_in_all_passes_of_a_step(deep_defense: DeepDefense) -> None:
    """With masks of its own in each pass an image would leave DeepFool's search by chance."""
    model, (x, y) = model_of(small_cnn(dropout=0.5)).train(), some()
    torch.manual_seed(0)
    with same_dropout(model) as masks:
        whole = model(x)
        assert torch.equal(whole, model(x))
        with masks.of(torch.tensor([7, 2])):
            torch.testing.assert_close(model(x[[7, 2]]), whole[[7, 2]])
    assert not torch.equal(model(x), model(x))
    kept = torch.cat([mask.flatten() for mask in masks.drawn.values()])
    assert set(kept.tolist()) == {0.0, 2.0}
    torch.manual_seed(0)
    clean, _ = deep_defense.terms(model, batch(x, y))
    torch.testing.assert_close(clean, nn.functional.cross_entropy(whole, y))
    assert not any(module._forward_hooks for module in model.modules()), "the hooks are gone"


def test_batchnorm_is_as_in_evaluation_and_stays_as_it_is(
    deep_defense: DeepDefense, run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet], digits_model: Defended
) -> None:
    recipe = run_objects("training.epochs=1", "training.optimizer.lr=0.001", "training.batch_size=50")[3]
    model, reference = (
        copy.deepcopy(digits_model).requires_grad_(),
        {name: tensor.clone() for name, tensor in digits_model.state_dict().items()},
    )
    fit(deep_defense, model, digits[0].subset(torch.arange(100)), recipe, 0)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    with pytest.raises(LabError, match=r"^defense\.layers: expected globs that fit parameters"):
        replace(deep_defense, layers=["norm1.weight"]).build(lambda: model.network)
    assert norms
    still = {*norms, "network.normalise"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, reference[name]) == (name.rpartition(".")[0] in still), name
    for name, tensor in digits_model.state_dict().items():
        assert torch.equal(tensor, reference[name]), "the reference is untouched"


def test_the_hooks_go_also_where_a_backward_pass_fails(deep_defense: DeepDefense) -> None:
    model, (x, y) = model_of(small_cnn(dropout=0.5)).train(), some()
    held = deep_defense.terms(model.requires_grad_(False), batch(x, y))  # or it is closed as soon as nobody holds it
    player = Player("model", [], lambda model, batch: held)
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward(player, model, batch(x, y), "fp32")
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(LabError, match=r"^backbone: expected dropout that sets values to 0.*AlphaDropout"):
        deep_defense.build(lambda: nn.Sequential(nn.AlphaDropout(0.5)))


def test_what_can_not_be_learned_stops(deep_defense: DeepDefense) -> None:
    class Cut(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0.5).to(x) + 0 * x

    model, (x, y) = model_of(nn.Sequential(Cut(), small_cnn())), some()
    with pytest.raises(LabError, match=r"^defense: expected a network whose logits have a gradient in the images"):
        regulariser(deep_defense, model, x, y)
    with pytest.raises(LabError, match=r"^training\.precision: expected fp32"):
        deep_defense.check_passes("bf16", compiled=False)
    with pytest.raises(LabError, match=r"^training\.compile: expected false"):
        deep_defense.check_passes("fp32", compiled=True)


@pytest.mark.parametrize("key", ["strength", "c", "d"])
@pytest.mark.parametrize("value", [0, -1])
def test_knobs_that_must_be_positive(built: Callable[..., Any], key: str, value: int) -> None:
    with pytest.raises(LabError, match=rf"defense\.{key}: expected a finite number > 0, got {value}"):
        built("defense", "deep_defense", f"defense.{key}={value}")


def test_a_term_is_cut_and_said(deep_defense: DeepDefense, caplog: pytest.LogCaptureFixture) -> None:
    model, (x, y) = model_of(small_cnn()), some()
    wrong = model(x).argmax(1) != y
    uncut = regulariser(deep_defense, model, x[wrong], y[wrong])
    cut = regulariser(replace(deep_defense, largest_term=1.0), model, x[wrong], y[wrong])
    assert float(uncut.detach()) > 1 == float(cut.detach())
    assert "defense.largest_term=1 cuts" in caplog.text
