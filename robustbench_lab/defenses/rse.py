"""Random self-ensemble (RSE): Gaussian noise before each convolution, in training and in test, where predictions are averaged.

Source: Liu, Cheng, Zhang and Hsieh 2018 (RSE), arXiv:1712.00673, section 3 and algorithm 1; the authors' code,
xuanqing94/BayesianDefense (main_rse.py, models/vgg_rse.py) and, before it, xuanqing94/RobustNet (main_rse.py, models/resnext_rse.py).
The authors' networks take images as they are, so that the noise before the first convolution is in units of the pixel range; ours
normalise first, and that noise falls on the image before it. A shortcut's convolution has a draw of its own, as in RobustNet's ResNeXt.
Where we differ from RobustNet's VGG: there the first convolution has the inner noise and the second the initial one, by a slip in counting.
Limits: an attacker who averages no draws sees noisy gradients and finds less; judge with eot_samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.knobs import Count, NotNegative
from robustbench_lab.models.defended import Classifier, Defended, cross_entropy, replace_modules
from robustbench_lab.models.noise import NoiseLayer, normal_like


class Noise(NoiseLayer):
    """x + N(0, sigma^2); x itself if sigma is 0."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, normal_like(x), alpha=self.sigma) if self.active and self.sigma else x

    def extra_repr(self) -> str:
        return f"sigma={self.sigma}"


@dataclass(frozen=True, kw_only=True)
class RandomSelfEnsemble(Defense):
    """Cross-entropy of a network with noise of standard deviation `sigma_init` on the image and `sigma_inner` before each convolution
    but the first.

    sigma_init: as a fraction of the pixel range. Without any noise it is standard training, and predictions take one pass.
    passes: draws that a prediction averages (log of the mean of the probabilities). Training takes one.
    """

    sigma_init: NotNegative
    sigma_inner: NotNegative
    passes: Count

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        assert isinstance(net, Classifier)
        first = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
        replace_modules(net, nn.Conv2d, lambda conv: conv if conv is first else nn.Sequential(Noise(self.sigma_inner), conv))
        net.normalise = nn.Sequential(Noise(self.sigma_init), net.normalise)
        noisy = self.sigma_init > 0 or self.sigma_inner > 0
        return Defended(net, passes=self.passes if noisy else 1, stochastic=noisy)

    def loss(self, model: Defended, batch: Batch) -> Tensor:
        return cross_entropy(model.network(self.augmented(batch)), batch.y).mean()
