"""Loss sensitivity of networks whose gradients are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.errors import LabError
from robustbench_lab.metrics.loss_sensitivity import loss_sensitivity, loss_sensitivity_as_published
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front


def linear(w: Tensor, b: Tensor) -> Defended:
    layer = nn.Linear(w.shape[1], w.shape[0])
    layer.weight.data, layer.bias.data = w.clone(), b.clone()
    return Defended(nn.Sequential(nn.Flatten(), layer))


# Logits (x1, 2 x2). At (.5, .25) they are equal, p = (.5, .5). At (0, .5 ln 3) they are (0, ln 3), p = (.25, .75).
MODEL = linear(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2))
X = torch.tensor([[0.5, 0.25], [0.0, 0.5 * math.log(3)]]).view(2, 1, 1, 2)


def test_the_loss_s_gradient() -> None:
    """W' (p - e_y). Class 0: W' (-.5, .5) = (-.5, 1) and W' (-.75, .75) = (-.75, 1.5); class 1: W' (.25, -.25) = (.25, -.5)."""
    expected = [math.sqrt(5) / 2, 3 * math.sqrt(5) / 4]
    assert loss_sensitivity(MODEL, X, torch.tensor([0, 0])).tolist() == pytest.approx(expected, rel=1e-6)
    assert loss_sensitivity(MODEL, X[1:], torch.tensor([1])).tolist() == pytest.approx([math.sqrt(5) / 4], rel=1e-6)


def test_as_published() -> None:
    """Of the likeliest class's probability: p0 p1 (w0 - w1), up to the sign: .25 (1, -2) and 3/16 (1, -2)."""
    expected = [math.sqrt(5) / 4, 3 * math.sqrt(5) / 16]
    assert loss_sensitivity_as_published(MODEL, X).tolist() == pytest.approx(expected, rel=1e-6)


def test_many_classes() -> None:
    """|W' (p - e_y)| and |p_k W' (e_k - p)|, k the predicted class."""
    generator = torch.Generator().manual_seed(0)
    w, b, x = (torch.randn(*shape, generator=generator) for shape in ((5, 12), (5,), (20, 3, 2, 2)))
    y = torch.arange(20) % 5
    p = (x.flatten(1).double() @ w.T.double() + b.double()).softmax(1)
    unit, predicted = torch.eye(5).double(), p.argmax(1)
    expected = ((p - unit[y]) @ w.double()).norm(dim=1)
    torch.testing.assert_close(loss_sensitivity(linear(w, b), x, y), expected, rtol=1e-4, atol=1e-6)
    published = (p.gather(1, predicted[:, None]) * ((unit[predicted] - p) @ w.double())).norm(dim=1)
    torch.testing.assert_close(loss_sensitivity_as_published(linear(w, b), x), published, rtol=1e-4, atol=1e-6)


class Half(Front):
    """A fixed front with a gradient of its own nowhere: every image becomes (.5, .25)."""

    def transform(self, x: Tensor) -> Tensor:
        return torch.tensor([0.5, 0.25]).view(1, 1, 1, 2).expand_as(x)


def test_through_a_front_the_gradient_is_the_surrogate_s() -> None:
    model = Defended(MODEL.network, [Half()])
    assert loss_sensitivity(model, X, torch.tensor([0, 0])).tolist() == pytest.approx([math.sqrt(5) / 2] * 2, rel=1e-6)
    without = loss_sensitivity(model.without_fixed_fronts(), X, torch.tensor([0, 0]))
    assert torch.equal(without, loss_sensitivity(MODEL, X, torch.tensor([0, 0])))


def test_the_model_is_measured_in_eval_mode_and_left_as_it_was(
    tiny_net: Callable[..., Defended], edge_images: Callable[..., Tensor]
) -> None:
    model, x, y = tiny_net(), edge_images(6), torch.arange(6) % 3
    alone = torch.cat([loss_sensitivity(model, x[i : i + 1], y[i : i + 1]) for i in range(6)])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.attach_fast_copy("bf16")  # in eval mode there may be one: the metric is the model's own, in full precision
    model.train()
    for found in (loss_sensitivity(model, x, y), loss_sensitivity(model, x.clone().requires_grad_(), y)):
        torch.testing.assert_close(found, alone, rtol=1e-5, atol=0)
        assert found.dtype == torch.float64
    assert model.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_without_images_there_is_no_metric() -> None:
    with pytest.raises(LabError, match=r"^x: expected images \[N, C, H, W\], at least one, got \[0, 1, 1, 2\]"):
        loss_sensitivity(MODEL, X[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(LabError, match=r"^x: expected images"):
        loss_sensitivity_as_published(MODEL, X[:0])
