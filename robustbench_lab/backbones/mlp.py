"""A multilayer perceptron on pixels."""

from collections.abc import Sequence

from torch import nn

from robustbench_lab.backbones.base import Backbone, Sizes, check_problem, draw_normal_weights, sequence
from robustbench_lab.knobs import Positive, check


class MLP(Backbone):
    """Linear layers with ReLU between them, on the flattened image.

    weight_std: of normal initial weights, with zero biases (MatConvNet's examples/mnist: .01, for pixels on a scale of 0..255); None is
    PyTorch's default initialisation.

    Images [B, C, H, W] of exactly the size that it was built for (2-D toys: two channels of one pixel); features
    [B, hidden[-1]]. Its stages give vectors, not maps.
    Source: with hidden 500 and 150, Deep Defense's MLP (Yan et al. 2018, arXiv:1803.00404, section 4.2;
    ZiangYan/deepdefense.pytorch, models/mnist.py).
    Raises: LabError for an empty `hidden`, a layer without units or a standard deviation that is not > 0.
    """

    def __init__(self, classes: int, channels: int, image_size: int, hidden: Sequence[int], weight_std: float | None = None) -> None:
        check_problem(classes, channels, image_size)
        check("backbone.hidden", hidden, Sizes)
        check("backbone.weight_std", weight_std, Positive | None)
        stages: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        inputs = channels * image_size**2
        for number, units in enumerate(hidden, start=1):
            stages[f"hidden{number}"] = sequence(linear=nn.Linear(inputs, units), relu=nn.ReLU())
            inputs = units
        super().__init__(body=sequence(**stages), pool=nn.Identity(), head=nn.Linear(inputs, classes))
        if weight_std is not None:
            draw_normal_weights(self, weight_std)
