"""Files of weights that other people made: what is read of them, where each tensor goes, and what is refused."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.settings.build import build
from robustbench_lab.training.matching import load, matched
from robustbench_lab.training.weights import WeightsFile, read_weights


def resnet(depth: int = 8, classes: int = 4, seed: int = 0) -> Defended:
    torch.manual_seed(seed)
    said = {
        "_target_": "robustbench_lab.backbones.resnet_v1.ResNetV1",
        "classes": classes,
        "channels": 3,
        "image_size": 8,
        "depth": depth,
        "width": 1,
    }
    return Defended(Classifier(Normalise([0.5] * 3, [0.25] * 3), build(said, "backbone", Backbone)))


def lived_in(model: nn.Module) -> nn.Module:
    """With statistics of BatchNorm that are not those of a new network."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    return model.eval()


def as_others_name(model: Defended) -> dict[str, Tensor]:
    """A state_dict of the same network as akamaster/pytorch_resnet_cifar10 and kuangliu/pytorch-cifar name its layers."""
    renamed = {}
    for name, tensor in model.network.backbone.state_dict().items():
        new = name.replace("body.stem.conv", "conv1").replace("body.stem.norm", "bn1").replace("head.", "linear.")
        for stage in (1, 2, 3):
            for block in (1, 2, 3):
                new = new.replace(f"body.stage{stage}.block{block}.", f"layer{stage}.{block - 1}.")
        renamed[new.replace("norm1", "bn1").replace("norm2", "bn2")] = tensor
    return renamed


def file_of(tensors: dict[str, Tensor]) -> WeightsFile:
    return WeightsFile(Path("w.pt"), tensors, None)


X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))

WRAPS: dict[str, Callable[[dict[str, Tensor]], dict[str, Any]]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "best_prec1": np.float64(91.5)},
    "options": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "optimizer": {"state": {}, "lr": np.float32(0.1)}},
    "data parallel": lambda state: {"net": {f"module.{name}": tensor for name, tensor in state.items()}, "acc": 91.5},
    "compiled": lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
    "model": lambda state: {"model_state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
    "average alone": lambda state: {"ema": state},
    "within": lambda state: {"model": {"state_dict": state, "epoch": 3}},
    "half": lambda state: {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()},
    "normalisation": lambda state: {
        "normalize.mean": torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1),
        "normalize.std": torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1),
        **{f"model.{name}": tensor for name, tensor in state.items()},
    },
    "sequential": lambda state: {
        "module.0.mean": torch.tensor([123.675, 116.28, 103.53]),
        "module.0.std": torch.tensor([58.395, 57.12, 57.375]),
        **{f"module.1.{name}": tensor for name, tensor in state.items()},
    },
    "no counters": lambda state: {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("names", ["ours", "theirs"])
@pytest.mark.parametrize("wrap", WRAPS)
def test_a_checkpoint_is_the_network_that_it_came_from(wrap: str, names: str, tmp_path: Path) -> None:
    source, target = lived_in(resnet(seed=1)), resnet(seed=2).eval()
    assert isinstance(source, Defended)
    state = as_others_name(source) if names == "theirs" else source.network.backbone.state_dict()
    torch.save(WRAPS[wrap](state), tmp_path / "w.pt")
    found = matched(target, read_weights(tmp_path / "w.pt"))
    assert found.by == ("order" if names == "theirs" else "name")
    load(found)
    tolerance = 2e-2 if wrap == "half" else 0
    assert torch.allclose(target(X), source(X), atol=tolerance, rtol=tolerance)
    if wrap in ("normalisation", "sequential"):
        assert found.normalisation is not None
        assert found.normalisation[0] == pytest.approx([0.485, 0.456, 0.406], abs=1e-6)
        assert found.normalisation[1] == pytest.approx([0.229, 0.224, 0.225], abs=1e-6)
    else:
        assert found.normalisation is None


@pytest.mark.parametrize("part", ["model", "network", "backbone"])
def test_safetensors_of_any_part(part: str, tmp_path: Path) -> None:
    source, target = lived_in(resnet(depth=32, seed=1)), resnet(depth=32, seed=2).eval()
    assert isinstance(source, Defended)
    source.network.normalise.mean.fill_(0.25)  # type: ignore[operator, union-attr]
    module = {"model": source, "network": source.network, "backbone": source.network.backbone}[part]
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, tmp_path / "w.safetensors")  # type: ignore[union-attr]
    found = matched(target, read_weights(tmp_path / "w.safetensors"))
    load(found)
    assert found.whole is (part == "model")
    if part == "backbone":
        source.network.normalise.mean.fill_(0.5)  # type: ignore[operator, union-attr]
    assert torch.equal(target(X), source(X))


def test_names_in_order_survive_that_safetensors_sorts_them(tmp_path: Path) -> None:
    """Thirteen blocks a stage: layer1.10 comes after layer1.9, not after layer1.1."""
    source, target = lived_in(resnet(depth=80, seed=1)), resnet(depth=80, seed=2).eval()
    assert isinstance(source, Defended)
    state = {}
    for name, tensor in source.network.backbone.state_dict().items():
        stage = name.replace("body.stage", "layer").replace("block", "").replace("norm", "bn").replace("head", "linear")
        state[stage.replace("body.stem.conv", "conv1").replace("body.stem.bn", "bn1")] = tensor
    save_file(dict(reversed(state.items())), tmp_path / "w.safetensors")
    load(matched(target, read_weights(tmp_path / "w.safetensors")))
    assert torch.equal(target(X), source(X))


def test_the_weights_count_before_their_average(tmp_path: Path) -> None:
    one, other = resnet(seed=1), resnet(seed=2)
    torch.save({"ema": other.network.backbone.state_dict(), "model": one.network.backbone.state_dict()}, tmp_path / "w.pt")  # type: ignore[union-attr]
    found = read_weights(tmp_path / "w.pt")
    assert found.entry == "model"
    assert torch.equal(found.tensors["head.weight"], one.network.backbone.head.weight)  # type: ignore[union-attr]


def test_patterns_map_names() -> None:
    source, target = lived_in(resnet(seed=1)), resnet(seed=2).eval()
    assert isinstance(source, Defended)
    state = source.network.backbone.state_dict()
    theirs = {
        name.replace("body.", "trunk/").replace("norm1", "first_bn").replace("head.", "fc."): tensor for name, tensor in state.items()
    }
    rename = {"trunk/*": "body.*", "*first_bn*": "*norm1*", "fc.*": "head.*"}
    found = matched(target, file_of(theirs), rename)
    load(found)
    assert found.by == "name"
    assert torch.equal(target(X), source(X))
    with pytest.raises(LabError, match=r"^training\.rename: expected patterns of names in w\.pt, but 'fb\.\*' fits none; near it: fc\."):
        matched(target, file_of(theirs), {"trunk/*": "body.*", "fb.*": "head.*"})
    with pytest.raises(LabError, match=r"^training\.rename: expected names that stay different, got head\.weight twice"):
        matched(target, file_of({"a.weight": X, "b.weight": X}), {"*.weight": "head.weight"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {**state, "linear.weight": torch.zeros(100, 64), "linear.bias": torch.zeros(100)},
         r"of another shape: head\.weight is \[4, 64\], in the file \[100, 64\] \(linear\.weight\), head\.bias is \[4\], in the file "
         r"\[100\] \(linear\.bias\); it has 100 classes, the dataset 4: choose the dataset"),
        (lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("linear")},
         r"missing in it: head\.weight, head\.bias; choose the backbone that it was trained with, or map names by training\.rename"),
        (lambda state: {**state, "extra.weight": torch.zeros(7, 7)}, r"not expected: extra\.weight; choose the backbone"),
        (lambda state: {**state, "conv1.weight": torch.zeros(16, 1, 3, 3)},
         r"of another shape: body\.stem\.conv\.weight is \[16, 3, 3, 3\], in the file \[16, 1"),
    ],
    ids=["classes", "missing", "not expected", "channels"],
)  # fmt: skip
def test_what_does_not_fit_is_listed(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str) -> None:
    target = resnet()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(LabError, match=rf"^training\.weights: w\.pt does not fit this network: {said}"):
        matched(target, file_of(change(as_others_name(resnet(seed=1)))))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


class Evil:
    """What a pickle may hold: its reader would run a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("where", ["alone", "beside weights", "plain pickle"])
def test_code_in_a_file_is_not_run(where: str, tmp_path: Path) -> None:
    path, touched = tmp_path / "w.pt", tmp_path / "touched"
    evil: Any = {"state_dict": resnet().state_dict(), "note": Evil(touched)} if where == "beside weights" else Evil(touched)
    path.write_bytes(pickle.dumps(evil)) if where == "plain pickle" else torch.save(evil, path)
    with pytest.raises(LabError, match=r"^training\.weights: .*w\.pt is damaged, .*save the tensors alone: safetensors"):
        read_weights(path)
    assert not touched.exists()


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
@pytest.mark.parametrize("left", [0, 10, -100])
def test_a_file_that_is_cut_short(left: int, kind: str, tmp_path: Path) -> None:
    path = tmp_path / ("w.pt" if kind == "torch" else "w.safetensors")
    torch.save(resnet().state_dict(), path) if kind == "torch" else save_file(resnet().state_dict(), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(LabError, match=r"^training\.weights: \S+ is damaged, cut short"):
        read_weights(path)


def test_numbers_that_are_not_finite(tmp_path: Path) -> None:
    state = resnet().state_dict()
    state["network.backbone.head.bias"][1] = torch.nan
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(LabError, match=r"^training\.weights: expected finite numbers in \S+, but network\.backbone\.head\.bias has others"):
        read_weights(tmp_path / "w.pt")
