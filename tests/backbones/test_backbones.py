"""Every network keeps the backbone contract, and is the published one to the last parameter."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import InstantiationException
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.backbones.efficient_defenses import EfficientDefensesCifarCNN, EfficientDefensesCNN, EfficientDefensesResNet
from robustbench_lab.backbones.mlp import MLP
from robustbench_lab.backbones.resnet50 import ResNet50
from robustbench_lab.backbones.resnet_v1 import PaddedShortcut, ResNetV1
from robustbench_lab.backbones.small_cnn import SmallCNN
from robustbench_lab.backbones.vgg import VGG
from robustbench_lab.contract import Clause, clauses
from robustbench_lab.errors import LabError

CONF = Path(__file__).resolve().parents[2] / "conf"
OTHERS = {"callable", "pixelcnn", "pixelcnn_small"}  # test_callable.py, and densities: test_pixelcnn.py
NAMES = sorted({path.stem for path in (CONF / "backbone").glob("*.yaml")} - OTHERS)
USUAL_SIZE = 32
SIZES = {"alexnet": 64}  # of networks that need larger images than the usual ones
TOO_SMALL = {  # images that a network must refuse
    "vgg19": {8},
    "efficient_defenses_cnn": {8},
    "efficient_defenses_resnet": {8},
    "efficient_defenses_resnet_released": {8},
    "deep_defense_lenet": {8},
    "deep_defense_convnet": {8, 28},
    "alexnet": {8, 28, 32},
}


@pytest.fixture(scope="module", autouse=True)
def configs() -> Iterator[None]:
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(version_base=None, config_dir=str(CONF)):
        yield


def build(name: str, classes: int = 10, channels: int = 3, size: int | None = None) -> Backbone:
    size = SIZES.get(name, USUAL_SIZE) if size is None else size
    dataset = f"+dataset={{classes:{classes},channels:{channels},size:{size}}}"
    config = hydra.compose(overrides=[f"+backbone={name}", dataset]).backbone
    try:
        return hydra.utils.instantiate(config)
    except InstantiationException as error:  # Hydra wraps whatever a constructor raises
        raise (error.__cause__ or error) from None


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


# Contract


WORDS = {  # of choices that say something only with them, or are large
    "callable": ["backbone.call=torchvision.models.resnet18", "backbone.arguments={num_classes: ${dataset.classes}}"],
    "pixelcnn": ["backbone.filters=16", "backbone.blocks=2"],
    "pixelcnn_small": [],
}


@pytest.mark.parametrize(
    "clause",
    [pytest.param(clause, id=f"{name}-{clause}") for name in (*NAMES, *WORDS) for clause in clauses("backbone", name, WORDS.get(name, ()))],
)
def test_contract(clause: Clause) -> None:
    clause()


@pytest.mark.parametrize(("name", "size"), [(name, size) for name in NAMES for size in (8, 28, 32)])
def test_images_that_a_network_cannot_take_are_refused(name: str, size: int) -> None:
    channels = 3 if size == 32 else 1
    if size in TOO_SMALL.get(name, ()):
        with pytest.raises(LabError, match=rf"^dataset\.size: .*got {size}x{size}"):
            build(name, 10, channels, size)
    else:
        with torch.device("meta"):  # it takes no weights to see
            build(name, 10, channels, size)


@pytest.mark.parametrize("size", [1, 7, 9, 29])
@pytest.mark.parametrize("name", ["resnet20", "resnet18", "small_resnet", "small_cnn", "mlp_toy"])
def test_odd_sizes(name: str, size: int) -> None:
    assert build(name, size=size).eval()(torch.rand(1, 3, size, size)).shape == (1, 10)


# Parameter counts


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 269_722),  # the V1 rows: PNI table 3, FM table 2
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet20_w1_5", 605_026),
        ("resnet20_w2", 1_073_962),
        ("resnet20_w4", 4_286_026),
        ("resnet18", 11_173_962),  # FM table 1
        ("vgg19", 20_040_522),
    ],
)
def test_published_parameter_counts(name: str, count: int) -> None:
    assert parameters(build(name)) == count


@pytest.mark.parametrize(("stem", "count"), [("3x3", 23_910_152), ("7x7", 23_917_832)])
def test_parameters_of_the_resnet50_on_tiny_imagenet(stem: Literal["3x3", "7x7"], count: int) -> None:
    """torchvision's 25,557,032 of ImageNet, less 800 rows of the head; a 3x3 stem has 64 x 3 x 40 weights fewer."""
    assert 25_557_032 - 800 * 2049 - (0 if stem == "7x7" else 64 * 3 * 40) == count
    with torch.device("meta"):
        assert parameters(ResNet50(200, 3, 64, stem)) == count


CONV1 = 64 * (1 * 8 * 8) + 64
CONV2 = 128 * (64 * 6 * 6) + 128


def test_parameters_of_the_efficient_defenses_cnn_on_mnist() -> None:
    conv3 = 128 * (128 * 5 * 5) + 128
    head = 10 * (128 * 1 * 1) + 10
    assert parameters(build("efficient_defenses_cnn", 10, 1, 28)) == CONV1 + CONV2 + conv3 + head


@pytest.mark.parametrize(("name", "kernel"), [("efficient_defenses_resnet", 1), ("efficient_defenses_resnet_released", 3)])
def test_parameters_of_the_efficient_defenses_resnet_on_mnist(name: str, kernel: int) -> None:
    block = (64 * 128 + 64) + (64 * (64 * kernel * kernel) + 64) + (128 * 64 + 128)
    head = 10 * (128 * 1 * 1) + 10  # 5x5 maps, max-pooled by 3 with stride 3: one pixel
    assert parameters(build(name, 10, 1, 28)) == CONV1 + CONV2 + block + head


def test_parameters_of_the_efficient_defenses_networks_on_cifar10() -> None:
    """The paper's CNN and ResNet end in 2x2 maps of 128 channels there; that ResNet's 5 of MNIST is 6, max-pooled by 3."""
    conv1 = 64 * (3 * 8 * 8) + 64
    head = 10 * (128 * 2 * 2) + 10
    assert parameters(build("efficient_defenses_cnn")) == conv1 + CONV2 + 128 * (128 * 5 * 5) + 128 + head
    block = (64 * 128 + 64) + (64 * 64 + 64) + (128 * 64 + 128)
    assert parameters(build("efficient_defenses_resnet")) == conv1 + CONV2 + block + head


@pytest.mark.parametrize(("channels", "size", "last", "count"), [(3, 32, 7, 1_592_902), (1, 28, 6, 1_176_326)])
def test_parameters_of_the_efficient_defenses_cifar_cnn(channels: int, size: int, last: int, count: int) -> None:
    """32 -> 32 ('same') -> 16 -> 14 -> 7; 28 -> 28 -> 14 -> 12 -> 6."""
    convolutions = (32 * 9 * channels + 32) + (64 * 9 * 32 + 64)
    assert convolutions + (64 * last * last * 500 + 500) + (500 * 10 + 10) == count
    assert parameters(build("efficient_defenses_cifar_cnn", 10, channels, size)) == count


def test_parameters_of_the_deep_defense_mlp() -> None:
    count = (784 * 500 + 500) + (500 * 150 + 150) + (150 * 10 + 10)
    assert parameters(build("mlp", 10, 1, 28)) == count


# Known answers


def test_padded_shortcut_keeps_every_second_pixel_and_appends_zero_channels() -> None:
    x = torch.arange(9.0).reshape(1, 1, 3, 3)
    kept = [[0.0, 2.0], [6.0, 8.0]]
    nothing = [[0.0, 0.0], [0.0, 0.0]]
    assert PaddedShortcut(1, 3, 2)(x).tolist() == [[kept, nothing, nothing]]


@pytest.mark.parametrize("size", [1, 7, 8, 28])
def test_padded_shortcut_meets_the_convolution(size: int) -> None:
    """A 3x3 kernel that is 1 in its centre, with stride 2 and padding 1, picks the same pixels."""
    x = torch.rand(2, 1, size, size)
    centre = torch.zeros(1, 1, 3, 3)
    centre[..., 1, 1] = 1
    torch.testing.assert_close(PaddedShortcut(1, 2, 2)(x)[:, :1], conv2d(x, centre, stride=2, padding=1))


def stage_sizes(model: Backbone, x: Tensor) -> list[int]:
    sizes = []
    for stage in model.body:
        x = stage(x)
        sizes.append(x.shape[-1])
    return sizes


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("efficient_defenses_cnn", 28, [14, 5, 1]),
        ("efficient_defenses_cnn", 32, [16, 6, 2]),
        ("efficient_defenses_cnn", 27, [14, 5, 1]),  # the smallest; 'same' rounds up
        ("efficient_defenses_resnet", 28, [14, 5, 5]),
        ("efficient_defenses_resnet", 32, [16, 6, 6]),
        ("efficient_defenses_cifar_cnn", 32, [16, 7]),
        ("efficient_defenses_cifar_cnn", 28, [14, 6]),
        ("efficient_defenses_cifar_cnn", 8, [4, 1]),  # the smallest
        ("resnet20", 28, [28, 28, 14, 7]),
        ("resnet18", 32, [32, 32, 16, 8, 4]),
        ("resnet50", 64, [64, 64, 32, 16, 8]),
        ("vgg19", 28, [28, 14, 7, 3, 1]),
        ("vgg19", 32, [32, 16, 8, 4, 2]),
        ("small_cnn", 8, [8, 4, 2]),
    ],
)
def test_sizes_of_the_maps(name: str, size: int, sizes: list[int]) -> None:
    assert stage_sizes(build(name, size=size).eval(), torch.rand(1, 3, size, size)) == sizes


@pytest.mark.parametrize(("size", "before", "after"), [(28, 3, 3), (29, 3, 4)])
def test_same_padding_is_that_of_keras(size: int, before: int, after: int) -> None:
    """Keras: total = (ceil(size / 2) - 1) * 2 + 8 - size, the smaller half first."""
    model = build("efficient_defenses_cnn", channels=1, size=size)
    stage = model.body.get_submodule("stage1")
    conv = stage.get_submodule("conv")
    assert isinstance(conv, nn.Conv2d)
    x = torch.rand(1, 1, size, size)
    expected = conv2d(pad(x, (before, after, before, after)), conv.weight, conv.bias, stride=2).clamp(min=0)
    assert torch.allclose(stage(x), expected, atol=1e-6)


def test_residual_blocks_activate_after_the_sum() -> None:
    """With a silent branch a block is relu(shortcut): stage 1 keeps what is positive, stage 2 also thins it."""
    model = ResNetV1(10, 1, 8, depth=20, width=1).eval()
    for path, parameter in model.named_parameters():
        if path.endswith("norm2.weight"):
            nn.init.zeros_(parameter)
    maps = torch.randn(2, 16, 8, 8)
    positive = maps.clamp(min=0)
    assert torch.equal(model.body.get_submodule("stage1")(maps), positive)
    assert torch.equal(model.body.get_submodule("stage2")(maps), pad(positive[:, :, ::2, ::2], (0, 0, 0, 0, 0, 16)))


def test_features_pool_whole_maps() -> None:
    x = torch.rand(2, 3, 32, 32)
    for name in ("resnet20", "resnet18"):
        model = build(name).eval()
        assert torch.allclose(model.features(x), model.body(x).mean((2, 3)), atol=1e-6)
    model = build("vgg19").eval()
    assert torch.equal(model.features(x), model.body(x).amax((2, 3)))


def test_the_efficient_defenses_block_activates_after_the_sum() -> None:
    block = EfficientDefensesResNet(10, 1, 28, block_kernel=1).body.get_submodule("stage3")
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(block.get_parameter("conv3.bias"), -0.5)
    maps = torch.rand(2, 128, 5, 5)
    torch.testing.assert_close(block(maps), (maps - 0.5).clamp(min=0))


def test_the_efficient_defenses_cifar_cnn_by_hand() -> None:
    """Layer by layer in eval mode; in train mode dropout halves what each of the three hidden layers passes on."""
    model = build("efficient_defenses_cifar_cnn")
    weights = dict(model.named_parameters())
    x = torch.rand(2, 3, 32, 32)
    maps = conv2d(x, weights["body.stage1.conv.weight"], weights["body.stage1.conv.bias"], padding=1).clamp(min=0)
    maps = maps.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    maps = conv2d(maps, weights["body.stage2.conv.weight"], weights["body.stage2.conv.bias"]).clamp(min=0)
    maps = maps.unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    features = (maps.flatten(1) @ weights["pool.linear.weight"].T + weights["pool.linear.bias"]).clamp(min=0)
    assert torch.allclose(model.eval().features(x), features, atol=1e-5)
    assert torch.equal(model(x), model(x))
    assert model.feature_size == 500

    dropouts = {path: module for path, module in model.named_modules() if isinstance(module, nn.Dropout)}
    assert sorted(dropouts) == ["body.stage1.dropout", "body.stage2.dropout", "pool.dropout"]
    model.train()
    for module in dropouts.values():
        kept = (module(torch.ones(10_000)) != 0).float().mean().item()
        assert kept == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(model(x), model(x))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    resnet = ResNetV1(10, 3, 32, depth=20, width=4)
    conv = resnet.get_parameter("body.stage3.block3.conv1.weight")
    assert conv.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    stem = resnet.get_parameter("body.stem.conv.weight")
    assert stem.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)  # fan-out: 3 x 3 x 64, not 3 x 3 x 3
    assert resnet.head.weight.std().item() == pytest.approx((2 / 256) ** 0.5, rel=0.1)
    assert not resnet.head.bias.any()
    cnn = EfficientDefensesCNN(10, 1, 28)
    glorot = (6 / (64 * 36 + 128 * 36)) ** 0.5
    weight = cnn.get_parameter("body.stage2.conv.weight")
    assert 0.99 * glorot < weight.abs().max().item() <= glorot
    assert weight.std().item() == pytest.approx(glorot / 3**0.5, rel=0.02)
    assert not any(parameter.any() for path, parameter in cnn.named_parameters() if path.endswith("bias"))


# Errors


@pytest.mark.parametrize("depth", [2, 18, 21, 20.0, "20", True, -4])
def test_wrong_resnet_depth(depth: int) -> None:
    with pytest.raises(LabError, match=r"^backbone\.depth: "):
        ResNetV1(10, 3, 32, depth=depth, width=1)


@pytest.mark.parametrize("width", [0, -1, 0.3, 1.51, float("nan"), float("inf"), "2", True])
def test_wrong_resnet_width(width: float) -> None:
    with pytest.raises(LabError, match=r"^backbone\.width: "):
        ResNetV1(10, 3, 32, depth=20, width=width)


def test_other_wrong_knobs() -> None:
    with pytest.raises(LabError, match=r"^backbone\.depth: expected one of 11, 13, 16, 19, got 18"):
        VGG(10, 3, 32, depth=18)
    with pytest.raises(LabError, match=r"^dataset\.size: .* 16x16 pixels, got 15x15"):
        VGG(10, 3, 15, depth=11)
    with pytest.raises(LabError, match=r"^dataset\.size: .* 27x27 pixels, got 26x26"):
        EfficientDefensesCNN(10, 1, 26)
    with pytest.raises(LabError, match=r"^dataset\.size: .* 19x19 pixels, got 18x18"):
        EfficientDefensesResNet(10, 1, 18, block_kernel=1)
    with pytest.raises(LabError, match=r"^dataset\.size: .* 8x8 pixels, got 7x7"):
        EfficientDefensesCifarCNN(10, 1, 7)
    with pytest.raises(LabError, match=r"^backbone\.block_kernel: "):
        EfficientDefensesResNet(10, 1, 28, block_kernel=2)
    with pytest.raises(LabError, match=r"^backbone\.stem: expected 3x3 or 7x7, got '5x5'"):
        ResNet50(10, 3, 32, stem="5x5")  # type: ignore[arg-type]
    with pytest.raises(LabError, match=r"^backbone\.hidden: "):
        MLP(10, 1, 8, hidden=[])
    with pytest.raises(
        LabError, match=r"^backbone\.hidden: expected a list \(each a whole number >= 1\) of one or more, such as \[32, 16\], got \[5, 0\]"
    ):
        MLP(10, 1, 8, hidden=[5, 0])
    with pytest.raises(LabError, match=r"^backbone\.widths: "):
        SmallCNN(10, 1, 8, widths=[])


@pytest.mark.parametrize("size", [16, 17, 28])
@pytest.mark.parametrize("depth", [11, 13, 16])
def test_other_vgg_depths_and_sizes(depth: int, size: int) -> None:
    assert VGG(10, 1, size, depth=depth).eval()(torch.rand(1, 1, size, size)).shape == (1, 10)


def test_smallest_efficient_defenses_resnet() -> None:
    assert EfficientDefensesResNet(10, 1, 19, block_kernel=3)(torch.rand(1, 1, 19, 19)).shape == (1, 10)
