"""Adversarially trained Bayesian network (Adv-BNN): a Gaussian in the place of each weight, learned on adversarial examples.

Source: Liu, Li, Wu and Hsieh 2019 (Adv-BNN), arXiv:1810.01279, eq. 6 to 12; the authors' code, xuanqing94/BayesianDefense
(main_adv_vi.py, models/layers/, models/vgg_vi.py, attacker/pgd.py).
Where we differ: the divergence is the sum over all layers, while their network's forward returns the last layer's only (kl=as_released);
means start where the backbone's own initialisation puts its weights (theirs: BatchNorm's scales uniform in [0, 1], convolutions and head
as PyTorch's default); images are normalised by the model's first layer, while theirs takes them as they are.
Limits: an attacker who averages no draws sees noisy gradients and finds less; judge with eot_samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import AdversarialDefense, Batch
from robustbench_lab.errors import LabError
from robustbench_lab.knobs import Count, NotNegative, Positive, one_of
from robustbench_lab.models.defended import Defended, cross_entropy
from robustbench_lab.models.noise import NoiseLayer

KL = ("sum", "as_released")
LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)


class Gaussian(NoiseLayer):
    """A parametrisation: each reading of the weight is a draw from N(mean, exp(log_sigma)^2), entry by entry, of the weight's shape.

    The mean is the weight that was there (`original`), and what is read without noise. Draws are differentiable in mean and log_sigma.
    """

    def __init__(self, mean: Tensor, sigma: float) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.full_like(mean, math.log(sigma)))

    def forward(self, mean: Tensor) -> Tensor:
        if not self.active:
            return mean
        noise = torch.randn(mean.shape, dtype=mean.dtype, device=mean.device)  # whatever the memory format: the same draw
        return torch.addcmul(mean, self.log_sigma.exp(), noise)

    def divergence(self, mean: Tensor, prior_sigma: float) -> Tensor:
        """KL(N(mean, exp(log_sigma)^2) || N(0, prior_sigma^2)), summed over the entries: a scalar."""
        scaled = (mean.square() + (2 * self.log_sigma).exp()) / (2 * prior_sigma**2)
        return (math.log(prior_sigma) - self.log_sigma + scaled - 0.5).sum()


def make_gaussian(network: nn.Module, sigma: float) -> None:
    """Put a Gaussian of standard deviation `sigma` around every weight and bias of convolutions, linear layers and BatchNorms.

    Raises LabError if there is none.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, LAYERS)]
    if not layers:
        raise LabError(f"backbone: there is no layer to make Gaussian in {type(network).__name__}; choose one with convolutions")
    for layer in layers:
        for name, weight in list(layer.named_parameters(recurse=False)):
            parametrize.register_parametrization(layer, name, Gaussian(weight, sigma), unsafe=True)  # safe: it would draw, to check shapes


def gaussian_layers(network: nn.Module) -> list[nn.Module]:
    """The layers whose weights are Gaussian, in the network's order."""
    return [layer for layer in network.modules() if parametrize.is_parametrized(layer)]


def divergence(layers: Sequence[nn.Module], prior_sigma: float) -> Tensor:
    """KL(q || N(0, prior_sigma^2)), summed over the layers' weights: a scalar."""
    weights = [weight for layer in layers for weight in layer.parametrizations.values()]  # type: ignore[union-attr, operator]
    return torch.stack([weight[0].divergence(weight.original, prior_sigma) for weight in weights]).sum()


@dataclass(frozen=True, kw_only=True)
class AdversarialBayesianNetwork(AdversarialDefense):
    """CE(x_adv) + kl_weight / N * KL(q || N(0, prior_sigma^2)), with N training images; one draw of the weights for each forward pass.

    prior_sigma: standard deviation of the prior. initial_sigma: that of the posterior, before training.
    kl: sum, over all layers, or as_released: the last layer's alone.
    passes: draws that a prediction averages (log of the mean of the probabilities). Training and its search take one draw at a time.
    """

    prior_sigma: Positive
    initial_sigma: Positive
    kl_weight: NotNegative
    kl: Annotated[str, one_of(KL)]
    passes: Count

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        make_gaussian(net, self.initial_sigma)
        model = Defended(net, passes=self.passes, stochastic=True)
        model.register_buffer("train_images", torch.ones((), dtype=torch.int64))  # N; `prepare` counts them
        return model

    def prepare(self, model: Defended, train_data: ImageSet, teacher: nn.Module | None) -> None:
        model.get_buffer("train_images").fill_(len(train_data))

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        one_draw = model.one_draw()
        x_adv = self.adversarial(one_draw, batch.x, batch.y, batch.rng)
        layers = gaussian_layers(model.network)
        kl = divergence(layers if self.kl == "sum" else layers[-1:], self.prior_sigma)
        return cross_entropy(one_draw(x_adv), batch.y).mean() + self.kl_weight * kl / model.get_buffer("train_images")
