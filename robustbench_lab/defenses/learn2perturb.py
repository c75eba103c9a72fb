"""Learn2Perturb: Gaussian noise on features, whose standard deviation is learned for each place of each map.

Source: Jeddi, Shafiee, Karg, Scharfenberger and Wong 2020 (Learn2Perturb), arXiv:2003.01090, section 3 and eq. 7; the authors' code,
ArmenJeddi/Learn2Perturb (train.py, main.py, models/).
Readings: noise falls before the first activation and the last one of each residual block, as in that code; a network without such blocks
(VGG) has it before every activation, each convolution being a block of its own.
Where we differ from that code: tau is the harmonic number of the epochs with noise, the present one included, so that it is 1 in the first
(there 0, by which it divides); noise is drawn for each image (there one map for a whole batch: `per_image` false); the two steps of sigma
have a momentum each (there one, to the same total); the search leaves no trace (there it runs in eval mode and leaves the model in
train mode, in which the evaluation then goes on), and the predictions that it takes as labels come from a pass of its own.
Limits: an attacker who averages no draws sees noisy gradients and finds less; judge with eot_samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustbench_lab.defenses.base import Batch, MixedDefense, Player, Turns, require_begun
from robustbench_lab.knobs import Epoch, Positive, require
from robustbench_lab.models.defended import Classifier, Defended, replace_modules
from robustbench_lab.models.noise import NoiseLayer, is_channels_last, noise_layers, normal_like, parameter_groups
from robustbench_lab.models.shapes import input_shapes


class NoisyActivation(NoiseLayer):
    """activation(x + sigma * N(0, 1)) on features [B, *shape]; `sigma`, of that shape, is learned.

    Whether the noise has begun is kept with the weights.
    """

    def __init__(self, activation: nn.Module, shape: torch.Size, sigma: float, per_image: bool) -> None:
        super().__init__()
        self.activation = activation
        self.sigma = nn.Parameter(torch.full(shape, float(sigma)))
        self.per_image = per_image

    def scales(self) -> list[nn.Parameter]:
        return [self.sigma]

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.active)

    def set_extra_state(self, state: Tensor) -> None:
        self.active = bool(state)

    def forward(self, x: Tensor) -> Tensor:
        if self.active:
            sigma = self.sigma.to(x.dtype)[None]
            if is_channels_last(x):
                sigma = sigma.contiguous(memory_format=torch.channels_last)  # two formats side by side take longer
            x = torch.addcmul(x, normal_like(x if self.per_image else sigma), sigma)
        return self.activation(x)


@dataclass(frozen=True, kw_only=True)
class Learn2Perturb(MixedDefense):
    """Two turns a step, once there is noise: sigma raises (gamma / tau) * sum sqrt(sigma), then weights and sigma together lower the loss.

    That of the task is CE(x) before `start_epoch`, then clean_weight * CE(x) + adversarial_weight * CE(x_adv). Before `noise_start_epoch`
    there is no noise, and sigma keeps its first value.
    sigma: that value. smallest_sigma: what sigma is cut at after each step. per_image: noise for each image, or one map for the batch.
    """

    sigma: Positive
    smallest_sigma: Positive
    gamma: Positive
    per_image: bool
    noise_start_epoch: Epoch

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.sigma >= self.smallest_sigma, "sigma", f"at least smallest_sigma, {self.smallest_sigma}", self.sigma)

    def check_epochs(self, epochs: int) -> None:
        super().check_epochs(epochs)
        require_begun(self.noise_start_epoch, epochs, "noise_start_epoch", "noise")

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        assert isinstance(net, Classifier)
        shapes, inside = input_shapes(net, nn.ReLU), inner_activations(net)

        def noisy(relu: nn.Module) -> nn.Module:
            return relu if relu in inside else NoisyActivation(relu, shapes[relu], self.sigma, self.per_image)

        replace_modules(net, nn.ReLU, noisy)
        for layer in noise_layers(net):
            layer.active = False  # until the epoch in which noise begins
        return Defended(net, stochastic=True)

    def tau(self, epoch: int) -> float:
        """1 + 1/2 + ... + 1/n in the n-th epoch with noise."""
        return sum(1 / n for n in range(1, epoch - self.noise_start_epoch + 2))

    def regulariser(self, model: Defended, batch: Batch) -> Tensor:
        """-(gamma / tau) * sum sqrt(sigma) over all maps (eq. 7); from the epoch in which the noise begins."""
        maps = [scale for layer in noise_layers(model) for scale in layer.scales()]
        return -self.gamma / self.tau(batch.epoch) * torch.stack([sigma.sqrt().sum() for sigma in maps]).sum()

    def terms(self, model: Defended, batch: Batch) -> Iterator[Tensor]:
        for layer in noise_layers(model):
            layer.active = batch.epoch >= self.noise_start_epoch
        yield from super().terms(model, batch)

    def players(self, model: Defended) -> list[Player]:
        return [
            Player("noise", parameter_groups(model)[1:], self.regulariser, Turns(first_epoch=self.noise_start_epoch)),
            Player("model", parameter_groups(model), self.terms),
        ]

    @torch.no_grad()
    def after_step(self, model: Defended) -> None:
        for layer in noise_layers(model):
            for sigma in layer.scales():
                sigma.clamp_(min=self.smallest_sigma)


def inner_activations(net: nn.Module) -> set[nn.Module]:
    """The ReLUs inside of residual blocks: where a module that is no chain holds several, all but the last."""
    blocks = [module for module in net.modules() if not isinstance(module, nn.Sequential)]
    return {relu for block in blocks for relu in [child for child in block.children() if isinstance(child, nn.ReLU)][:-1]}
