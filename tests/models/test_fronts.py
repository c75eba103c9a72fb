"""What stands before a network: when it learns, draws and looks at the network; and how a model stays what it is in its views."""

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.jobs.evaluate import silenced
from robustbench_lab.models.defended import Defended
from robustbench_lab.models.front import Front
from robustbench_lab.models.noise import NoiseLayer, without_noise
from robustbench_lab.training.loop import fit


class Bank(Front):
    """Remembers one training image, chosen at random, and shows half of it beside the image."""

    patch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("patch", torch.zeros(1, 8, 8))
        self.fitted = 0

    def fit(self, images: ImageSet, rng: torch.Generator) -> None:
        self.fitted += 1
        chosen = torch.randint(len(images), (1,), generator=rng)
        self.patch.copy_(next(images.batches(chosen, 1))[0][0])

    def transform(self, x: Tensor) -> Tensor:
        return (x + self.patch) / 2


class Density(Front):
    """Has parameters that nobody trains."""

    learned = False

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.5))

    def transform(self, x: Tensor) -> Tensor:
        return self.scale * x


class Padded(Front):
    """One more row and column, at random on either side."""

    random: ClassVar[bool] = True

    def forward(self, x: Tensor) -> Tensor:
        before = int(torch.randint(2, (1,)))
        return nn.functional.pad(x, (before, 1 - before, before, 1 - before))


class Shaken(Front, NoiseLayer):
    """Padded's like with a switch."""

    random: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.active else x


class Sensitive(Front):
    """Drops the pixels to which the network's first logit answers most."""

    needs_network: ClassVar[bool] = True

    def transform(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.requires_grad_()
            (gradient,) = torch.autograd.grad(self.network(x)[:, 0].sum(), x)
        return x.detach() * (gradient.abs() < gradient.abs().amax(dim=(1, 2, 3), keepdim=True))


class Masked(Defended):
    """A subclass with something of its own."""

    def __init__(self, network: nn.Module, fronts: list[Front], strength: float, stochastic: bool = False) -> None:
        super().__init__(network, fronts, passes=3, stochastic=stochastic)
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        return self.strength * super().forward(x)


def linear(size: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(size**2, 10))


def pooled() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


class Behind(Defense):
    """Standard training behind given fronts."""

    def __init__(self, *fronts: Front) -> None:
        object.__setattr__(self, "fronts", fronts)

    def build(self, make_net: Callable[[], nn.Module]) -> Defended:
        return Defended(make_net(), self.fronts)  # type: ignore[attr-defined]


def test_fronts_learn_once_from_the_training_images_and_keep_it(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    recipe = run_objects("training.epochs=2", "training.validation=0.5")[3]
    train, patches = digits[0].subset(torch.arange(40)), []
    for seed in (0, 0, 1):
        front = Bank()
        model = Behind(front).build(linear)
        states: list[Any] = []
        fit(Behind(), model, train, recipe, seed, save=states.append)
        assert front.fitted == 1
        patches.append(front.patch.clone())
        assert torch.equal(states[-1].model["fronts.0.patch"], front.patch)
        resumed = Behind(Bank()).build(linear)
        fit(Behind(), resumed, train, recipe, seed, state=states[0])
        assert resumed.fronts[0].fitted == 0
        assert all(torch.equal(a, b) for a, b in zip(resumed.state_dict().values(), model.state_dict().values(), strict=True))
    assert torch.equal(patches[0], patches[1])
    assert not torch.equal(patches[0], patches[2])
    seen = next(train.batches(torch.arange(20), 20))[0]  # the other half is held out
    assert any(torch.equal(patches[0], image) for image in seen)


def test_parameters_of_a_fixed_front_are_not_trained_and_hidden_as_fixed(
    run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]
) -> None:
    model = Behind(Density()).build(linear)
    fit(Behind(), model, digits[0].subset(torch.arange(40)), run_objects("training.epochs=1")[3], 0)
    assert float(model.fronts[0].scale.detach()) == 0.5
    assert not model.fronts[0].scale.requires_grad
    assert not len(model.without_fixed_fronts().fronts)


def test_a_front_may_change_the_size() -> None:
    x = torch.rand(2, 1, 8, 8, requires_grad=True)
    model = Defended(pooled(), [Padded()])
    assert model.fronts(x).shape == (2, 1, 9, 9)
    assert torch.autograd.grad(model(x).sum(), x)[0].shape == x.shape


def test_a_surrogate_of_another_shape_is_refused() -> None:
    class Cropped(Front):
        def transform(self, x: Tensor) -> Tensor:
            return x[:, :, 1:, 1:]

    with pytest.raises(TypeError, match=r"Cropped: transform gave \[2, 1, 7, 7\], its surrogate \[2, 1, 8, 8\]"):
        Cropped()(torch.rand(2, 1, 8, 8))


def test_a_random_front_makes_the_model_stochastic_and_each_pass_draws() -> None:
    model, x = Defended(linear(), [Shaken()], passes=3), torch.rand(2, 1, 8, 8)
    assert model.stochastic
    torch.manual_seed(0)
    answers = torch.stack([model.network(x + torch.randn_like(x)).log_softmax(dim=1) for _ in range(3)])
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), answers.logsumexp(dim=0))
    assert not model.without_fixed_fronts().stochastic
    assert Defended(linear(), [Shaken()], stochastic=True).without_fixed_fronts().stochastic


def test_the_noise_of_a_front_is_off_when_it_is_said_to_be() -> None:
    model, x = Defended(linear(), [Shaken()], passes=3), torch.rand(2, 1, 8, 8)
    with without_noise(model):
        assert torch.equal(model.fronts(x), x)
    assert not torch.equal(model.fronts(x), x)
    quiet = silenced(model)
    assert (quiet.stochastic, quiet.passes) == (False, 1)
    assert torch.equal(quiet(x), quiet.network(x))


@pytest.mark.parametrize("fronts", [[Padded()], [Shaken(), Padded()]])
def test_noise_without_a_switch_is_not_said_to_be_off(fronts: list[Front]) -> None:
    model = Defended(pooled(), fronts)
    said = "model: expected noise that can be switched off, but front Padded always draws"
    with pytest.raises(LabError, match=f"^{said}"), without_noise(model):
        pass
    with pytest.raises(LabError, match=f"without_noise: .*{said}"):
        silenced(model)
    assert model.stochastic


def test_a_front_that_looks_at_the_network() -> None:
    network, x = linear(), torch.rand(2, 1, 8, 8)
    model = Defended(network, [Sensitive()])
    weight = network[1].weight[0].detach()  # type: ignore[index]
    dropped = (model.fronts(x) == 0).flatten(1)
    assert dropped.int().argmax(dim=1).tolist() == [int(weight.abs().argmax())] * 2
    assert not any("network" in name for name in model.fronts.state_dict())
    assert len(model.state_dict()) == len(network.state_dict())


def test_the_identity_in_place_of_what_a_front_knows_better() -> None:
    """Through halving, an image's gradient is half of the network's; with the identity's it is the network's at the halved image."""

    class Halved(Front):
        def forward(self, x: Tensor) -> Tensor:
            return x.square() / 2

    model, x = Defended(linear(), [Halved()]), torch.rand(2, 1, 8, 8, requires_grad=True)
    weight = model.network[1].weight[0].view(1, 8, 8).expand(2, 1, 8, 8)
    view = model.with_identity_gradients()
    torch.testing.assert_close(torch.autograd.grad(model(x)[:, 0].sum(), x)[0], weight * x.detach())
    torch.testing.assert_close(torch.autograd.grad(view(x)[:, 0].sum(), x)[0], weight)
    assert torch.equal(view(x), model(x))
    assert Defended(linear(), [Shaken()]).with_identity_gradients().stochastic
    with pytest.raises(LabError, match=r"^threat_model.surrogate: expected null for a defense without fixed pre-processing"):
        Defended(linear()).with_identity_gradients()
    with pytest.raises(LabError, match=r"^threat_model.surrogate: expected null for Padded, which changes the size"):
        Defended(pooled(), [Padded()]).with_identity_gradients()(x)


def test_views_keep_their_class_and_what_a_subclass_knows() -> None:
    x = torch.rand(2, 1, 8, 8)
    model = Masked(linear(), [Density(), Shaken()], 2.0).eval()
    model.attach_fast_copy()
    for view in (model.without_fixed_fronts(), model.one_draw(), silenced(model)):
        assert type(view) is Masked
        assert (view.strength, view.network is model.network, view.training, view.fast_copy) == (2.0, True, False, None)
    assert (len(model.fronts), model.passes, model.stochastic) == (2, 3, True), "what a view changes is its own"
    assert len(model.one_draw().fronts) == 2
    bare = Masked(linear(), [Density()], 2.0).one_draw().without_fixed_fronts()
    torch.testing.assert_close(bare(x), 2 * bare.network(x))
    with torch.no_grad():
        model.network[1].weight.zero_()
    assert not bool(model.one_draw().network[1].weight.any()), "weights are shared"
