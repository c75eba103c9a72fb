"""Adv-BNN: its divergence, draws and gradients worked by hand, what its loss adds up, what a pass costs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from torch.nn.utils import parametrize

from robustbench_lab.attacks.gradients import GradientAttack
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.adv_bnn import AdversarialBayesianNetwork, Gaussian, divergence, gaussian_layers, make_gaussian
from robustbench_lab.defenses.base import Batch
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.judging import drawn
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.noise import without_noise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.threats import Budget

SEVERAL = nn.Conv2d, nn.BatchNorm2d, nn.Linear


@dataclass(frozen=True, kw_only=True)
class Lower(GradientAttack):
    """Lowers every pixel by eps."""

    loss: Any = "ce"
    labels: str = "ground_truth"
    eot_samples: int = 1

    def search(self, model: nn.Module, x: Tensor, y: Tensor, budget: Budget, rng: ImageRandom) -> Tensor:
        return budget.project(x - budget.eps, x)


def batch_of(x: Tensor) -> Batch:
    ids = torch.arange(len(x))
    zeros, rng = torch.zeros_like(ids), ImageRandom.of(ids, 0)
    return Batch(x, zeros, ids, zeros, 0, rng, rng)


def one_weight(mean: float, sigma: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(mean)
    make_gaussian(layer, sigma)
    return layer


def log_sigma(layer: nn.Module, name: str = "weight") -> nn.Parameter:
    return layer.get_parameter(f"parametrizations.{name}.0.log_sigma")


def mean(layer: nn.Module, name: str = "weight") -> nn.Parameter:
    return layer.get_parameter(f"parametrizations.{name}.original")


def several() -> nn.Sequential:
    """A convolution, BatchNorm and a head, all means and sigmas at random."""
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 4))
    make_gaussian(network, 0.1)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return network


def test_divergence_by_hand() -> None:
    """Mean .1, sigma .1, prior .05: ln(.05 / .1) + (.01 + .01) / (2 * .0025) - 1/2 = -.693147 + 4 - .5; slopes .1 / .0025 and -1 + 4."""
    layer = one_weight(0.1, 0.1)
    value = divergence([layer], 0.05)
    assert value.item() == pytest.approx(2.806853, abs=1e-5)
    slopes = torch.autograd.grad(value, [mean(layer), log_sigma(layer)])
    assert [slope.item() for slope in slopes] == pytest.approx([40, 3], rel=1e-5)
    assert divergence([one_weight(0, 0.05)], 0.05).item() == pytest.approx(0, abs=1e-6)


def test_divergence_as_torch_has_it() -> None:
    layers = gaussian_layers(several())
    assert [len(layer.parametrizations) for layer in layers] == [2, 2, 2]  # type: ignore[arg-type]
    pairs = [(mean(layer, name), log_sigma(layer, name)) for layer in layers for name in ("weight", "bias")]
    theirs = [kl_divergence(Normal(m, s.exp()), Normal(0.0, 0.3)).sum() for m, s in pairs]
    torch.testing.assert_close(divergence(layers, 0.3), torch.stack(theirs).sum())
    torch.testing.assert_close(divergence(layers[-1:], 0.3), theirs[-2] + theirs[-1])


def test_draws_have_the_mean_and_sigma_of_their_weight() -> None:
    for layer in gaussian_layers(several()):
        for name in ("weight", "bias"):
            draws = torch.stack([getattr(layer, name).detach() for _ in range(3000)])
            sigma = log_sigma(layer, name).detach().exp()
            assert ((draws.mean(dim=0) - mean(layer, name)) / sigma).abs().max() < 0.09  # 4.9 standard errors
            torch.testing.assert_close(draws.std(dim=0), sigma, rtol=0.07, atol=0)
            assert len(draws.flatten(1).unique(dim=0)) == 3000


def test_gradient_by_hand() -> None:
    """w = m + s e and y = 3 w: dy/dm = 3 and dy/d(log s) = 3 s e."""
    layer = one_weight(0.5, 0.2)
    torch.manual_seed(7)
    noise = torch.randn(1, 1).item()
    torch.manual_seed(7)
    y = layer(torch.tensor([[3.0]]))
    assert y.item() == pytest.approx(3 * (0.5 + 0.2 * noise), rel=1e-6)
    slopes = torch.autograd.grad(y, [mean(layer), log_sigma(layer)])
    assert [slope.item() for slope in slopes] == pytest.approx([3, 0.6 * noise], rel=1e-5)


def test_a_draw_is_the_same_in_every_memory_format() -> None:
    conv, drawn_weights = several()[0], []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        conv.to(memory_format=memory_format)
        assert mean(conv).is_contiguous(memory_format=memory_format)
        with drawn(True, 7):
            drawn_weights.append(conv.weight.clone())  # type: ignore[operator, union-attr]
    assert torch.equal(*drawn_weights)


@pytest.mark.parametrize("backbone", ["resnet20 backbone.depth=8", "resnet18", "vgg19 backbone.depth=11"])
def test_every_layer_is_gaussian_and_the_means_are_the_plain_network(backbone: str, run_objects: Callable[..., Any]) -> None:
    words = ("dataset=cifar10", *f"backbone={backbone}".split())
    plain, model = (run_objects(*words, f"defense={name}")[1].eval() for name in ("standard", "adv_bnn"))
    layers = [module for module in model.modules() if isinstance(module, SEVERAL)]
    assert len(layers) == sum(isinstance(module, SEVERAL) for module in plain.modules())
    assert all(parametrize.is_parametrized(layer) for layer in layers)
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (plain, model)]
    assert sizes[1] == 2 * sizes[0]
    sigmas = [parameter for name, parameter in model.named_parameters() if name.endswith("log_sigma")]
    assert sum(sigma.numel() for sigma in sigmas) == sizes[0]
    assert torch.cat([sigma.flatten().exp() for sigma in sigmas]).unique().tolist() == pytest.approx([0.05])
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = plain(x)
        with without_noise(model):
            assert torch.equal(model.network(x), expected)
        assert not torch.equal(model.network(x), expected)
    assert all(module.active for module in model.modules() if isinstance(module, Gaussian))


def two_layers(built: Callable[..., Any], **knobs: Any) -> tuple[AdversarialBayesianNetwork, Defended]:
    """Logits (x - .5, 0): 2 x - 1 of the pixel, then (.5, 0) times that; no bias; sigma .1. The search lowers the pixel by .2."""
    defense = replace(built("defense", "adv_bnn"), attack=Lower(), budget=Budget("linf", 0.2), initial_sigma=0.1, **knobs)
    first, second = nn.Linear(1, 1), nn.Linear(1, 2, bias=False)
    first.weight.data.fill_(2)
    first.bias.data.fill_(-1)
    second.weight.data = torch.tensor([[0.5], [0.0]])
    return defense, defense.build(lambda: nn.Sequential(nn.Flatten(), first, second))


@pytest.mark.parametrize("kl", ["sum", "as_released"])
def test_loss_by_hand(kl: str, built: Callable[..., Any]) -> None:
    """At the means, pixel .7 is lowered to .5: logits (0, 0), loss ln 2; pixel .9 to .7: (.2, 0), loss ln(1 + e^-.2).

    Divergences with prior .5: ln 5 + (m^2 + .01) / .5 - .5 for means 2, -1, then .5, 0. Six images, weight 3.
    """
    defense, model = two_layers(built, prior_sigma=0.5, kl_weight=3, kl=kl)
    defense.prepare(model, ImageSet(torch.rand(6, 1, 1, 1), torch.zeros(6, dtype=torch.int64), torch.arange(6)), None)

    def of_mean(m: float) -> float:
        return math.log(5) + (m**2 + 0.01) / 0.5 - 0.5

    layers = [of_mean(2) + of_mean(-1), of_mean(0.5) + of_mean(0)]
    expected = (math.log(2) + math.log(1 + math.exp(-0.2))) / 2 + 3 / 6 * (sum(layers) if kl == "sum" else layers[1])
    with without_noise(model):
        assert defense.loss(model, batch_of(torch.tensor([0.7, 0.9]).view(2, 1, 1, 1))).item() == pytest.approx(expected, abs=1e-5)


def test_the_number_of_images_is_in_the_state(built: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    defense, model = two_layers(built)
    defense.prepare(model, digits[0].subset(torch.arange(30)), None)
    assert model.state_dict()["train_images"].item() == 30
    _, other = two_layers(built)
    other.load_state_dict(model.state_dict())
    assert other.get_buffer("train_images").item() == 30


def test_passes_and_draws(run_objects: Callable[..., Any]) -> None:
    """A step: ten of the search in eval mode and one in train mode. A prediction: fifty. Each draws the weights anew, once."""
    _, model, defense, _ = run_objects("defense=adv_bnn", "backbone=small_cnn")
    seen: list[bool] = []
    heads: list[Tensor] = []
    gaussian = model.get_submodule("network.backbone.head.parametrizations.weight.0")
    gaussian.register_forward_hook(lambda module, args, weight: heads.append(weight.detach()))
    model.network.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    batch = batch_of(torch.rand(2, 1, 8, 8))
    defense.loss(model.train(), batch)
    assert seen == [False] * 10 + [True]
    assert len(heads) == len({tuple(head.flatten().tolist()) for head in heads}) == 11
    seen.clear()
    heads.clear()
    with torch.no_grad():
        model.eval()(batch.x)
    assert seen == [False] * 50
    assert len(heads) == len({tuple(head.flatten().tolist()) for head in heads}) == 50


def test_the_search_is_the_papers(built: Callable[..., Any]) -> None:
    """Ten steps of .007 from the image itself, in a ball of .03125: at most .03125 from it, and as far as that."""
    defense = built("defense", "adv_bnn")
    model = defense.build(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 3)))
    batch = batch_of(torch.rand(4, 1, 4, 4) * 0.5 + 0.25)
    x_adv = defense.adversarial(model, batch.x, batch.y, batch.rng)
    assert (x_adv - batch.x).abs().max().item() == pytest.approx(0.03125, abs=1e-6)
    short = replace(defense, attack=replace(defense.attack, steps=1))
    moved = (short.adversarial(model, batch.x, batch.y, batch.rng) - batch.x).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.007))
    assert (defense.kl_weight, defense.kl, defense.prior_sigma, defense.initial_sigma) == (1, "sum", 0.05, 0.05)


def test_a_network_without_weights_is_an_error() -> None:
    with pytest.raises(LabError, match=r"^backbone: there is no layer to make Gaussian in ReLU"):
        make_gaussian(nn.ReLU(), 0.1)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("passes=0", "passes"),
        ("passes=-1", "passes"),
        ("passes=1.5", "passes"),
        ("prior_sigma=0", "prior_sigma"),
        ("prior_sigma=inf", "prior_sigma"),
        ("initial_sigma=0", "initial_sigma"),
        ("kl_weight=-1", "kl_weight"),
        ("kl=mean", "kl"),
        ("budget.eps=-1", r"budget\.eps"),
        ("attack.steps=0", r"attack\.steps"),
    ],
)
def test_a_wrong_knob_is_named(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: expected .*got "):
        built("defense", "adv_bnn", f"defense.{override}")
