"""Learn2Perturb against equations worked out by hand."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch
from robustbench_lab.defenses.learn2perturb import NoisyActivation
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier
from robustbench_lab.models.noise import noise_layers, without_noise
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.training.loop import fit, passes_of
from robustbench_lab.training.state import State

Made = Callable[..., Any]


@pytest.fixture
def batch(digits: tuple[ImageSet, ImageSet]) -> Batch:
    x, y, ids = next(digits[0].batches(torch.arange(16), 16))
    return Batch(x, y, ids, torch.zeros_like(ids), 10, ImageRandom.of(ids, 0), ImageRandom.of(ids, 1))


@pytest.fixture
def made(run_objects: Callable[..., Any]) -> Made:
    """The model and the defense on digits, with some knobs changed."""
    return lambda *words, backbone="small_resnet": run_objects("defense=learn2perturb", f"backbone={backbone}", *words)[1:3]


def maps(model: nn.Module) -> list[Tensor]:
    return [scale for layer in noise_layers(model) for scale in layer.scales()]


@pytest.mark.parametrize(("epoch", "tau"), [(10, 1), (11, 3 / 2), (12, 11 / 6), (13, 25 / 12)])
def test_the_regulariser_by_hand(epoch: int, tau: float, made: Made, batch: Batch) -> None:
    """-(gamma / tau) sum sqrt(sigma): the root of .25 is .5; 4 maps of 16x8x8, 32x4x4, ...; a step raises sigma by
    lr * gamma / tau / (2 * .5), whatever the map's size, and no other parameter."""
    model, defense = made("defense.gamma=0.1")
    n = 2 * 16 * 8 * 8 + 32 * 4 * 4 + 64 * 2 * 2  # stem and three blocks
    assert sum(sigma.numel() for sigma in maps(model)) == n
    noise, _ = defense.players(model)
    loss = noise.loss(model, replace(batch, epoch=epoch))
    assert loss.item() == pytest.approx(-0.1 / tau * n * 0.5, rel=1e-5)
    optimizer = torch.optim.SGD(noise.parameters, lr=0.2, weight_decay=0.5)
    loss.backward()
    optimizer.step()
    assert all(torch.allclose(sigma, torch.tensor(0.25 + 0.2 * 0.1 / tau)) for sigma in maps(model))
    assert sum(parameter.grad is not None for parameter in model.parameters()) == len(maps(model))


def test_before_the_noise_nothing_moves_sigma(made: Made) -> None:
    model, defense = made()
    players = defense.players(model)
    assert [[player.name for player in movers] for movers in passes_of(players, 9)] == [["model"]]
    assert [[player.name for player in movers] for movers in passes_of(players, 10)] == [["noise", "model"]]


def test_the_players(made: Made) -> None:
    """Sigma's turn first, then weights and sigma together; sigma without weight decay in both."""
    model, defense = made()
    noise, both = defense.players(model)
    assert (noise.name, both.name) == ("noise", "model")
    sigmas = {id(sigma) for sigma in maps(model)}
    for player, expected in ((noise, sigmas), (both, {id(p) for p in model.parameters()})):
        groups = torch.optim.SGD(player.parameters, lr=0.1, weight_decay=3e-4).param_groups
        assert {id(p) for group in groups for p in group["params"]} == expected
        assert all(group["weight_decay"] == (0 if id(p) in sigmas else 3e-4) for group in groups for p in group["params"])


def test_sigma_is_cut_after_a_step(made: Made) -> None:
    model, defense = made()
    first = maps(model)[0]
    first.data.flatten()[:3] = torch.tensor([-1.0, 0.005, 0.02])
    defense.after_step(model)
    assert first.flatten()[:4].tolist() == pytest.approx([0.01, 0.01, 0.02, 0.25])


@pytest.mark.parametrize(
    ("words", "noisy", "plain"),
    [
        (["backbone=small_resnet"], ["stem.relu", "stage1.block1.relu2", "stage2.block1.relu2", "stage3.block1.relu2"], 3),
        (["backbone=vgg19", "backbone.depth=11", "dataset=mnist"], None, 0),
        (["backbone=small_cnn"], None, 0),
        (["dataset=mnist", "backbone=efficient_defenses_resnet"], None, 2),
    ],
)
def test_where_the_noise_falls(words: list[str], noisy: list[str] | None, plain: int, run_objects: Callable[..., Any]) -> None:
    """Before the first activation and the last of each block; where there are no blocks, before each activation. Sigma has the shape of
    what the activation gets."""
    model = run_objects("defense=learn2perturb", *words)[1]
    kept = [module for module in model.modules() if isinstance(module, nn.ReLU)]
    layers = {
        name.removeprefix("network.backbone.body."): layer for name, layer in model.named_modules() if isinstance(layer, NoisyActivation)
    }
    assert len(kept) == plain + len(layers)  # those inside of a noise layer too
    assert noisy is None or list(layers) == noisy
    seen = []
    for layer in layers.values():
        layer.register_forward_pre_hook(lambda layer, inputs: seen.append(layer.sigma.shape == inputs[0].shape[1:]))
    size = 28 if "dataset=mnist" in words else 8
    model.eval()(torch.rand(2, 1, size, size))
    assert seen == [True] * len(layers)


def test_building_leaves_no_trace(run_objects: Callable[..., Any]) -> None:
    """The pass that finds the maps' shapes moves no statistics, no weights and no random numbers."""
    plain, model = (run_objects(*words)[1] for words in ([], ["defense=learn2perturb"]))
    assert model.training
    assert all(module.num_batches_tracked == 0 for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    found = model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in plain.state_dict().items())


@pytest.mark.parametrize("per_image", [True, False])
def test_noise_by_hand(per_image: bool) -> None:
    """sigma 1 and 3 on two features: those deviations, independent between images unless one draw serves the batch."""
    layer = NoisyActivation(nn.Identity(), torch.Size([2]), 1.0, per_image)
    layer.sigma.data = torch.tensor([1.0, 3.0])
    x = torch.tensor([[10.0, 20.0], [30.0, 40.0]])
    with torch.no_grad():
        drawn = torch.stack([layer(x) - x for _ in range(4000)])
    assert drawn.mean(dim=0).flatten().tolist() == pytest.approx([0] * 4, abs=0.2)
    assert drawn.std(dim=0).flatten().tolist() == pytest.approx([1, 3, 1, 3], rel=0.05)
    between = torch.corrcoef(drawn[:, :, 1].T)[0, 1].item()
    assert between == pytest.approx(0 if per_image else 1, abs=0.06)
    assert abs(torch.corrcoef(drawn[:, 0].T)[0, 1].item()) < 0.06


def test_the_gradient_of_sigma_by_hand() -> None:
    """y = x + sigma eta: the draw times what comes back, added over the batch."""
    layer = NoisyActivation(nn.Identity(), torch.Size([2]), 0.5, True)
    x, back = torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    torch.manual_seed(4)
    layer(x).backward(back)
    torch.manual_seed(4)
    eta = torch.randn(3, 2)
    assert layer.sigma.grad is not None
    assert layer.sigma.grad.tolist() == pytest.approx((eta * back).sum(dim=0).tolist(), rel=1e-5)


def test_noise_off_is_the_plain_network(made: Made, run_objects: Callable[..., Any], batch: Batch) -> None:
    """Bit for bit: before the noise begins, and when it is switched off; noise on, each pass differs, in either mode."""
    plain = run_objects("backbone=small_resnet")[1].eval()
    model, defense = made()
    model.eval()
    assert torch.equal(model(batch.x), plain(batch.x))
    early = defense.loss(model, replace(batch, epoch=9))
    assert torch.equal(early, nn.functional.cross_entropy(plain(batch.x), batch.y))
    defense.loss(model, batch)
    assert not torch.equal(model(batch.x), model(batch.x))
    with without_noise(model):
        assert torch.equal(model(batch.x), plain(batch.x))
    assert not torch.equal(model(batch.x), plain(batch.x))
    assert model.stochastic


def test_weights_know_whether_the_noise_has_begun(made: Made, batch: Batch) -> None:
    model, defense = made()
    for epoch in (10, 9):
        defense.loss(model, replace(batch, epoch=epoch))
        other = made("seed=1")[0]
        other.load_state_dict(model.state_dict())
        assert {layer.active for layer in noise_layers(other)} == {epoch == 10}


@pytest.mark.parametrize("epoch", [19, 20])
def test_the_task_s_loss(epoch: int, made: Made, batch: Batch, run_objects: Callable[..., Any]) -> None:
    """Without noise, that of adversarial training with the same halves and search; clean alone before epoch 20."""
    words = ["defense.noise_start_epoch=100", "defense.budget.eps=0.031"]
    model, defense = made(*words)
    loss = defense.loss(model.train(), replace(batch, epoch=epoch))
    _, other, training, _ = run_objects("defense=adversarial_training_pni", "defense.start_epoch=20", "backbone=small_resnet")
    assert loss.item() == training.loss(other.train(), replace(batch, epoch=epoch)).item()


def test_training(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    """Sigma rests in the first epoch, momentum and decay notwithstanding, then moves; a resumed run ends at the same weights."""
    words = ["defense=learn2perturb", "backbone=small_cnn", "defense.noise_start_epoch=1", "defense.start_epoch=2", "defense.sigma=0.011"]
    optimizer: Callable[..., Any] = partial(torch.optim.SGD, lr=0.5, momentum=0.9, nesterov=True, weight_decay=1e-2)
    ends: list[dict[str, Tensor]] = []
    states: list[State] = []
    for start in (0, 1):
        _, model, defense, recipe = run_objects(*words)
        recipe = replace(recipe, epochs=3, batch_size=16, optimizer=optimizer)
        fit(defense, model, digits[0].subset(torch.arange(48)), recipe, 0, states[1] if start else None, states.append)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    for epoch, state in enumerate(states[:3]):
        sigmas = torch.cat([tensor.flatten() for name, tensor in state.model.items() if name.endswith(".sigma")])
        active = {bool(tensor) for name, tensor in state.model.items() if name.endswith("_extra_state")}
        assert active == {epoch >= 1}
        if epoch == 0:
            assert (sigmas == torch.tensor(0.011)).all()
            assert "loss_noise" not in state.history[-1]
        else:
            assert sigmas.min() == torch.tensor(0.01)
            assert sigmas.max() > 0.0112
            assert state.history[-1]["loss_noise"] < 0


def test_a_network_without_relu(made: Made) -> None:
    defense = made()[1]
    with pytest.raises(LabError, match=r"^backbone: there is no ReLU to replace"):
        defense.build(lambda: Classifier(Normalise([0.5], [0.5]), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))))


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("defense.sigma=0", "sigma"),
        ("defense.sigma=0.005", "sigma"),
        ("defense.smallest_sigma=0", "smallest_sigma"),
        ("defense.gamma=-1", "gamma"),
        ("defense.per_image=1", "per_image"),
        ("defense.noise_start_epoch=-1", "noise_start_epoch"),
        ("defense.clean_weight=-1", "clean_weight"),
        ("defense.adversarial_weight=-1", "adversarial_weight"),
        ("defense.start_epoch=0.5", "start_epoch"),
    ],
)
def test_a_wrong_knob_fails_when_built(override: str, key: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense\.{key}: "):
        built("defense", "learn2perturb", override)
