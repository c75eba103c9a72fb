"""Deep Defense's recipes: the rates of single parameters by hand, schedules, and what a fine-tuned run begins from."""

from collections.abc import Callable
from typing import Any

import pytest

from robustbench_lab.defenses.base import Defense
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.training.rates import optimizer_and_rates

Objects = Callable[..., Any]

MNIST, CONVNET, NIN = ("mnist", "deep_defense_lenet"), ("cifar10", "deep_defense_convnet"), ("cifar10", "nin")


def words(network: tuple[str, str], training: str, *more: str) -> list[str]:
    dataset, backbone = network
    return [f"dataset={dataset}", f"backbone={backbone}", f"training={training}", *more]


def rates_of(how: list[str], run_objects: Objects) -> dict[str, float]:
    """The learning rate of each parameter, by its name in the backbone, before the schedule."""
    return {name: rate for name, (rate, _) in rates_and_decays(how, run_objects).items()}


def rates_and_decays(how: list[str], run_objects: Objects) -> dict[str, tuple[float, float]]:
    _, model, _, recipe = run_objects(*how)
    (player,) = Defense().players(model)
    optimizer, rates = optimizer_and_rates(list(player.parameters), model, recipe)
    groups = zip(optimizer.param_groups, rates, strict=True)
    found = {id(parameter): (rate, group["weight_decay"]) for group, rate in groups for parameter in group["params"]}
    return {name.removeprefix("network.backbone."): found[id(parameter)] for name, parameter in model.named_parameters()}


def test_rates_of_matconvnets_convnet(run_objects: Objects) -> None:
    """cnn_cifar_init.m: learningRate [.1 2] of .05, .1 * [.1 2] in the last layer."""
    convolutions = {}
    for stage in range(1, 5):
        convolutions |= {f"body.stage{stage}.conv.weight": 0.005, f"body.stage{stage}.conv.bias": 0.1}
    found = rates_of(words(CONVNET, "matconvnet_cifar_convnet"), run_objects)
    assert found == pytest.approx(convolutions | {"head.weight": 0.0005, "head.bias": 0.01})


def test_rates_of_matconvnets_nin(run_objects: Objects) -> None:
    """cnn_cifar_init_nin.m: learningRate [1 10] of .04, .001 * [1 10] in the last layer."""
    found = rates_of(words(NIN, "matconvnet_nin"), run_objects)
    assert len(found) == 18
    assert (found.pop("head.weight"), found.pop("head.bias")) == pytest.approx((0.00004, 0.0004))
    assert {name.rpartition(".")[2]: rate for name, rate in found.items()} == pytest.approx({"weight": 0.04, "bias": 0.4})
    assert len(set(found.values())) == 2


@pytest.mark.parametrize(
    ("network", "training"),
    [(MNIST, "deep_defense_mnist"), (CONVNET, "deep_defense_cifar"), (NIN, "deep_defense_nin"), (MNIST, "matconvnet_mnist")],
)
def test_others_have_one_rate(network: tuple[str, str], training: str, run_objects: Objects) -> None:
    """MatConvNet decays biases as weights; the authors' fine-tuning does not."""
    reference = training == "matconvnet_mnist"
    for name, found in rates_and_decays(words(network, training), run_objects).items():
        assert found == (1e-3 if reference else 5e-4, 5e-4 if reference or name.endswith("weight") else 0)


@pytest.mark.parametrize(
    ("network", "training", "rates"),
    [
        (MNIST, "matconvnet_mnist", [(1e-3, 20)]),
        (CONVNET, "matconvnet_cifar_convnet", [(0.05, 30), (0.005, 10), (0.0005, 5)]),
        (NIN, "matconvnet_nin", [(0.002, 1), (0.01, 1), (0.02, 1), (0.04, 60), (0.004, 10), (0.0004, 10)]),
        (MNIST, "deep_defense_mnist", [(5e-4, 4), (2.5e-4, 1)]),
        (CONVNET, "deep_defense_cifar", [(5e-4, 40), (2.5e-4, 10)]),
        (NIN, "deep_defense_nin", [(5e-4, 40), (2.5e-4, 10)]),
        (MNIST, "deep_defense_imagenet", [(5e-4, 1)]),
    ],
)
def test_rates_over_epochs(network: tuple[str, str], training: str, rates: list[tuple[float, int]], run_objects: Objects) -> None:
    recipe = run_objects(*words(network, training))[3]
    expected = [rate for rate, epochs in rates for _ in range(epochs)]
    for within in (0, 0.99):
        found = [recipe.optimizer.keywords["lr"] * recipe.factor(epoch + within) for epoch in range(recipe.epochs)]
        assert found == pytest.approx(expected)
    settings = recipe.optimizer.keywords
    assert settings["momentum"] == 0.9
    assert not settings.get("nesterov")
    assert settings["weight_decay"] == (1e-4 if training == "matconvnet_cifar_convnet" else 5e-4)
    assert (recipe.batch_size, recipe.precision, recipe.attack_precision, recipe.compile) == (100, "fp32", "fp32", False)
    assert recipe.flip is (network[0] == "cifar10")
    assert (recipe.crop_padding, recipe.validation, recipe.keep) == (0, 0, "last")


@pytest.mark.parametrize(
    ("network", "training", "source"),
    [
        (MNIST, "deep_defense_mnist", "matconvnet_mnist"),
        (CONVNET, "deep_defense_cifar", "matconvnet_cifar_convnet"),
        (NIN, "deep_defense_nin", "matconvnet_nin"),
    ],
)
def test_every_defense_begins_from_the_one_reference(network: tuple[str, str], training: str, source: str) -> None:
    """Whatever is said of the fine-tuning is not said of the reference, but for the images, the network and the seed."""
    reference = run_at_words(words(network, source, "seed=3"))
    for more in (
        ["defense=trades", "defense.beta=2"],
        ["training.epochs=2", "training.schedule.milestones=[1]"],
        ["defense=gda_bounded_relu"],
    ):
        run = run_at_words(words(network, training, "seed=3", *more))
        assert run.teacher == reference
    assert reference.teacher is None
    assert run_at_words(words(network, training, "seed=4")).teacher != reference
