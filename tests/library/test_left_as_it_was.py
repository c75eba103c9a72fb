"""A program calls the library and goes on: its model, its random numbers, torch's switches and Hydra are as they were."""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.version import VersionBase
from torch import Tensor, nn

import robustbench_lab as lab

FEW = {"images": 4, "queries": {"queries": 5}, "random": {"draws": 5}, "longer": {"steps": 3}}
BALL = lab.Budget("linf", 0.2)


class Net(nn.Module):
    """BatchNorm that learns beside one that does not, and a buffer that every pass moves; wants single precision in eval mode."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fixed, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.Linear(36, 3)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        logits = self.head(torch.relu(self.fixed(self.norm(self.conv(x)))).flatten(1))
        assert self.training or not isinstance(x, Tensor) or logits.dtype == torch.ones(()).dtype == torch.float32
        return logits


@pytest.fixture
def learning() -> tuple[nn.Module, Tensor, Tensor]:
    """The net after one backward pass, and its batch."""
    torch.manual_seed(1)
    net, x, y = Net().train(), torch.rand(6, 1, 5, 5), torch.randint(3, (6,))
    net.fixed.eval()
    net.conv.weight.requires_grad_(False)
    nn.functional.cross_entropy(net(x), y).backward()
    return net, x, y


def state_of(net: nn.Module) -> dict[str, Any]:
    return {
        "modes": [module.training for module in net.modules()],
        "flags": [parameter.requires_grad for parameter in net.parameters()],
        "weights": copy.deepcopy(net.state_dict()),
        "gradients": [None if parameter.grad is None else parameter.grad.clone() for parameter in net.parameters()],
        "objects": [id(tensor) for tensor in (*net.parameters(), *net.buffers(), *(p.grad for p in net.parameters()))],
        "hooks": [list(module._forward_hooks) for module in net.modules()],
        "attributes": [sorted(vars(module)) for module in net.modules()],
    }


def state_of_program() -> dict[str, Any]:
    cudnn, mkldnn = torch.backends.cudnn, torch.backends.mkldnn
    fine = [getattr(one, "fp32_precision", None) for one in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv)]
    return {
        "torch": torch.random.get_rng_state(), "numpy": np.random.get_state()[1], "python": random.getstate(),  # noqa: NPY002
        "switches": [cudnn.benchmark, cudnn.deterministic, cudnn.enabled, *fine],
        "precision": [torch.get_default_dtype(), torch.is_autocast_enabled("cpu")],
        "modes": [torch.is_grad_enabled(), torch.is_inference_mode_enabled()],
        "hydra": [Singleton._instances.get(kind) for kind in (GlobalHydra, HydraConfig, VersionBase)],
    }  # fmt: skip


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, Tensor) else bool(np.all(one == other))


CALLS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "evaluate": lambda net, x, y: lab.evaluate(
        net, x, y, "pgd", eps=0.2, batch_size=4, panel={"images": 4, "queries": {"queries": 5}}
    ).to_dict(),
    "attack": lambda net, x, y: lab.attack("pgd", steps=3)(net, x, y, BALL),
    "check": lambda net, x, y: lab.check(net, x, y, eps=0.2, panel={**FEW, "strongest": None}).to_dict(),
}


def switched(setting: Callable[[], None]) -> Callable[[], AbstractContextManager[Any]]:
    """A program that has chosen the precision of its kernels."""

    @contextmanager
    def around() -> Iterator[None]:
        setting()
        try:
            yield
        finally:
            torch.set_float32_matmul_precision("highest")

    return around


@contextmanager
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "nothing": nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "medium": switched(lambda: torch.set_float32_matmul_precision("medium")),
    "tf32": switched(lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")),
    "double": double,
}


@pytest.mark.parametrize("call", CALLS)
def test_model_and_program(call: str, learning: tuple[nn.Module, Tensor, Tensor]) -> None:
    """Whatever is around the call, its result is the same, and so is everything afterwards."""
    net, x, y = learning
    results = []
    for name, around in AROUND.items():
        with around():
            before = state_of(net), state_of_program()
            results.append(CALLS[call](net, x, y))
            after = state_of(net), state_of_program()
        for one, other in zip(before, after, strict=True):
            different = [part for part in one if not equal(one[part], other[part])]
            assert not different, (name, different)
    without_seconds = [str(result).partition("'seconds'")[0] for result in results]
    assert len(set(without_seconds)) == 1


def test_a_training_with_attacks_between_its_passes_ends_at_the_same_weights() -> None:
    def train(between: Callable[[nn.Module, Tensor, Tensor], Any]) -> dict[str, Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for _ in range(3):
            x, y = torch.rand(6, 1, 5, 5), torch.randint(3, (6,))
            loss = nn.functional.cross_entropy(net(x), y)
            between(net, x, y)  # while the graph of the step waits
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net.state_dict()

    alone = train(lambda *_: None)
    assert equal(dict(train(CALLS["attack"])), dict(alone))
    assert equal(dict(train(lambda net, x, y: lab.evaluate(net, x, y, "pgd", eps=0.2, panel=False))), dict(alone))


class Fails(Net):
    def forward(self, x: Tensor) -> Tensor:
        if self.calls > 6:
            raise ZeroDivisionError("in the middle")
        return super().forward(x) if x.requires_grad or not torch.is_grad_enabled() else super().forward(x) * 1


@pytest.mark.parametrize("call", CALLS)
def test_after_an_error_too(call: str, learning: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = Fails().train(), *learning[1:]
    net.conv.weight.requires_grad_(False)
    net.norm.eval()
    net.register_forward_hook(lambda *_: None)  # no fast copy, whose passes it would not count
    before = state_of(net), state_of_program()
    with pytest.raises(ZeroDivisionError, match="in the middle"):
        CALLS[call](net, x, y)
    assert equal(before, (state_of(net), state_of_program()))


def test_hooks_see_passes_of_the_model_itself_and_stay(learning: tuple[nn.Module, Tensor, Tensor]) -> None:
    """One that changes what passes is a part of the model: it is attacked, and no copy of it is traced."""
    net, x, y = learning
    seen: list[Any] = []
    plain = lab.evaluate(net, x, y, attack="fgsm", eps=0.2, panel=False)
    handle = net.register_forward_hook(lambda module, given, answer: (seen.append(type(answer)), -answer)[1])
    turned = lab.evaluate(net, x, y, attack="fgsm", eps=0.2, panel=False)
    assert set(seen) == {Tensor}
    assert not np.array_equal(plain.clean, turned.clean)
    handle.remove()
    assert np.array_equal(lab.evaluate(net, x, y, attack="fgsm", eps=0.2, panel=False).distance, plain.distance, equal_nan=True)


def test_a_module_that_cannot_be_copied_is_attacked_as_it_is(learning: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = learning
    net.cache = net(x)  # type: ignore[assignment]  # a tensor with its graph, which deepcopy refuses
    result = lab.evaluate(net, x, y, attack="pgd", eps=0.2, panel=False)
    del net.cache
    assert np.array_equal(result.robust, lab.evaluate(net, x, y, attack="pgd", eps=0.2, panel=False).robust)


@pytest.fixture
def _own_hydra(tmp_path: Path) -> Iterator[None]:
    """A Hydra program of somebody else's, with choices of ours' names."""
    (tmp_path / "attack").mkdir()
    (tmp_path / "attack" / "pgd.yaml").write_text("steps: theirs")
    (tmp_path / "train.yaml").write_text("defaults: [attack: pgd]")
    with initialize_config_dir(str(tmp_path), job_name="theirs", version_base="1.2"):
        yield


@pytest.mark.usefixtures("_own_hydra")
def test_within_a_hydra_program_our_choices_are_ours_and_theirs_stay_theirs() -> None:
    before = dict(Singleton._instances)
    held = GlobalHydra.instance().hydra
    assert "steps=20" in repr(lab.attack("pgd"))
    with pytest.raises(lab.LabError, match="no finished run for digits/small_resnet/fm seed 4"):
        lab.load_run("defense=fm seed=4", "/nowhere")
    assert Singleton._instances == before
    assert GlobalHydra.instance().hydra is held
    assert str(VersionBase.instance().getbase()) == "1.2"
    assert compose("train").attack.steps == "theirs"


def test_outside_of_any_hydra_none_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {GlobalHydra, HydraConfig, JobRuntime, VersionBase}
    monkeypatch.setattr(Singleton, "_instances", {kind: one for kind, one in Singleton._instances.items() if kind not in kinds})
    with pytest.raises(lab.LabError, match="no finished run"):
        lab.load_run("seed=4", "/nowhere")
    lab.attack("autoattack")
    assert not kinds & set(Singleton._instances)
