"""Fronts, replaced layers, freezing, and the fast copy that attacks differentiate."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.defenses.gaussian_augmentation import BoundedReLU
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended, cross_entropy, frozen, replace_modules
from robustbench_lab.models.fast_copy import FastCopy
from robustbench_lab.models.front import Front
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.training.loop import fit


class Rounding(Front):
    """Two grey levels; the surrogate is the square, whose slope is 2 x."""

    def transform(self, x: Tensor) -> Tensor:
        return x.round()

    def surrogate(self, x: Tensor) -> Tensor:
        return x.square()


class LearnedScale(Front):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class Net(nn.Module):
    """Two convolutions, each followed by BatchNorm; `bias` as VGG has it."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1, bias=bias), nn.BatchNorm2d(5), nn.ReLU(),
            nn.Conv2d(5, 6, 3, stride=2, bias=bias), nn.BatchNorm2d(6, eps=0.01), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def lived_in(network: nn.Module) -> Defended:
    """Weights and BatchNorm statistics far from their first values."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.2, 3)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.normal_(module.bias)
    return Defended(Classifier(Normalise([0.4, 0.6], [0.2, 0.3]), network))


def images(n: int = 6) -> Tensor:
    return torch.rand(n, 2, 5, 5, generator=torch.Generator().manual_seed(1))


def output_and_gradient(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    logits = model(x)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), x)[0]


def assert_same_function(model: Defended, x: Tensor) -> None:
    """What `frozen` hands out computes the plain eval-mode model, and its gradient."""
    with frozen(model) as fast:
        assert fast is model.fast_copy
        found, gradient = output_and_gradient(fast, x)
    was_training = model.training
    expected, expected_gradient = output_and_gradient(model.eval(), x)
    model.train(was_training)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


# Pieces


def test_front_is_its_transform_forward_and_its_surrogate_backward() -> None:
    x = torch.tensor([0.2, 0.6, 0.9], requires_grad=True)
    out = Rounding()(x)
    assert out.tolist() == [0, 1, 1]
    assert torch.autograd.grad((out * torch.tensor([1.0, 10.0, 100.0])).sum(), x)[0].tolist() == pytest.approx([0.4, 12, 180])
    assert not Rounding().learned
    assert LearnedScale().learned


def test_the_default_surrogate_is_the_identity() -> None:
    class Half(Front):
        def transform(self, x: Tensor) -> Tensor:
            return x / 2

    x = torch.tensor([0.2, 0.6], requires_grad=True)
    out = Half()(x)
    assert out.tolist() == pytest.approx([0.1, 0.3])
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [1, 1]
    with pytest.raises(TypeError, match="Front does not define transform"):
        Front()(x)


def test_a_transform_that_works_in_place_or_without_gradient_leaves_the_image_alone() -> None:
    class Numpy(Front):
        def transform(self, x: Tensor) -> Tensor:
            return torch.from_numpy(x.numpy().copy() > 0.5).float()

    x = torch.tensor([0.2, 0.6], requires_grad=True)
    assert torch.autograd.grad(Numpy()(x).sum(), x)[0].tolist() == [1, 1]
    assert x.tolist() == pytest.approx([0.2, 0.6])


def test_bounded_relu_by_hand() -> None:
    x = torch.tensor([-3.0, -0.1, 0.2, 0.99, 1.01, 7.0], requires_grad=True)
    out = BoundedReLU(1.0)(x)
    assert out.tolist() == pytest.approx([0, 0, 0.2, 0.99, 1, 1])
    assert torch.autograd.grad(out.sum(), x)[0].tolist() == [0, 0, 1, 1, 0, 0]
    assert BoundedReLU(6.0)(torch.tensor([5.0, 8.0])).tolist() == [5, 6]


def test_replace_modules() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Tanh())
    seen: list[nn.Module] = []
    old = [network[0], network.get_submodule("1.1")]
    assert replace_modules(network, nn.ReLU, lambda module: seen.append(module) or BoundedReLU(2.0)) == 2  # type: ignore[func-returns-value]
    assert seen == old
    assert [type(module).__name__ for module in (network[0], network.get_submodule("1.1"), network[2])] == [
        "BoundedReLU",
        "BoundedReLU",
        "Tanh",
    ]
    with pytest.raises(LabError, match=r"^backbone: there is no ReLU to replace in Sequential"):
        replace_modules(network, nn.ReLU, lambda _: BoundedReLU(1.0))


def test_a_module_that_sits_in_two_places_is_replaced_in_both() -> None:
    shared = nn.ReLU()
    network = nn.Sequential(shared, nn.Linear(2, 2), shared)
    assert replace_modules(network, nn.ReLU, lambda _: BoundedReLU(1.0)) == 1
    assert not any(isinstance(module, nn.ReLU) for module in network)
    assert network[0] is network[2]  # still one module


# Frozen


@pytest.mark.parametrize("fails", [False, True])
def test_frozen_restores_every_mode_and_flag(fails: bool) -> None:
    model = lived_in(Net()).train()
    model.get_submodule("network.backbone.body.1").eval()
    model.get_parameter("network.backbone.head.bias").requires_grad_(False)
    modes = [module.training for module in model.modules()]
    flags = [parameter.requires_grad for parameter in model.parameters()]
    buffers = [buffer.clone() for buffer in model.buffers()]

    def attack() -> None:
        with frozen(model) as target:
            assert target is model
            assert not any(module.training for module in model.modules())
            assert not any(parameter.requires_grad for parameter in model.parameters())
            target(images())
            if fails:
                raise KeyError("the attack fails")

    if fails:
        with pytest.raises(KeyError):
            attack()
    else:
        attack()
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))


# Fast copy


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_fast_copy_is_the_plain_model(bias: bool, channels_last: bool) -> None:
    model, x = lived_in(Net(bias)).train(), images()
    model.attach_fast_copy(channels_last=channels_last)
    assert len(model.fast_copy.pairs) == 2
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.fast_copy.modules())
    assert_same_function(model, x)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):  # weights and statistics move on, and so does the copy
        cross_entropy(model(x), torch.arange(6) % 4).mean().backward()
        optimizer.step()
        assert_same_function(model, x)
    assert model.training


@pytest.mark.parametrize("backbone", ["small_resnet", "small_cnn", "vgg19", "resnet18", "mlp"])
def test_fast_copy_of_backbones(backbone: str, run_objects: Callable) -> None:
    dataset = "cifar10" if backbone in ("vgg19", "resnet18") else "digits"
    defense = "fm" if backbone in ("small_resnet", "vgg19") else "standard"
    model = run_objects(f"dataset={dataset}", f"backbone={backbone}", f"defense={defense}")[1]
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.25)  # type: ignore[arg-type]
    model.attach_fast_copy()
    x = torch.rand(2, 3, 32, 32) if dataset == "cifar10" else torch.rand(2, 1, 8, 8)
    with frozen(model) as fast:
        found = fast(x)
    expected = model.eval()(x).detach()
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert fast.own_loss is model.own_loss


def test_fast_copy_is_no_part_of_the_model() -> None:
    model = lived_in(Net())
    names, parameters, modules = set(model.state_dict()), len(list(model.parameters())), len(list(model.modules()))
    model.attach_fast_copy()
    assert set(model.state_dict()) == names
    assert len(list(model.parameters())) == parameters
    assert len(list(model.modules())) == modules
    with frozen(model) as fast:
        assert not any(parameter.requires_grad for parameter in fast.parameters())
        assert not any(module.training for module in fast.get_submodule("graph").modules())
        assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in model.parameters()}
    assert all(parameter.requires_grad for parameter in model.parameters())


class Branching(nn.Module):
    """Control flow that looks at the data: it cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :4]
        return flat if flat.sum() > 0 else -flat


@pytest.mark.parametrize(
    "model",
    [
        Defended(Branching()),
        Defended(Net(), [Rounding()]),
        Defended(Net(), passes=2),
        Defended(Net(), stochastic=True),
    ],
    ids=["untraceable", "front", "passes", "stochastic"],
)
def test_what_cannot_be_copied_stays_plain(model: Defended) -> None:
    model.attach_fast_copy()
    with frozen(model) as target:
        assert target is model


class SharedConvolution(nn.Module):
    """One convolution used with a BatchNorm and without: it must not be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.conv(x)).flatten(1)


class OtherNorm(nn.Module):
    """BatchNorm without weights, or without running statistics."""

    def __init__(self, **knobs: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2, **knobs)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).flatten(1)


@pytest.mark.parametrize(
    "network",
    [SharedConvolution(), OtherNorm(affine=False), OtherNorm(track_running_stats=False)],
    ids=["shared convolution", "no weights", "no statistics"],
)
def test_a_norm_that_cannot_be_folded_stays(network: nn.Module) -> None:
    model = lived_in(network)
    model.attach_fast_copy()
    assert_same_function(model, images())


def test_precision_of_the_copy_is_its_own() -> None:
    """bf16 rounds to 8 bits; fp32 does not, even inside a training pass that does."""
    model, x = lived_in(Net()).eval(), images()
    expected = model(x)
    error = {}
    for precision in ("fp32", "bf16"):
        model.attach_fast_copy(precision)
        with torch.autocast("cpu", torch.bfloat16), frozen(model) as fast:
            found = fast(x)
        assert found.dtype == torch.float32
        error[precision] = float((found - expected).detach().abs().max() / expected.detach().abs().max())
    assert error["fp32"] < 1e-5
    assert 1e-4 < error["bf16"] < 0.1


@pytest.mark.parametrize("around", ["fp32", "bf16"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("defense", ["pni", "learn2perturb", "adv_bnn", "rse"])
def test_a_search_without_a_copy_has_the_precision_of_searches(defense: str, precision: str, around: str, run_objects: Callable) -> None:
    """Within training; whatever the pass around it has, which goes on with its own. An evaluation searches in full precision."""
    model = run_objects(f"defense={defense}", "backbone=small_resnet")[1]
    model.attach_fast_copy(precision)
    assert model.fast_copy is None
    x = torch.rand(2, 1, 8, 8)
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16}
    for plain in (model, model.one_draw()):
        with torch.autocast("cpu", torch.bfloat16, enabled=around == "bf16"):
            with frozen(plain.train()) as target:
                assert target.network(x).dtype == expected[precision]
            assert plain.network(x).dtype == expected[around]
            with frozen(plain, fast=False) as target:
                assert target.network(x).dtype == expected[around]
        with frozen(plain.eval()) as target:
            assert target.network(x).dtype == torch.float32


def test_a_search_sees_the_precision_that_the_recipe_names(run_objects: Callable, digits: tuple) -> None:
    """PNI, from the recipe to the attack: training in bf16, searches in float32."""
    words = ["defense=pni", "defense.start_epoch=0", "defense.attack.steps=1", "backbone=small_cnn", "training.epochs=1"]
    _, model, defense, recipe = run_objects(*words, "training.precision=bf16", "training.attack_precision=fp32")
    seen: dict[bool, set[torch.dtype]] = {False: set(), True: set()}
    model.network.register_forward_hook(lambda network, inputs, logits: seen[network.training].add(logits.dtype))
    fit(defense, model, digits[0].subset(torch.arange(20)), replace(recipe, batch_size=20), seed=0)
    assert seen == {False: {torch.float32}, True: {torch.bfloat16}}


# Defended


def test_several_passes_average_probabilities() -> None:
    """By hand: (3/4, 1/4) and (1/4, 3/4) and (7/8, 1/8) average to (15/24, 9/24)."""

    class Scripted(nn.Module):
        script = torch.tensor([[3.0, 1.0], [1.0, 3.0], [7.0, 1.0]]).log() + 5
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.script[self.calls - 1].expand(len(x), 2)

    logits = Defended(Scripted(), passes=3)(torch.rand(2, 1, 1, 1))
    expected = torch.tensor([[15 / 24, 9 / 24]] * 2)
    torch.testing.assert_close(logits.softmax(1), expected)
    assert cross_entropy(logits, torch.tensor([0, 1])).tolist() == pytest.approx([-math.log(15 / 24), -math.log(9 / 24)])
    assert Defended(Scripted())(torch.rand(1, 1, 1, 1)).tolist() == Scripted.script[:1].tolist()  # one pass: the network's own logits


def test_without_fixed_fronts_keeps_the_learned_ones_and_shares_their_weights() -> None:
    learned = LearnedScale()
    model = Defended(nn.Flatten(), [Rounding(), learned], passes=2, stochastic=True, own_loss=lambda logits, y: logits[:, 0])
    view = model.without_fixed_fronts()
    assert list(view.fronts) == [learned]
    assert view.network is model.network
    assert (view.passes, view.stochastic, view.own_loss) == (2, True, model.own_loss)
    x = torch.full((1, 1, 1, 2), 0.6)
    one = Defended(nn.Flatten(), [Rounding(), learned])
    assert one(x).tolist() == [[2, 2]]  # fronts in order
    assert one.without_fixed_fronts()(x).tolist() == [pytest.approx([1.2, 1.2])]
    assert [tag for tag, _ in one.named_parameters()] == ["fronts.1.scale"]


def test_fast_copy_carries_the_own_loss() -> None:
    model = Defended(Net(), own_loss=lambda logits, y: logits[:, 0])
    fast = FastCopy.of(model.network, model.own_loss, "fp32", False, False)
    assert fast is not None
    assert fast.own_loss is model.own_loss
