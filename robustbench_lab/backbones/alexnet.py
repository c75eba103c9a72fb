"""AlexNet, as torchvision has it."""

from torch import nn

from robustbench_lab.backbones.base import Backbone, check_problem, sequence
from robustbench_lab.knobs import ShareBelowOne, check


class AlexNet(Backbone):
    """Five convolutions 64-192-384-256-256, three max-pools, and two hidden linear layers of 4,096 with dropout before each.

    Images [B, C, H, W] of 63x63 or more, made for 224x224; features [B, 4096]. The hidden layers are part of `pool`, so that the stages
    give maps. PyTorch's default initialisation. dropout: share of values set to 0, seeded with the epoch; in eval mode there is none.
    Source: Krizhevsky 2014, arXiv:1404.5997, in torchvision's form (torchvision/models/alexnet.py), to which it is equal layer by layer and
    in the order of its parameters; scripts/torchvision_weights.py renames the weights that torchvision publishes.
    Differs from Krizhevsky et al. 2012, which Caffe's AlexNet is: one tower, no grouped convolutions, no local response normalisation.
    Raises: LabError for smaller images or a dropout that is no share.
    """

    def __init__(self, classes: int, channels: int, image_size: int, dropout: float) -> None:
        check_problem(classes, channels, image_size, smallest=63)
        check("backbone.dropout", dropout, ShareBelowOne)
        super().__init__(
            body=sequence(
                stage1=sequence(conv=nn.Conv2d(channels, 64, 11, stride=4, padding=2), relu=nn.ReLU(), maximum=nn.MaxPool2d(3, stride=2)),
                stage2=sequence(conv=nn.Conv2d(64, 192, 5, padding=2), relu=nn.ReLU(), maximum=nn.MaxPool2d(3, stride=2)),
                stage3=sequence(conv=nn.Conv2d(192, 384, 3, padding=1), relu=nn.ReLU()),
                stage4=sequence(conv=nn.Conv2d(384, 256, 3, padding=1), relu=nn.ReLU()),
                stage5=sequence(conv=nn.Conv2d(256, 256, 3, padding=1), relu=nn.ReLU(), maximum=nn.MaxPool2d(3, stride=2)),
            ),
            pool=sequence(
                average=nn.AdaptiveAvgPool2d(6),
                flatten=nn.Flatten(),
                dropout1=nn.Dropout(dropout),
                linear1=nn.Linear(256 * 6 * 6, 4096),
                relu1=nn.ReLU(),
                dropout2=nn.Dropout(dropout),
                linear2=nn.Linear(4096, 4096),
                relu2=nn.ReLU(),
            ),
            head=nn.Linear(4096, classes),
        )
