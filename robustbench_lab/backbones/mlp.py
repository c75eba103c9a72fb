"""A multilayer perceptron on pixels."""

from collections.abc import Sequence

from torch import nn

from robustbench_lab.backbones.base import Backbone, Sizes, check_problem, sequence
from robustbench_lab.knobs import check


class MLP(Backbone):
    """Linear layers with ReLU between them, on the flattened image; PyTorch's default initialisation.

    Images [B, C, H, W] of exactly the size that it was built for (2-D toys: two channels of one pixel); features
    [B, hidden[-1]]. Its stages give vectors, not maps.
    Source: with hidden 500 and 150, Deep Defense's MLP (Yan et al. 2018, arXiv:1803.00404, section 4.2;
    ZiangYan/deepdefense.pytorch, models/mnist.py).
    Raises: LabError for an empty `hidden` or a layer without units.
    """

    def __init__(self, classes: int, channels: int, image_size: int, hidden: Sequence[int]) -> None:
        check_problem(classes, channels, image_size)
        check("backbone.hidden", hidden, Sizes)
        stages: dict[str, nn.Module] = {"flatten": nn.Flatten()}
        inputs = channels * image_size**2
        for number, units in enumerate(hidden, start=1):
            stages[f"hidden{number}"] = sequence(linear=nn.Linear(inputs, units), relu=nn.ReLU())
            inputs = units
        super().__init__(body=sequence(**stages), pool=nn.Identity(), head=nn.Linear(inputs, classes))
