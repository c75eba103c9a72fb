"""The first layer: what each choice of conf/normalise does, what it learns from the training images, and what it refuses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from built_kinds import NEEDED
from torch import Tensor

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Classifier
from robustbench_lab.models.normalise import FirstLayer, MeanImage, Normalise, Whitening
from robustbench_lab.training.loop import fit

CONF = Path(__file__).parents[2] / "conf" / "normalise"
CHOICES = sorted(path.stem for path in CONF.glob("*.yaml"))


def some_images(n: int = 40, channels: int = 1, size: int = 4, seed: int = 0) -> ImageSet:
    """Images of different contrast, whose pixels go together."""
    generator = torch.Generator().manual_seed(seed)
    shades = torch.rand(n, 1, 1, 1, generator=generator) * torch.linspace(0.2, 1, size)
    images = (shades * torch.rand(n, channels, size, size, generator=generator)).clamp(0, 1)
    return ImageSet(images, torch.arange(n) % 2, torch.arange(n))


def test_per_channel_and_the_mean_alone() -> None:
    x = torch.tensor([[[[0.5]], [[1.0]]]])
    assert Normalise([0.5, 0.2], [0.25, 0.4])(x).flatten().tolist() == pytest.approx([0, 2])
    assert Normalise([0.4, 0.2], None)(x).flatten().tolist() == pytest.approx([0.1, 0.8])
    assert FirstLayer()(x) is x


def test_the_mean_image_is_that_of_the_training_images() -> None:
    images = some_images()
    layer = MeanImage(1, 4, scale=255)
    layer.fit(images)
    torch.testing.assert_close(layer.mean[0], images.images.mean(dim=0))
    torch.testing.assert_close(layer(images.images).mean(dim=0), torch.zeros(1, 4, 4), atol=1e-3, rtol=0)
    torch.testing.assert_close(layer(images.images[:1]), 255 * (images.images[:1] - images.images.mean(dim=0)))


def whitened(images: ImageSet, smallest_contrast: float, smallest_deviation: float) -> tuple[Whitening, Tensor]:
    layer = Whitening(images.shape[0], images.shape[1], 255, smallest_contrast, smallest_deviation)
    layer.fit(images)
    return layer, layer(images.images).flatten(1).double()


def test_whitening_needs_more_images_than_values() -> None:
    with pytest.raises(LabError, match=r"^dataset\.normalise: expected more training images than the 16 values of each.*, got 16$"):
        whitened(some_images(16), 20.0, 10.0)


def test_whitening_by_hand() -> None:
    """By the formula of MatConvNet's cnn_cifar, in float64 and by a singular value decomposition in place of the eigenproblem."""
    images, smallest_contrast, smallest_deviation = some_images(300), 20.0, 10.0
    layer, z = whitened(images, smallest_contrast, smallest_deviation)
    pixels = 255 * images.images.double().flatten(1)
    pixels = pixels - pixels.mean(dim=0)
    pixels = pixels - pixels.mean(dim=1, keepdim=True)
    n = pixels.std(dim=1, keepdim=True)
    assert 0 < (n < smallest_contrast).sum() < 300, "both branches"
    pixels = pixels * n.mean() / n.clamp(min=smallest_contrast)
    _, roots, axes = torch.linalg.svd(pixels / 300**0.5)
    assert 0 < (roots < smallest_deviation).sum() < 16, "both branches"
    expected = pixels @ axes.T * (roots.square().mean().sqrt() / roots.clamp(min=smallest_deviation)) @ axes
    torch.testing.assert_close(z, expected, atol=5e-3, rtol=1e-4)
    x = images.images[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert gradient.isfinite().all()
    assert gradient.any()


def test_whitened_images_have_equal_deviations_along_every_axis() -> None:
    _, z = whitened(some_images(500), 1e-3, 1e-3)
    values = torch.linalg.eigvalsh(z.T @ z / len(z))[1:]  # one axis is empty: each image's own mean is 0
    assert float(values.max() / values.min()) == pytest.approx(1, abs=0.02)


def test_an_image_of_one_grey_has_a_gradient() -> None:
    layer, _ = whitened(some_images(), 0, 1)
    x = (layer.mean + 0.1).clamp(0, 1).requires_grad_()
    assert torch.autograd.grad(layer(x).sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_is_a_word_that_replaces_the_datasets_own(name: str, run_objects: Callable[..., Any]) -> None:
    own = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    own |= {"mean": [0.5], "std": [0.25]} if name == "mean_std" else {}
    channels = len(own.get("mean", [0]))
    more = NEEDED.get(("normalise", name), [])
    model = run_objects(f"normalise@dataset.normalise={name}", "backbone=mlp", f"dataset.channels={channels}", *more)[1]
    layer, x = model.network.normalise, torch.rand(2, channels, 8, 8)
    assert f"{type(layer).__module__}.{type(layer).__name__}" == own["_target_"]
    assert layer(x).shape == x.shape
    if "mean" in own:
        assert (layer.mean.flatten().tolist(), layer.std.flatten().tolist()) == (pytest.approx(own["mean"]), pytest.approx(own["std"]))


@pytest.mark.parametrize("name", ["none", "mean_image", "whitening"])
def test_a_run_learns_its_first_layer_before_it_trains(
    name: str, run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]
) -> None:
    words = [f"normalise@dataset.normalise={name}", "backbone=small_cnn", "training.epochs=1", "training.validation=0.1"]
    _, model, defense, recipe = run_objects(*words)
    train = digits[0].subset(torch.arange(100))
    state = fit(defense, model, train, recipe, 0)
    assert isinstance(model.network, Classifier)
    layer = model.network.normalise
    if isinstance(layer, MeanImage):
        assert torch.equal(layer.mean, state.model["network.normalise.mean"])
        seen = torch.cat([x for x, _, _ in train.batches(torch.arange(90), 90)])  # the last tenth is held out
        torch.testing.assert_close(layer.mean[0], seen.mean(dim=0))
    fresh = run_objects(*words)[1]
    fresh.load_state_dict(state.model)
    x = next(train.batches(torch.arange(10), 10))[0]
    assert torch.equal(fresh.eval()(x), model.eval()(x))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dataset.normalise.mean=[0.1,0.2,0.3]", "dataset.normalise.std=null"], r"^dataset.normalise.mean: expected 1 numbers"),
        (["dataset.normalise.mean=[]"], r"^dataset.normalise.mean: expected a list of finite numbers"),
        (["dataset.normalise.mean=0.5"], r"^dataset.normalise.mean: expected a list of finite numbers"),
        (["dataset.normalise.std=[0.0]"], r"^dataset.normalise.std: expected .* > 0"),
        (["dataset.normalise.std=[1.0,1.0]"], r"^dataset.normalise.std: expected as many numbers as mean"),
        (["dataset.normalise.std=[wide]"], r"^dataset.normalise.std: expected a list of finite numbers"),
        (["normalise@dataset.normalise=imagenet"], r"^dataset.normalise.mean: expected 1 numbers, as dataset.channels says"),
        (
            ["normalise@dataset.normalise=mean_image", "dataset.normalise.size=4"],
            r"^dataset.normalise: expected images of shape \[1, 8, 8\]",
        ),
        (["normalise@dataset.normalise=mean_image", "dataset.normalise.scale=0"], r"^dataset.normalise.scale: expected"),
        (["normalise@dataset.normalise=whitening", "dataset.normalise.smallest_deviation=0"], r"^dataset.normalise.smallest_deviation"),
    ],
)
def test_what_does_not_fit_is_named(words: list[str], said: str, run_objects: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=said):
        run_objects(*words)
