"""The shapes that layers meet are those that they meet."""

import pytest
import torch
from torch import nn

from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier
from robustbench_lab.models.normalise import FirstLayer
from robustbench_lab.models.shapes import input_shapes


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 5), nn.ReLU(), nn.Linear(5, 2))


def test_by_hand_and_the_network_is_left_as_it_was() -> None:
    layers = net()
    layers[2].eval()
    classifier = Classifier(FirstLayer(), layers, (3, 8, 8))
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    assert list(input_shapes(classifier, nn.ReLU).items()) == [(layers[1], torch.Size([4, 6, 6])), (layers[5], torch.Size([5]))]
    assert input_shapes(classifier, nn.BatchNorm2d) == {layers[2]: torch.Size([4, 6, 6])}
    assert input_shapes(classifier, nn.Dropout) == {}
    assert [module.training for module in layers] == [True, True, False, True, True, True, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_a_network_that_does_not_say_what_its_images_are() -> None:
    with pytest.raises(LabError, match="image_shape"):
        input_shapes(Classifier(FirstLayer(), net()), nn.ReLU)
