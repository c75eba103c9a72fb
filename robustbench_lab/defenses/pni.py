"""Parametric noise injection (PNI): weights or activations with Gaussian noise, whose strength is trained with them.

Source: He, Rakin and Fan 2019 (PNI), arXiv:1811.09310, section 3, and eq. 5 for the loss; elliothe/CVPR_2019_PNI
(code/models/noise_layer.py, code/main.py).
Readings: the public code has noise on weights and on the normalised image; of PNI-A-a and PNI-A-b we take a for after, b for before the
layer.
Where we differ: an activation's or image's noise has the standard deviation of that one image's values, there of the whole batch's: what
a model says of an image does not depend on its neighbours. The predictions that the search takes as labels come from a pass in eval mode
of its own.
Limits: one draw of the weights serves a whole batch; an attacker who averages no draws sees noisy gradients: judge with eot_samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustbench_lab.defenses.base import MixedDefense, Player
from robustbench_lab.knobs import NOT_EMPTY, NotNegative, one_of, require
from robustbench_lab.models.defended import Classifier, Defended, replace_modules
from robustbench_lab.models.noise import NoiseLayer, image_by_image, normal_like, parameter_groups
from robustbench_lab.threats import per_image

PLACES = ("weight", "input", "output", "image")
SHARES = ("layer", "channel", "element")


def injected(values: Tensor, alpha: Tensor, std: Tensor) -> Tensor:
    """values + alpha * N(0, std^2), where neither the draw nor its standard deviation has a gradient."""
    return torch.addcmul(values, normal_like(values), alpha * std)


def std_per_image(values: Tensor) -> Tensor:
    """The standard deviation of each image's values, [B] shaped to multiply [B, ...]."""
    flat = image_by_image(values.detach()).to(torch.promote_types(values.dtype, torch.float32))
    squares = torch.linalg.vector_norm(flat, dim=1).square() - flat.shape[1] * flat.mean(dim=1).square()  # flat.std: thirty times as long
    return per_image((squares.clamp_min(0) / (flat.shape[1] - 1)).sqrt().to(values.dtype), values)


class NoisyLayer(NoiseLayer):
    """A layer with noise on its weight, its input or its output, or several of these.

    alpha: what each noise is multiplied by at first; then it is learned. share: whether the weight's is one number, one for each output
    channel or one for each element.
    """

    def __init__(self, layer: nn.Module, places: Sequence[str], alpha: float, share: str) -> None:
        super().__init__()
        self.layer = layer
        shapes: dict[str, list[int]] = {place: [] for place in places}
        if "weight" in shapes and share != "layer":
            outputs, *others = layer.get_parameter("weight").shape
            shapes["weight"] = [outputs, *others] if share == "element" else [outputs, *(1 for _ in others)]
        self.alpha = nn.ParameterDict({place: nn.Parameter(torch.full(shape, float(alpha))) for place, shape in shapes.items()})

    def scales(self) -> list[nn.Parameter]:
        return list(self.alpha.values())

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.layer(x)
        if "input" in self.alpha:
            x = injected(x, self.alpha["input"], std_per_image(x))
        y = self._with_noisy_weight(x) if "weight" in self.alpha else self.layer(x)
        return injected(y, self.alpha["output"], std_per_image(y)) if "output" in self.alpha else y

    def _with_noisy_weight(self, x: Tensor) -> Tensor:
        layer = self.layer
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = injected(layer.weight, self.alpha["weight"], layer.weight.detach().std())
        if isinstance(layer, nn.Conv2d):
            return layer._conv_forward(x, weight, layer.bias)  # which knows the layer's stride and padding
        return F.linear(x, weight, layer.bias)


@dataclass(frozen=True, kw_only=True)
class ParametricNoiseInjection(MixedDefense):
    """clean_weight * CE(x) + adversarial_weight * CE(x_adv); CE(x) alone before `start_epoch`; each pass, the search's too, has new noise.

    places: where each convolution and linear layer has noise: weight (PNI-W), output (PNI-A-a), input (PNI-A-b); image is the normalised
    image (PNI-I). alpha: the noise in standard deviations of what it is added to, at first; trained like a weight, without weight decay.
    share: whether a weight's alpha is one per layer, channel or element; elsewhere it is one per layer.
    """

    places: Annotated[Sequence[Annotated[str, one_of(PLACES)]], NOT_EMPTY]
    alpha: NotNegative
    share: Annotated[str, one_of(SHARES)]

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.share == "layer" or "weight" in self.places, "share", "layer where there is no noise on weights", self.share)

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        net = make_net()
        places = [place for place in self.places if place != "image"]
        if places:
            convolutions = any(isinstance(module, nn.Conv2d) for module in net.modules())  # a perceptron has none
            for kind in (nn.Linear, nn.Conv2d) if convolutions else (nn.Linear,):
                replace_modules(net, kind, lambda layer: NoisyLayer(layer, places, self.alpha, self.share))
        if "image" in self.places:
            assert isinstance(net, Classifier)
            net.normalise = NoisyLayer(net.normalise, ["output"], self.alpha, "layer")
        return Defended(net, stochastic=True)

    def players(self, model: Defended) -> list[Player]:
        return [Player("model", parameter_groups(model), self.terms)]
