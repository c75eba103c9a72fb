"""The networks of Deep Defense: to the last parameter, layer by layer, with the initial weights of the framework that they are from."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import models

from robustbench_lab.backbones.alexnet import AlexNet
from robustbench_lab.backbones.base import Backbone
from robustbench_lab.backbones.deep_defense import DeepDefenseConvNet, DeepDefenseLeNet, halving
from robustbench_lab.backbones.mlp import MLP
from robustbench_lab.backbones.nin import NIN
from robustbench_lab.backbones.resnet18 import ResNet18ImageNet
from robustbench_lab.backbones.resnet50 import ResNet50
from robustbench_lab.errors import LabError
from robustbench_lab.settings.identity import fingerprint, run_at_words

Built = Callable[..., Backbone]

IMAGENET = ("dataset=image_folder", "dataset.classes=1000")


@pytest.mark.parametrize(
    ("name", "words", "count"),
    [
        ("deep_defense_mlp", ["dataset=mnist"], 469_160),
        ("deep_defense_lenet", ["dataset=mnist"], 431_080),
        ("deep_defense_convnet", ["dataset=cifar10"], 145_578),
        ("deep_defense_convnet", ["dataset=cifar10", "backbone.pool=3"], 145_578),
        ("nin", ["dataset=cifar10"], 966_986),
        ("alexnet", IMAGENET, 61_100_840),  # torchvision's documentation
        ("resnet18_imagenet", IMAGENET, 11_689_512),
    ],
)
def test_parameters(name: str, words: list[str], count: int, built: Built) -> None:
    with torch.device("meta"):
        network = built("backbone", name, *words)
    assert sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad) == count


def lived_in(network: Backbone) -> Backbone:
    """Weights that let something through, and biases that are not zero."""
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5)
    return network.eval()


def layer(network: Backbone, name: str) -> tuple[Tensor, Tensor]:
    return network.get_parameter(f"{name}.weight"), network.get_parameter(f"{name}.bias")


def test_lenet_layer_by_layer(built: Built) -> None:
    """ZiangYan/deepdefense.pytorch, models/mnist.py: its only ReLU is that of the hidden linear layer."""
    network = lived_in(built("backbone", "deep_defense_lenet", "dataset=mnist"))
    x = torch.randn(3, 1, 28, 28)
    maps = F.max_pool2d(F.conv2d(x, *layer(network, "body.stage1.conv")), 2)
    maps = F.max_pool2d(F.conv2d(maps, *layer(network, "body.stage2.conv")), 2)
    assert maps.shape == (3, 50, 4, 4)
    hidden = F.linear(maps.flatten(1), *layer(network, "pool.linear")).relu()
    torch.testing.assert_close(network(x), F.linear(hidden, *layer(network, "head")))


def test_convnet_layer_by_layer(built: Built) -> None:
    """ZiangYan/deepdefense.pytorch, models/cifar10.py: the first pool stands before its ReLU; the head is a 1x1 convolution there."""
    network = lived_in(built("backbone", "deep_defense_convnet", "dataset=cifar10"))
    x = torch.randn(3, 3, 32, 32)
    maps = F.max_pool2d(F.conv2d(x, *layer(network, "body.stage1.conv"), padding=2), 2).relu()
    maps = F.avg_pool2d(F.conv2d(maps, *layer(network, "body.stage2.conv"), padding=2).relu(), 2)
    maps = F.avg_pool2d(F.conv2d(maps, *layer(network, "body.stage3.conv"), padding=2).relu(), 2)
    maps = F.conv2d(maps, *layer(network, "body.stage4.conv")).relu()
    weight, bias = layer(network, "head")
    torch.testing.assert_close(network(x), F.conv2d(maps, weight[:, :, None, None], bias).flatten(1))


def test_the_pools_that_overlap_are_those_of_matconvnet() -> None:
    """pool [3 3], stride 2, pad [0 1 0 1]: a row and a column behind the last, which count neither for a maximum nor for a mean."""
    x = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]]).reshape(1, 1, 4, 4)
    assert halving(nn.MaxPool2d, 3)(-x).flatten().tolist() == [-1, -3, -9, -11]
    assert halving(nn.AvgPool2d, 3)(x).flatten().tolist() == [6, 7.5, 12, 13.5]  # of 9, 6, 6 and 4 pixels
    for size in range(2, 12):
        assert halving(nn.MaxPool2d, 3)(torch.zeros(1, 1, size, size)).shape[-1] == (size + 1 - 3) // 2 + 1 == size // 2


@pytest.mark.parametrize("size", [32, 40])
@pytest.mark.parametrize("pool", [2, 3])
def test_convnet_on_larger_images(size: int, pool: int) -> None:
    network = DeepDefenseConvNet(10, 3, size, pool=pool, first_weight_std=0.01, weight_std=0.05)
    assert network(torch.rand(1, 3, size, size)).shape == (1, 10)


@pytest.mark.parametrize(("pool", "sides"), [(2, [16, 8, 8]), (3, [15, 7, 7])])
def test_nin_is_the_published_formulation(pool: int, sides: list[int], built: Built) -> None:
    """A last 1x1 convolution to the classes, then the mean of its maps, where ours has the mean first."""
    network = lived_in(built("backbone", "nin", "dataset=cifar10", f"backbone.pool={pool}"))
    x = torch.randn(2, 3, 32, 32)
    assert [maps.shape[-1] for maps in network.stages(x).values()] == sides
    maps = x
    for stage, kernels, down in ((1, (5, 1, 1), F.max_pool2d), (2, (5, 1, 1), F.avg_pool2d), (3, (3, 1), None)):
        for number, kernel in enumerate(kernels, start=1):
            maps = F.conv2d(maps, *layer(network, f"body.stage{stage}.conv{number}"), padding=kernel // 2).relu()
        maps = down(maps, pool, stride=2) if down else maps
    weight, bias = layer(network, "head")
    logits = F.avg_pool2d(F.conv2d(maps, weight[:, :, None, None], bias), sides[-1]).flatten(1)
    torch.testing.assert_close(network(x), logits)


def test_nin_has_dropout_behind_its_first_two_stages(built: Built) -> None:
    network = built("backbone", "nin", "dataset=cifar10")
    dropouts = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert dropouts == {"body.stage1.dropout": 0.5, "body.stage2.dropout": 0.5}
    assert [list(stage._modules)[-2:] for stage in list(network.body)[:2]] == [["maximum", "dropout"], ["average", "dropout"]]


# Initial weights


def fan_in(parameter: Tensor) -> int:
    return parameter[0].numel()


@pytest.mark.parametrize(
    ("name", "dataset", "std_of"),
    [
        ("deep_defense_mlp", "mnist", lambda name, weight: 0.01),
        ("deep_defense_lenet", "mnist", lambda name, weight: 0.01),
        ("deep_defense_convnet", "cifar10", lambda name, weight: 0.01 if "stage1" in name else 0.05),
        ("nin", "cifar10", lambda name, weight: (2 / fan_in(weight)) ** 0.5 * (0.1 if "head" in name else 1)),
    ],
)
def test_initial_weights_of_matconvnet(name: str, dataset: str, std_of: Callable[[str, Tensor], float], built: Built) -> None:
    """Within five deviations of what so many normal draws have."""
    torch.manual_seed(3)
    network = built("backbone", name, f"dataset={dataset}")
    for path, parameter in network.named_parameters():
        if path.endswith("bias"):
            assert not parameter.any(), path
            continue
        std, n = std_of(path, parameter), parameter.numel()
        assert parameter.std().item() == pytest.approx(std, rel=5 / (2 * n) ** 0.5), path
        assert abs(parameter.mean().item()) < 5 * std / n**0.5, path
        share = (parameter.abs() < std).float().mean().item()  # .683 of a normal distribution, .577 of a uniform one
        assert share == pytest.approx(0.683, abs=5 * (0.683 * 0.317 / n) ** 0.5), path
    torch.manual_seed(3)
    again = built("backbone", name, f"dataset={dataset}")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    assert not torch.equal(built("backbone", name, f"dataset={dataset}").head.weight, network.head.weight)


def test_without_a_deviation_the_weights_are_torchs() -> None:
    torch.manual_seed(0)
    mlp = MLP(10, 1, 8, hidden=[5])
    torch.manual_seed(0)
    first, head = nn.Linear(64, 5), nn.Linear(5, 10)
    assert torch.equal(mlp.get_parameter("body.hidden1.linear.weight"), first.weight)
    assert torch.equal(mlp.head.bias, head.bias)
    lenet = DeepDefenseLeNet(10, 1, 28, weight_std=None)
    assert lenet.head.bias.any()
    assert lenet.head.weight.abs().max().item() <= 500**-0.5


def test_the_knob_renames_no_run_of_the_mlp() -> None:
    run = run_at_words(["backbone=mlp"])
    content = run.content
    assert content["backbone"].pop("weight_std") is None
    assert fingerprint(content) == run.fingerprint
    assert run_at_words(["backbone=deep_defense_mlp"]).fingerprint != run.fingerprint


# torchvision's


@pytest.fixture
def torchvision_weights(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    return importlib.import_module("torchvision_weights")


@pytest.mark.parametrize(
    ("theirs", "ours", "size"),
    [
        (models.alexnet, lambda: AlexNet(3, 3, 80, dropout=0.5), 80),
        (models.resnet18, lambda: ResNet18ImageNet(3, 3, 72), 72),
        (models.resnet50, lambda: ResNet50(3, 3, 72, stem="7x7"), 72),
    ],
)
def test_they_are_torchvisions(theirs: Any, ours: Callable[[], Backbone], size: int, torchvision_weights: Any) -> None:
    """With its weights under our names, in the same order; BatchNorm with statistics that are not the identity."""
    original = theirs(num_classes=3)
    for module in original.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    with torch.device("meta"):
        network = ours()
    network.load_state_dict(torchvision_weights.renamed(original.state_dict(), network.state_dict()), assign=True)
    x = torch.rand(2, 3, size, size)
    torch.testing.assert_close(network.eval()(x), original.eval()(x))
    dropouts = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [module.p for module in original.modules() if isinstance(module, nn.Dropout)]


def test_initial_weights_of_the_resnet() -> None:
    """torchvision's: variance 2 / fan-out for convolutions."""
    network = ResNet18ImageNet(10, 3, 32)
    stem = network.get_parameter("body.stem.conv.weight")
    assert stem.std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.05)
    projection = network.get_parameter("body.stage2.block1.shortcut.conv.weight")
    assert projection.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.05)


def test_published_weights_are_written_under_our_names(torchvision_weights: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some published files are older than BatchNorm's count of batches."""
    published = models.resnet18().state_dict()
    asked: list[dict[str, Any]] = []

    def download(weights: object, **how: Any) -> dict[str, Tensor]:
        assert weights is models.ResNet18_Weights.IMAGENET1K_V1
        asked.append(how)
        return {name: tensor for name, tensor in published.items() if "num_batches" not in name}

    monkeypatch.setattr(models.WeightsEnum, "get_state_dict", download)
    torchvision_weights.main("resnet18_imagenet", tmp_path / "resnet18.safetensors")
    written = load_file(tmp_path / "resnet18.safetensors")
    assert asked == [{"check_hash": True, "weights_only": True}], "a digest that is checked, and no pickle that could execute anything"
    assert torch.equal(written["head.weight"], published["fc.weight"])
    assert torch.equal(written["body.stage3.block1.shortcut.norm.running_var"], published["layer3.0.downsample.1.running_var"])
    assert written.keys() == ResNet18ImageNet(1000, 3, 224).state_dict().keys()


def test_other_weights_are_not_renamed(torchvision_weights: Any) -> None:
    a, b = torch.zeros(2), torch.zeros(3)
    for theirs, ours in (({"x.bias": a}, {"y.bias": b}), ({"x.weight": a}, {"y.bias": a}), ({"x.bias": a}, {"y.bias": a, "z.bias": a})):
        with pytest.raises(LabError, match=r"^expected "):
            torchvision_weights.renamed(theirs, ours)


# Errors


def test_wrong_knobs() -> None:
    convnet = {"pool": 2, "first_weight_std": 0.01, "weight_std": 0.05}
    nin = {"pool": 2, "dropout": 0.5, "head_scale": 0.1}
    for network, right, key, wrong in (
        (DeepDefenseConvNet, convnet, "pool", 4),
        (DeepDefenseConvNet, convnet, "weight_std", 0),
        (DeepDefenseConvNet, convnet, "first_weight_std", -0.01),
        (NIN, nin, "pool", True),
        (NIN, nin, "dropout", 1),
        (NIN, nin, "head_scale", -1),
        (AlexNet, {"dropout": 0.5}, "dropout", 1),
        (DeepDefenseLeNet, {"weight_std": 0.01}, "weight_std", 0),
        (MLP, {"hidden": [3], "weight_std": 0.01}, "weight_std", float("nan")),
    ):
        with pytest.raises(LabError, match=rf"^backbone\.{key}: expected "):
            network(2, 3, 64, **(right | {key: wrong}))


@pytest.mark.parametrize(
    ("network", "smallest", "knobs"),
    [
        (DeepDefenseLeNet, 16, {"weight_std": 0.01}),
        (DeepDefenseConvNet, 32, {"pool": 2, "first_weight_std": 0.01, "weight_std": 0.05}),
        (NIN, 4, {"pool": 2, "dropout": 0.5, "head_scale": 0.1}),
        (NIN, 7, {"pool": 3, "dropout": 0.5, "head_scale": 0.1}),
        (AlexNet, 63, {"dropout": 0.5}),
    ],
)
def test_smallest_images(network: Any, smallest: int, knobs: dict[str, Any]) -> None:
    with torch.device("meta"):
        assert network(2, 1, smallest, **knobs)(torch.empty(1, 1, smallest, smallest)).shape == (1, 2)
    with pytest.raises(LabError, match=rf"^dataset\.size: .* {smallest}x{smallest} pixels, got {smallest - 1}x{smallest - 1}"):
        network(2, 1, smallest - 1, **knobs)
