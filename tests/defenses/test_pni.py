"""Parametric noise injection against equations worked out by hand."""

import weakref
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses import pni
from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.pni import NoisyLayer, injected, std_per_image
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import frozen
from robustbench_lab.models.noise import noise_layers, normal_like, parameter_groups, without_noise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.training.loop import backward, fit
from robustbench_lab.training.state import State

NAMES = ["pni", "pni_channelwise", "pni_elementwise", "pni_input", "pni_activation_a", "pni_activation_b"]


@pytest.fixture
def batch(digits: tuple[ImageSet, ImageSet]) -> Batch:
    x, y, ids = next(digits[0].batches(torch.arange(16), 16))
    return Batch(x, y, ids, torch.zeros_like(ids), 5, ImageRandom.of(ids, 0), ImageRandom.of(ids, 1))


def linear(*weights: list[float]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights), bias=False)
    layer.weight.data = torch.tensor(weights, dtype=torch.float32)
    return layer


def test_weight_noise_has_the_weights_deviation() -> None:
    """Weights 1, 3, 5, 7: std sqrt(20 / 3); the noise is half of it, around the weights, and each weight has its own."""
    layer = NoisyLayer(linear([1, 3], [5, 7]), ["weight"], 0.5, "layer")
    with torch.no_grad():
        drawn = torch.stack([layer(torch.eye(2)).T.flatten() for _ in range(4000)])
    assert drawn.mean(dim=0).tolist() == pytest.approx([1, 3, 5, 7], abs=0.1)
    assert drawn.std(dim=0).tolist() == pytest.approx([0.5 * (20 / 3) ** 0.5] * 4, rel=0.05)
    assert (torch.corrcoef(drawn.T) - torch.eye(4)).abs().max() < 0.08


@pytest.mark.parametrize(
    ("share", "shapes"),
    [("layer", [(), ()]), ("channel", [(4, 1, 1, 1), (2, 1)]), ("element", [(4, 3, 3, 3), (2, 5)])],
)
def test_shares(share: str, shapes: list[tuple[int, ...]]) -> None:
    for layer, shape in zip([nn.Conv2d(3, 4, 3), nn.Linear(5, 2)], shapes, strict=True):
        (alpha,) = NoisyLayer(layer, ["weight"], 0.25, share).scales()
        assert alpha.shape == shape
        assert torch.equal(alpha, torch.full(shape, 0.25))


def test_gradients_by_hand() -> None:
    """y = (w + alpha eta) x: dy/dw = x alone, for neither std nor draw has a gradient, and dy/dalpha = eta x, here per output channel."""
    layer = NoisyLayer(linear([1, 3], [5, 7]), ["weight"], 0.5, "channel")
    (alpha,) = layer.scales()
    x = torch.tensor([[2.0, -1.0]])
    torch.manual_seed(3)
    layer(x).sum().backward()
    torch.manual_seed(3)
    eta = torch.randn(2, 2) * (20 / 3) ** 0.5
    weight = layer.layer.get_parameter("weight")
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[2.0, -1.0], [2.0, -1.0]]))
    assert alpha.grad is not None
    assert alpha.grad.flatten().tolist() == pytest.approx((eta @ x[0]).tolist(), rel=1e-5)


def test_activation_noise_has_each_image_s_deviation() -> None:
    """Inputs with std 1 and 10, doubled by the layer: after it the noise is .5 * 2 and .5 * 20, before it the same, through the layer."""
    images = torch.tensor([[-1.0, 0.0, 1.0], [-10.0, 0.0, 10.0]])
    doubled = linear([2, 0, 0], [0, 2, 0], [0, 0, 2])
    for place in ("output", "input"):
        layer = NoisyLayer(doubled, [place], 0.5, "layer")
        with torch.no_grad():
            drawn = torch.stack([layer(images) for _ in range(4000)])
        assert drawn.mean(dim=0).flatten().tolist() == pytest.approx((2 * images).flatten().tolist(), abs=0.6)
        assert drawn.std(dim=0).flatten().tolist() == pytest.approx([1, 1, 1, 10, 10, 10], rel=0.05)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_are_kept_and_change_no_deviation(memory_format: torch.memory_format) -> None:
    values = (torch.randn(6, 5, 12, 10) * torch.arange(6).view(6, 1, 1, 1) + 3).contiguous(memory_format=memory_format)
    noise = normal_like(values)
    assert noise.shape == values.shape
    assert noise.stride() == values.stride()
    assert abs(noise.std() - 1) < 0.05
    torch.testing.assert_close(std_per_image(values).flatten(), values.flatten(1).std(dim=1), atol=1e-2, rtol=1e-4)
    assert std_per_image(values)[1:].min() > 0.5
    assert std_per_image(values.bfloat16()).dtype == torch.bfloat16


def test_noise_before_the_layer_goes_through_it() -> None:
    """1 and 2 have std sqrt(1 / 2): two such draws, added by the layer, have std 1; after it their one sum has no deviation."""
    x, added = torch.tensor([[1.0, 2.0]]), linear([1, 1], [1, 1])
    with torch.no_grad():
        before, after = (torch.stack([NoisyLayer(added, [place], 1.0, "layer")(x) for _ in range(4000)]) for place in ("input", "output"))
    assert before.std(dim=0).flatten().tolist() == pytest.approx([1, 1], rel=0.05)
    assert torch.equal(after, torch.full_like(after, 3.0))


def test_image_noise_follows_the_normalisation(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    model = run_objects("defense=pni_input", "backbone=small_cnn")[1]
    (layer,) = noise_layers(model)
    assert layer is model.network.normalise
    image = digits[0].images[:1].float()
    image = image / image.max()
    with torch.no_grad(), without_noise(model):
        normalised = layer(image)
    with torch.no_grad():
        noise = torch.stack([layer(image) - normalised for _ in range(500)])
    assert noise.std().item() == pytest.approx(0.25 * normalised.std().item(), rel=0.02)


@pytest.mark.parametrize("backbone", ["small_resnet", "small_cnn", "vgg19", "mlp"])
def test_every_layer_is_noisy(backbone: str, run_objects: Callable[..., Any]) -> None:
    how = [f"backbone={backbone}", *(["dataset=mnist", "backbone.depth=11"] if backbone == "vgg19" else [])]
    plain, model = run_objects(*how)[1], run_objects(*how, "defense=pni")[1]
    layers = [module for module in plain.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert [type(layer.layer) for layer in noise_layers(model)] == [type(layer) for layer in layers]
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters()) + len(layers)
    assert model.stochastic


@pytest.mark.parametrize("name", NAMES)
def test_noise_off_is_the_plain_network(name: str, run_objects: Callable[..., Any], batch: Batch) -> None:
    """Bit for bit, with the weights that the seed gives to an undefended network; noise on, each pass differs, in either mode."""
    plain, model = run_objects("backbone=small_resnet")[1], run_objects("backbone=small_resnet", f"defense={name}")[1]
    for mode in (False, True):  # noise in train mode moves BatchNorm's statistics
        plain.train(mode)
        model.train(mode)
        with without_noise(model):
            assert torch.equal(model(batch.x), plain(batch.x))
        first, again = model(batch.x), model(batch.x)
        assert not torch.equal(first, again)
    with pytest.raises(RuntimeError), without_noise(model):
        raise RuntimeError
    assert all(layer.active for layer in noise_layers(model))


def test_without_noise_needs_noise(run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^model: expected layers with noise"), without_noise(run_objects()[1]):
        pass


def test_the_search_has_noise(run_objects: Callable[..., Any], batch: Batch) -> None:
    model = run_objects("defense=pni")[1]
    model.attach_fast_copy()
    with frozen(model) as target:
        assert target is model
        x = batch.x.clone().requires_grad_()
        gradients = [torch.autograd.grad(target(x).sum(), x)[0] for _ in range(2)]
    assert not torch.equal(*gradients)


@pytest.mark.parametrize("epoch", [4, 5])
def test_the_loss_is_that_of_adversarial_training(epoch: int, run_objects: Callable[..., Any], batch: Batch) -> None:
    """With noise of strength 0, the same halves, search and labels, from the sixth epoch on."""
    how = ["backbone=small_resnet", "dataset=digits"]
    losses = []
    for words in (["defense=pni", "defense.alpha=0"], ["defense=adversarial_training_pni"]):
        _, model, defense, _ = run_objects(*how, *words)
        losses.append(defense.loss(model.train(), replace(batch, epoch=epoch)).item())
    assert losses[0] == losses[1]


def test_a_step_holds_one_noisy_copy_of_a_weight(run_objects: Callable[..., Any], batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Search, clean pass and adversarial pass: the noisy copies of one before are gone when the next is drawn; the sum is the loss."""
    copies: dict[int, list[weakref.ref[Tensor]]] = {}
    most = 0

    def watched(values: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
        nonlocal most
        noisy = injected(values, alpha, std)
        copies.setdefault(id(values), []).append(weakref.ref(noisy))
        most = max(most, sum(copy() is not None for copy in copies[id(values)]))
        return noisy

    _, model, defense, _ = run_objects("backbone=small_resnet", "dataset=digits", "defense=pni")
    (player,) = defense.players(model.train())
    other = deepcopy(model)  # a pass moves BatchNorm's statistics, which the search looks at
    torch.manual_seed(0)
    expected = defense.loss(other, batch)
    expected.backward()
    monkeypatch.setattr(pni, "injected", watched)
    torch.manual_seed(0)
    loss = backward(player, model, batch, "fp32")
    assert most == 1
    assert len(next(iter(copies.values()))) == defense.attack.steps + 3  # and the pass for the labels
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close([p.grad for p in model.parameters()], [p.grad for p in other.parameters()])


def test_alpha_has_no_weight_decay(run_objects: Callable[..., Any]) -> None:
    """Where nothing has a slope, decay .5 at rate .1 takes 5 % of each weight, and nothing of alpha."""
    model = run_objects("defense=pni")[1]
    (player,) = run_objects("defense=pni")[2].players(model)
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(player.parameters, lr=0.1, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert any("alpha" in path for path in before)
    for path, parameter in model.named_parameters():
        assert torch.equal(parameter, before[path]) if "alpha" in path else torch.allclose(parameter, 0.95 * before[path]), path


def test_a_resumed_training_ends_at_the_same_weights(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    """Its optimiser has two groups, and alpha moves."""
    words = ["defense=pni", "defense.start_epoch=1", "backbone=small_cnn"]
    optimizer: Callable[..., Any] = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-2)
    ends: list[dict[str, Tensor]] = []
    states: list[State] = []
    for start in (0, 1):
        _, model, defense, recipe = run_objects(*words)
        recipe = replace(recipe, epochs=2, batch_size=16, optimizer=optimizer)
        fit(defense, model, digits[0].subset(torch.arange(32)), recipe, 0, states[0] if start else None, states.append)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    alphas = [tensor for name, tensor in ends[0].items() if ".alpha." in name]
    assert alphas
    assert all(alpha != 0.25 for alpha in alphas)


def test_groups_hold_every_parameter_once(run_objects: Callable[..., Any]) -> None:
    model = run_objects("defense=pni_elementwise")[1]
    weights, scales = parameter_groups(model)
    assert {id(p) for p in weights["params"]} | {id(p) for p in scales["params"]} == {id(p) for p in model.parameters()}
    assert len(weights["params"]) + len(scales["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("defense.places=[]", "places"),
        ("defense.places=weight", "places"),
        ("defense.places=[bias]", "places"),
        ("defense.alpha=-1", "alpha"),
        ("defense.alpha=inf", "alpha"),
        ("defense.share=row", "share"),
        ("defense.clean_weight=-1", "clean_weight"),
        ("defense.adversarial_weight=x", "adversarial_weight"),
        ("defense.start_epoch=-1", "start_epoch"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: "):
        built("defense", "pni", override)


def test_channels_of_activations(built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^defense\.share: expected layer"):
        built("defense", "pni_activation_a", "defense.share=channel")
