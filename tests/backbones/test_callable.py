"""Networks that a callable makes: what is taken of them, what is refused, and the fast copy of them."""

import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_lab.backbones.base import Backbone
from robustbench_lab.backbones.callable import CallableNetwork
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier, Defended
from robustbench_lab.models.normalise import Normalise
from robustbench_lab.settings import build as building
from robustbench_lab.settings.build import build

Pair = namedtuple("Pair", ["logits", "features"])


class Net(nn.Module):
    """Somebody's network, which returns what `returns` says."""

    def __init__(self, returns: str = "tensor", classes: int = 4, softmax: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3)
        self.flat = nn.Flatten()
        self.fc = nn.Linear(5 * 36, classes)
        self.returns = returns
        self.softmax = nn.Softmax(dim=1) if softmax else nn.Identity()

    def forward(self, x: Tensor) -> Any:
        features = self.flat(F.relu(self.stem(x)))
        y = self.softmax(self.fc(features))
        if self.returns == "probabilities":
            return F.softmax(y, dim=1)
        return {
            "tensor": y, "tuple": (features, y), "dict": {"logits": y, "aux": features}, "object": SimpleNamespace(logits=y),
            "named": Pair(y, features), "rows": y.unsqueeze(0),
        }[self.returns]  # fmt: skip


def no_module() -> int:
    return 3


def failing() -> nn.Module:
    raise RuntimeError("there is no such checkpoint")


def elsewhere() -> nn.Module:
    return Net().to("meta")


def net(returns: str = "tensor", classes: int = 4, softmax: bool = False) -> nn.Module:
    return Net(returns, classes, softmax)


def needs(depth: int) -> nn.Module:
    return Net()


@pytest.fixture(autouse=True)
def _theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("somebodys")
    for made in (no_module, failing, elsewhere, net, needs):
        setattr(module, made.__name__, made)
        monkeypatch.setattr(made, "__module__", "somebodys")
    monkeypatch.setitem(sys.modules, "somebodys", module)
    monkeypatch.setattr(building, "PACKAGES", (*building.PACKAGES, "somebodys"))


def made(
    call: str = "somebodys.net", size: int = 8, classes: int = 4, output: Any = None, gives: str = "logits", **arguments: Any
) -> Backbone:
    torch.manual_seed(0)
    said = {
        "_target_": "robustbench_lab.backbones.callable.CallableNetwork",
        "classes": classes, "channels": 3, "image_size": size,
        "call": call, "arguments": arguments or None, "output": output, "gives": gives,
    }  # fmt: skip
    return build(said, "backbone", Backbone)


X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def plain() -> Net:
    torch.manual_seed(0)
    return Net().eval()


PARTS = [("tensor", None), ("tuple", 1), ("dict", "logits"), ("object", "logits"), ("named", "logits"), ("named", 0)]


@pytest.mark.parametrize(("returns", "output"), PARTS)
def test_the_part_that_is_asked_for(returns: str, output: Any) -> None:
    backbone = made(returns=returns, output=output).eval()
    assert torch.equal(backbone(X), plain()(X))
    copied = Defended(Classifier(nn.Identity(), backbone, (3, 8, 8)))
    copied.attach_fast_copy()
    assert copied.fast_copy is not None
    assert torch.allclose(copied.fast_copy(X), plain()(X), atol=1e-5)


def test_stages_features_and_head() -> None:
    backbone, net = made().eval(), plain()
    features = net.flat(F.relu(net.stem(X)))
    assert torch.equal(backbone.features(X), features)
    assert backbone.feature_size == features.shape[1]
    stages = backbone.stages(X)
    assert list(stages) == ["stem", "flat", "fc", "softmax"]
    assert torch.equal(stages["stem"], net.stem(X))
    backbone.replace_head(nn.Linear(5 * 36, 2))
    assert backbone(X).shape == (3, 2)
    assert not any(module._forward_hooks for module in backbone.modules())


def test_a_softmax_of_its_own_is_taken_away_and_another_undone() -> None:
    for arguments, exact in (({"softmax": True}, True), ({"returns": "probabilities"}, False)):
        backbone = made(gives="probabilities", **arguments).eval()
        expected = plain()(X)
        if exact:
            assert torch.equal(backbone(X), expected)
        else:
            assert torch.allclose(backbone(X), expected.log_softmax(dim=1), atol=1e-5)
        assert torch.allclose(backbone(X).softmax(dim=1), expected.softmax(dim=1), atol=1e-6)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"call": "somebodys.no_module"}, r"backbone\.call: expected a torch\.nn\.Module from somebodys\.no_module, got 'int'"),
        ({"call": "somebodys.failing"}, r"backbone\.call: somebodys\.failing made no network: RuntimeError: there is no such checkpoint"),
        ({"call": "somebodys.elsewhere"}, r"backbone\.call: expected a module on the CPU from somebodys\.elsewhere .*, got 'meta'"),
        ({"call": "somebodys.needs"}, r"backbone\.arguments: somebodys\.needs does not take these: missing a required argument: 'depth'"),
        ({"colour": 3}, r"backbone\.arguments: somebodys\.net .*: got an unexpected keyword argument 'colour'; it takes \(returns: "),
        ({"call": "somebodys.gone"}, r"backbone\.call: expected a class or function that .* defines, got 'somebodys\.gone'"),
        ({"call": "os.system"}, r"backbone\.call: expected a class or function that .*torchvision\.models.* defines, got 'os\.system'"),
        ({"call": "torchvision.datasets.utils.download_url"}, r"backbone\.call: expected a class or function that "),
        (
            {"call": "torchvision.models.resnet18", "weights": "DEFAULT"},
            r"backbone\.arguments\.weights: expected none: .* training\.weights=FILE",
        ),
        ({"classes": 10}, r"dataset\.classes: somebodys\.net gives 4 classes, the dataset has 10; backbone\.arguments="),
        ({"size": 9}, r"dataset\.size: somebodys\.net cannot take images of shape \[3, 9, 9\]: .*; choose a dataset, or dataset\.size"),
        ({"returns": "tuple"}, r"backbone\.output: expected what chooses one tensor, from 0 to 1, of what somebodys\.net .*, got None"),
        ({"returns": "dict", "output": "logit"}, r"backbone\.output: .* one of 'logits', 'aux', of what .*, got 'logit'"),
        ({"returns": "named", "output": "logit"}, r"backbone\.output: .* from 0 to 1 \(logits, features\), of what .*, got 'logit'"),
        ({"returns": "object"}, r"backbone\.output: .* one of the attributes logits, of what .* got None"),
        ({"returns": "rows"}, r"backbone\.output: expected one row for each image, \[2, 4\], from somebodys\.net, got \[1, 2, 4\]"),
        ({"softmax": True}, r"backbone\.gives: expected logits from somebodys\.net, got rows that sum to one: .* say output=prob"),
        ({"gives": "probabilities"}, r"backbone\.gives: expected probabilities from .*, as asked, got 'rows that do not sum to one'"),
    ],
    ids=lambda value: " ".join(f"{key}={entry}" for key, entry in value.items()) if isinstance(value, dict) else "",
)  # fmt: skip
def test_what_is_refused(said: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=f"^{message}"):
        made(**said)


@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "mobilenet_v2", "densenet121", "efficientnet_b0"])
def test_the_fast_copy_of_torchvisions_networks(name: str) -> None:
    backbone = made(f"torchvision.models.{name}", size=64, num_classes=4)
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 1.5)  # type: ignore[operator, union-attr]
    model = Defended(Classifier(Normalise([0.5] * 3, [0.25] * 3), backbone, (3, 64, 64))).eval()
    model.attach_fast_copy()
    assert model.fast_copy is not None
    assert len(model.fast_copy.pairs) >= {"densenet121": 58}.get(name, sum(isinstance(m, nn.BatchNorm2d) for m in backbone.modules()))
    x = torch.rand(2, 3, 64, 64)
    expected, found = model(x), model.fast_copy(x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert isinstance(backbone, CallableNetwork)
    assert backbone.head.out_features == 4


class Branching(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class Drawing(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(x.shape, device=x.device))


@pytest.mark.parametrize(("kind", "why"), [(Branching, "torch.fx cannot trace it"), (Drawing, "")])
def test_one_that_cannot_be_copied_says_so_once(kind: type[Net], why: str, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        model = Defended(Classifier(nn.Identity(), kind(), (3, 8, 8)))
        model.attach_fast_copy()
        assert model.fast_copy is None
    told = [record.message for record in caplog.records if kind.__name__ in record.message]
    assert len(told) == 1
    assert why in told[0]
