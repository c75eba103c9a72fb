"""What an attack meets a random model in: means over draws, and one draw's graph at a time."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.attacks.gradients import cross_entropy, each_logit_gradient
from robustbench_lab.evaluation.views import Averaged, Counted

DRAWS = 5


class Noisy(nn.Module):
    """Logits of a tanh network with noise on its weight; remembers each noisy copy without keeping it, and how many others live with it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), requires_grad=False)
        self.copies: list[weakref.ref[Tensor]] = []
        self.most = 0

    def forward(self, x: Tensor) -> Tensor:
        noisy = self.weight + torch.randn_like(self.weight)
        self.copies.append(weakref.ref(noisy))
        self.most = max(self.most, sum(copy() is not None for copy in self.copies))
        return torch.tanh(x.flatten(1)) @ noisy.T * x.flatten(1).norm(dim=1, keepdim=True)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(1))


def test_the_mean_s_gradient_is_that_of_the_same_draws(x: Tensor) -> None:
    model, x = Noisy(), x.requires_grad_()
    torch.manual_seed(3)
    plain = torch.stack([model(x) for _ in range(DRAWS)]).mean(dim=0)
    (expected,) = torch.autograd.grad(plain.logsumexp(dim=1).sum(), x)
    torch.manual_seed(3)
    averaged = Averaged(model, DRAWS)(x)
    state = torch.get_rng_state()
    (ours,) = torch.autograd.grad(averaged.logsumexp(dim=1).sum(), x)
    torch.testing.assert_close(averaged, plain)
    torch.testing.assert_close(ours, expected)
    assert torch.equal(torch.get_rng_state(), state)  # the repeated passes take no numbers of their own


def test_a_climbed_loss_is_averaged_draw_by_draw(x: Tensor, built: Callable[..., Any]) -> None:
    model, y = Noisy(), torch.arange(6) % 3
    attack = built("attack", "pgd")
    torch.manual_seed(3)
    near, gradients, values = x.clone().requires_grad_(), [], []
    for _ in range(DRAWS):
        value = cross_entropy(model(near), y)
        gradients.append(torch.autograd.grad(value.sum(), near)[0])
        values.append(value.detach())
    torch.manual_seed(3)
    counted = Counted(Averaged(model, DRAWS))
    gradient, value, _ = attack.gradient(counted, x, y, cross_entropy)
    torch.testing.assert_close(gradient, torch.stack(gradients).mean(dim=0))
    torch.testing.assert_close(value, torch.stack(values).mean(dim=0))
    assert (counted.forward_images, counted.backward_images) == (DRAWS * 6, DRAWS * 6)


def test_logits_gradients_are_those_of_the_mean(x: Tensor) -> None:
    model, classes = Noisy(), torch.tensor([[0, 2]] * 6)
    torch.manual_seed(3)
    near = x.clone().requires_grad_()
    plain = torch.stack([model(near) for _ in range(DRAWS)]).mean(dim=0)
    expected = torch.autograd.grad(plain[:, 2].sum(), near)[0]
    torch.manual_seed(3)
    logits, gradients = each_logit_gradient(Averaged(model, DRAWS), x, classes)
    torch.testing.assert_close(logits, plain.detach())
    torch.testing.assert_close(list(gradients)[1], expected)


def test_one_noisy_copy_of_the_weights_at_a_time(x: Tensor, built: Callable[..., Any]) -> None:
    by_draws, of_the_mean = Noisy(), Noisy()
    built("attack", "pgd").gradient(Counted(Averaged(by_draws, DRAWS)), x, torch.arange(6) % 3, cross_entropy)
    near = x.clone().requires_grad_()
    torch.autograd.grad(Averaged(of_the_mean, DRAWS)(near).sum(), near)
    assert (by_draws.most, len(by_draws.copies)) == (1, DRAWS)
    assert (of_the_mean.most, len(of_the_mean.copies)) == (1, 2 * DRAWS)
