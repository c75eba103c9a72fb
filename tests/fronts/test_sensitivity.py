"""The sensitivity-style front: which pixels go, what takes their place, and that the network stays what it is."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.fronts.sensitivity import Sensitivity
from robustbench_lab.models.defended import Defended
from robustbench_lab.transforms.low_rank import LowRank
from robustbench_lab.transforms.total_variation import TotalVariation

WORDS = ["defense=preprocessed", "front@defense.fronts=[sensitivity]", "backbone=small_resnet"]
SMOOTHING = {"weight": 1 / 0.03, "version": "fixed", "penalty": 32.0, "relaxation": 1.8, "tolerance": 1e-9, "sweeps": 1, "iterations": 2000}
COMPLETION = LowRank(first=0.5, last=0.002, thresholds=15, iterations=3)


def front(missing: float = 0.2, rounds: int = 3, weight: float = 1 / 0.03) -> Sensitivity:
    return Sensitivity(missing, rounds, TotalVariation(**(SMOOTHING | {"weight": weight})), COMPLETION)


class Weighted(nn.Module):
    """Two classes, of which the second sums all pixels times `weight` [C, H, W]."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        second = (x * self.weight).sum((1, 2, 3))
        return torch.stack([torch.zeros_like(second), second], dim=1)


def test_the_most_sensitive_pixels_go() -> None:
    """Of a linear network they are those of its largest weights, in size, in any channel, whatever the image."""
    weight = torch.zeros(3, 4, 4)
    weight[0, 0, 1], weight[1, 2, 2], weight[2, 3, 3], weight[0, 3, 0] = 0.5, -0.4, 0.3, 0.1
    sensitivity = front(missing=3 / 16)
    Defended(Weighted(weight), [sensitivity])
    gone = sensitivity.sensitive(torch.rand(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert gone.shape == (5, 1, 4, 4)
    for image in gone:
        assert image[0].nonzero().tolist() == [[0, 1], [2, 2], [3, 3]]


def test_what_takes_their_place_does_not_know_them() -> None:
    """An image of rank 1 that is wrong where the network looks comes back there, and smoothed elsewhere."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.zeros(3, 16, 16)
    weight[0] = (torch.rand(16, 16, generator=generator) < 0.1).float() * 0.01
    count = int(weight.count_nonzero())
    clean = (torch.linspace(0.3, 0.9, 16)[:, None] * torch.linspace(0.5, 1, 16)).expand(2, 3, 16, 16)
    wrong = torch.where(weight[0] > 0, 1 - clean, clean)
    sensitivity = front(missing=count / 256, weight=1000.0)
    Defended(Weighted(weight), [sensitivity])
    shown = sensitivity(wrong)
    assert torch.equal(sensitivity.sensitive(wrong)[0, 0], weight[0] > 0)
    assert (shown - clean).abs().max() < 2e-2
    assert (wrong - clean).abs().max() > 0.4
    other = torch.where(weight[0] > 0, 0.123, clean)
    assert torch.equal(sensitivity(other), shown), "the values that went do not count"


def test_a_round_is_completion_and_smoothing() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    sensitivity = Sensitivity(0.2, 2, TotalVariation(**(SMOOTHING | {"tolerance": 1e-3})), COMPLETION)
    Defended(Weighted(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))), [sensitivity])
    gone = sensitivity.sensitive(x)
    first = COMPLETION.complete(x, gone)
    second = COMPLETION.complete(sensitivity.smoothing.minimise(first), gone)
    smooth = sensitivity.smoothing.minimise(torch.where(gone, second, x))
    torch.testing.assert_close(sensitivity(x), torch.where(gone, second, smooth).clamp(0, 1))


def test_its_gradient_is_its_own() -> None:
    """Against differences, along directions; the pixels that went have none."""
    x = 0.25 + torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.double) / 2
    sensitivity = front(rounds=2)
    Defended(Weighted(torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.double)), [sensitivity])
    toward = torch.rand(x.shape, generator=torch.Generator().manual_seed(4), dtype=torch.double)
    image = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((sensitivity(image) * toward).sum(), image)
    assert not gradient[sensitivity.sensitive(x)].any()
    for seed in range(3):
        along = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
        ends = [(sensitivity(x + step * along) * toward).sum() for step in (1e-6, -1e-6)]
        assert float(ends[0] - ends[1]) / 2e-6 == pytest.approx(float((gradient * along).sum()), rel=1e-3, abs=1e-3)


def test_looking_at_the_network_moves_nothing(run_objects: Callable[..., Any]) -> None:
    """In training neither its BatchNorm nor its gradients, and no image's pixels hang on the others of its batch."""
    model = run_objects(*WORDS)[1].train()
    (sensitivity,) = model.fronts
    x = torch.rand(3, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        shown = sensitivity(x)
    assert model.network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(sensitivity(x[:1]), shown[:1], atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert sensitivity(x).dtype == torch.float32


@pytest.mark.parametrize(
    "key", ["missing", "rounds", "smoothing.weight", "smoothing.tolerance", "completion.first", "completion.iterations"]
)
def test_strengths_are_positive(key: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=rf"^defense.fronts.sensitivity.{key}: expected a .* number >"):
        run_objects(*WORDS, f"defense.fronts.sensitivity.{key}=0")
