"""RSE: where its noise falls and how strong it is, what a pass costs, and the plain network without noise."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.rse import Noise
from robustbench_lab.errors import LabError
from robustbench_lab.evaluation.judging import drawn
from robustbench_lab.models.defended import Defended, cross_entropy
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.randomness import ImageRandom

BACKBONES = ["resnet20 backbone.depth=8", "resnet18", "vgg19 backbone.depth=11"]


def words(backbone: str) -> tuple[str, ...]:
    return "dataset=cifar10", *f"backbone={backbone}".split()


def conv_inputs(model: Defended, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Of each convolution: what reached it, and what the layer before the noise gave, in the order of the forward pass."""
    clean: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    handles = []
    for module in model.modules():
        if isinstance(module, Noise):
            handles.append(module.register_forward_pre_hook(lambda module, args: clean.append(args[0])))
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_pre_hook(lambda module, args: pairs.append((args[0], clean.pop()))))
    with torch.no_grad():
        model.network(x)
    for handle in handles:
        handle.remove()
    assert not clean
    return pairs


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "initial"), [("rse", 0.2), ("rse_robustnet", 0.4)])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_noise_levels(backbone: str, name: str, initial: float, training: bool, run_objects: Callable[..., Any]) -> None:
    """The first convolution gets the image with noise of `initial` pixels, normalised; every other one its input with noise of .1."""
    _, model, _, _ = run_objects(*words(backbone), f"defense={name}")
    (first, image), *others = conv_inputs(model.train(training), torch.rand(4, 3, 32, 32))
    normalise = next(module for module in model.modules() if isinstance(module, Normalise))
    noise = (first * normalise.std + normalise.mean) - image
    assert noise.std().item() == pytest.approx(initial, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert len(others) == sum(isinstance(module, nn.Conv2d) for module in model.modules()) - 1 >= 6
    for came, clean in others:
        assert (came - clean).std().item() == pytest.approx(0.1, rel=0.06)
        assert (came - clean).mean().item() == pytest.approx(0, abs=0.01)
    assert sum(isinstance(module, Noise) for module in model.modules()) == len(others) + 1


def test_noise_is_gaussian_and_drawn_anew() -> None:
    noise, x = Noise(0.3), torch.zeros(10, 1, 100, 100)
    first, second = noise(x), noise(x)
    assert not torch.equal(first, second)
    assert len(first.unique(dim=0)) == 10  # each image has its own
    shares = [(first.abs() < n * 0.3).float().mean().item() for n in (1, 2, 3)]
    assert shares == pytest.approx([0.683, 0.954, 0.997], abs=0.005)
    torch.testing.assert_close(x, torch.zeros_like(x))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_without_noise_it_is_the_plain_network(backbone: str, run_objects: Callable[..., Any]) -> None:
    off = ("defense.sigma_init=0", "defense.sigma_inner=0")
    plain = run_objects(*words(backbone))[1].eval()
    model = run_objects(*words(backbone), "defense=rse", *off)[1].eval()
    noisy = run_objects(*words(backbone), "defense=rse")[1].eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        state = torch.get_rng_state()
        assert torch.equal(model(x), plain(x))
        assert torch.equal(torch.get_rng_state(), state)
        assert not torch.equal(noisy.network(x), plain(x))
    assert (model.passes, model.stochastic) == (1, False)
    assert (noisy.passes, noisy.stochastic) == (50, True)
    sizes = [sum(parameter.numel() for parameter in one.parameters()) for one in (plain, noisy)]
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("key", "other"), [("sigma_init", "sigma_inner"), ("sigma_inner", "sigma_init")])
def test_one_kind_of_noise_is_noise(key: str, other: str, run_objects: Callable[..., Any]) -> None:
    model = run_objects("backbone=small_cnn", "defense=rse", f"defense.{key}=0")[1]
    assert (model.passes, model.stochastic) == (50, True)
    assert not torch.equal(*(model.network(torch.zeros(1, 1, 8, 8)) for _ in range(2)))


def test_passes_and_loss(run_objects: Callable[..., Any]) -> None:
    """A step takes one pass, in train mode, whose cross-entropy is the loss; a prediction takes fifty."""
    _, model, defense, _ = run_objects("defense=rse", "backbone=small_cnn")
    seen: list[bool] = []
    model.network.register_forward_pre_hook(lambda module, args: seen.append(module.training))
    x, ids = torch.rand(3, 1, 8, 8), torch.arange(3)
    batch = Batch(x, ids, ids, torch.zeros_like(ids), 0, ImageRandom.of(ids, 0), ImageRandom.of(ids, 0))
    with drawn(True, 0):
        loss = defense.loss(model.train(), batch)
    assert seen == [True]
    with drawn(True, 0):
        torch.testing.assert_close(loss, cross_entropy(model.network(x), ids).mean())
    seen.clear()
    with torch.no_grad():
        model.eval()(x)
    assert seen == [False] * 50


def test_a_network_without_convolutions_is_an_error(run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^backbone: there is no Conv2d to replace"):
        run_objects("defense=rse", "backbone=mlp")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("passes=0", "passes"),
        ("passes=-1", "passes"),
        ("passes=true", "passes"),
        ("sigma_init=-0.1", "sigma_init"),
        ("sigma_init=inf", "sigma_init"),
        ("sigma_inner=-1", "sigma_inner"),
        ("sigma_inner=much", "sigma_inner"),
    ],
)
def test_a_wrong_knob_is_named(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: expected .*got "):
        built("defense", "rse", f"defense.{override}")


def test_knobs_of_the_papers(built: Callable[..., Any]) -> None:
    assert replace(built("defense", "rse"), sigma_init=0.4) == built("defense", "rse_robustnet")
