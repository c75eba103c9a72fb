"""What a run begins from, and the learning rates of single parameters."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch, Defense
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.conf import compose, place_of
from robustbench_lab.settings.identity import run_at_words, run_of
from robustbench_lab.settings.overrides import readable
from robustbench_lab.storage.files import file_digest
from robustbench_lab.training.loop import fit
from robustbench_lab.training.making import make_run
from robustbench_lab.training.rates import optimizer_and_rates
from robustbench_lab.training.recipe import MultiStep, Piecewise, Recipe
from robustbench_lab.training.start import begin, check_start
from robustbench_lab.training.state import State

Objects = Callable[..., Any]


@pytest.fixture
def model(run_objects: Objects) -> Callable[[int], Defended]:
    return lambda seed: run_objects("backbone=small_cnn", f"seed={seed}")[1]


@pytest.fixture
def recipe(run_objects: Objects) -> Recipe:
    return replace(run_objects("training.epochs=2")[3], weights=None)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested.pt"])
@pytest.mark.parametrize("part", ["", "network", "network.backbone"])
def test_a_run_of_no_epochs_is_its_file(
    kind: str, part: str, tmp_path: Path, model: Callable[[int], Defended], recipe: Recipe, digits: tuple[ImageSet, ImageSet]
) -> None:
    source, path = model(1), tmp_path / f"weights.{kind}"
    tensors = source.get_submodule(part).state_dict()
    save_file(tensors, path) if kind == "safetensors" else torch.save({"state_dict": tensors} if "nested" in kind else tensors, path)
    begun, states = model(0), list[State]()
    how = replace(recipe, epochs=0, weights=str(path), weights_digest=file_digest(path))
    state = fit(Defense(), begun, digits[0].subset(torch.arange(40)), how, 0, save=states.append)
    assert same(begun.state_dict(), source.state_dict())
    assert same(state.model, source.state_dict())
    assert (state.epoch, states) == (0, [])


def test_it_begins_before_prepare_and_not_again_after_a_resume(
    tmp_path: Path, model: Callable[[int], Defended], recipe: Recipe, digits: tuple[ImageSet, ImageSet]
) -> None:
    path, source, train = tmp_path / "w.safetensors", model(1), digits[0].subset(torch.arange(40))
    save_file(source.state_dict(), path)
    prepared: list[bool] = []

    class Watching(Defense):
        def prepare(self, model: Defended, train_data: object, teacher: nn.Module | None) -> None:
            prepared.append(same(model.state_dict(), source.state_dict()))

    states: list[State] = []
    whole, resumed = model(0), model(0)
    fit(Watching(), whole, train, replace(recipe, weights=str(path)), 0, save=states.append)
    fit(Watching(), resumed, train, replace(recipe, weights=str(path)), 0, state=states[0])
    assert prepared == [True]
    assert same(resumed.state_dict(), whole.state_dict())
    assert not same(whole.state_dict(), source.state_dict())


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_run_begins_from_its_teacher(
    epochs: int, model: Callable[[int], Defended], recipe: Recipe, digits: tuple[ImageSet, ImageSet]
) -> None:
    teacher, begun, train = model(1), model(0), digits[0].subset(torch.arange(40))
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    fit(Defense(), begun, train, replace(recipe, epochs=epochs, start="teacher"), 0, teacher=teacher)
    assert same(begun.state_dict(), before) is (epochs == 0)
    assert same(teacher.state_dict(), before)
    trained = model(1)
    fit(Defense(), trained, train, replace(recipe, epochs=max(epochs, 1)), 0)
    assert same(begun.state_dict(), trained.state_dict()) is (epochs > 0), "as if the teacher had gone on"


def test_what_does_not_fit_is_said(
    tmp_path: Path, model: Callable[[int], Defended], recipe: Recipe, digits: tuple[ImageSet, ImageSet], run_objects: Objects
) -> None:
    train = digits[0].subset(torch.arange(40))

    def begin(said: str, **changes: Any) -> None:
        with pytest.raises(LabError, match=said):
            fit(Defense(), model(0), train, replace(recipe, **changes), 0)

    path = tmp_path / "w.safetensors"
    begin(r"^training.weights: expected a file of weights, but there is no ", weights=str(path))
    save_file(run_objects("backbone=mlp")[1].state_dict(), path)
    begin(r"w.safetensors does not fit this network: .*missing in it: ", weights=str(path))
    begin(r"^training.weights: .* another file than this run was named by", weights=str(path), weights_digest="0" * 32)
    path.write_bytes(path.read_bytes()[:-10])
    begin(r"^training.weights: .* is damaged, cut short, or no file of weights", weights=str(path))
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    begin(r"^training.weights: expected a state_dict, .*, got epoch; save", weights=str(tmp_path / "w.pt"))
    torch.save(model(0), tmp_path / "w.pt")  # a pickle of a whole module: what it says would be executed
    begin(r"^training.weights: .* holds objects \(\S*Defended\) that only code could make", weights=str(tmp_path / "w.pt"))
    begin(r"^training.start: expected null for a run without a teacher", start="teacher")
    begin(r"^training.learning_rates: 'heat.\*' fits no parameter; there are network.backbone", learning_rates={"heat.*": 2})


def test_a_start_of_another_architecture_is_named_with_the_run(tmp_path: Path) -> None:
    words = ["backbone=small_cnn", "dataset.train_size=40", "training.epochs=1", "device=cpu", f"output_root={tmp_path}"]
    words.append("training.start=[defense=standard,backbone=mlp,training=digits,training.epochs=1]")
    cfg, choices = compose("train", [readable(word) for word in words])
    message = r"^training\.start: expected a run of the same architecture as digits-small_cnn-\S+, got digits-mlp-\S+: \d+ tensors differ"
    with pytest.raises(LabError, match=message):
        make_run(run_of(cfg, choices, words), place_of(cfg))


def test_a_start_without_fronts_leaves_theirs_as_they_are(
    run_objects: Objects, recipe: Recipe, digits: tuple[ImageSet, ImageSet], model: Callable[[int], Defended]
) -> None:
    """A bank of patches is no part of the undefended network that training begins from."""
    words = ["defense=preprocessed", "defense.fronts=[quilting]", "defense.fronts.quilting.patches=50", "backbone=small_cnn"]
    _, behind, defense, _ = run_objects(*words)
    teacher, few = model(3), digits[0].subset(torch.arange(40))
    check_start(behind, teacher, "this", "that")
    begin(behind, replace(recipe, start=["defense=standard"]), teacher)
    assert same(behind.network.state_dict(), teacher.network.state_dict())
    other = run_objects(*words)[1]
    fit(defense, other, few, replace(recipe, epochs=1, start=["defense=standard"]), 0, teacher=teacher)
    assert other.fronts[0].bank.float().std() > 0, "filled from the training images"
    with pytest.raises(LabError, match=r"the first is 'fronts\.0\.bank'"):
        check_start(teacher, behind, "this", "that")


def test_a_start_that_is_not_the_teacher_is_refused() -> None:
    said = ["defense=static_deepfool", "training=digits_finetuned", "dataset=digits_mean_subtracted"]
    with pytest.raises(LabError, match=r"^training\.start: expected words for the run that defense\.teacher=.* describes, teacher or null"):
        run_at_words(said)
    both = run_at_words([*said, "defense.teacher=[defense=standard,training=digits,training.epochs=8]"])
    again = run_at_words([*said, "defense.teacher=[defense=standard,training=digits,training.epochs=8]", "training.start=teacher"])
    assert both.fingerprint == again.fingerprint
    assert both.teacher == run_at_words(["defense=standard", "dataset=digits_mean_subtracted", "training.epochs=8"])


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"weights": "w", "start": "teacher"}, "start"),
        ({"start": "pupil"}, "start"),
        ({"weights": 3}, "weights"),
        ({"weights_digest": "00"}, "weights_digest"),
        ({"epochs": -1, "start": "teacher"}, "epochs"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rates": {"head.*": -1}}, "learning_rates"),
        ({"undecayed": "bias"}, "undecayed"),
    ],
)
def test_wrong_recipes(changes: dict[str, Any], key: str, recipe: Recipe) -> None:
    with pytest.raises(LabError, match=rf"^{key}: expected "):
        replace(recipe, **changes)


# Learning rates


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(25, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)))


def test_factors_of_all_globs_that_fit_multiply(recipe: Recipe) -> None:
    """MatConvNet's: weights .1, biases 2, the last layer a tenth of these; given in any order."""
    model = Defended(Net())
    for rates in ({"weight": 0.1, "*.bias": 2, "head.*": 0.1}, {"head.*": 0.1, "*.bias": 2, "*weight": 0.1}):
        how = replace(recipe, optimizer=partial(torch.optim.SGD, lr=0.5), learning_rates=rates)
        optimizer, lr = optimizer_and_rates(list(model.parameters()), model, how)
        found = {id(p): rate for group, rate in zip(optimizer.param_groups, lr, strict=True) for p in group["params"]}
        named = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
        assert named == pytest.approx(
            {"network.body.weight": 0.05, "network.body.bias": 1.0, "network.head.weight": 0.005, "network.head.bias": 0.1}
        )


def test_groups_keep_what_they_say(recipe: Recipe) -> None:
    model = Defended(Net())
    groups = [{"params": list(model.network.body.parameters())}, {"params": list(model.network.head.parameters()), "weight_decay": 0}]
    how = replace(recipe, optimizer=partial(torch.optim.SGD, lr=1.0, weight_decay=0.1), learning_rates={"bias": 3})
    optimizer, rates = optimizer_and_rates(groups, model, how)
    assert rates == [1, 3, 1, 3]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.1, 0, 0]


def test_what_weight_decay_spares(recipe: Recipe) -> None:
    """Alone, with rates of single parameters, and in groups of which one has a decay of its own."""
    model = Defended(Net())
    how = replace(recipe, optimizer=partial(torch.optim.SGD, lr=1.0, weight_decay=0.1), undecayed=["bias"])

    def decays(recipe: Recipe, parameters: list[Any]) -> list[tuple[str, float, float]]:
        optimizer, rates = optimizer_and_rates(parameters, model, recipe)
        named = {id(parameter): name.removeprefix("network.") for name, parameter in model.named_parameters()}
        return sorted(
            (named[id(p)], group["weight_decay"], rate)
            for group, rate in zip(optimizer.param_groups, rates, strict=True)
            for p in group["params"]
        )

    everything = list(model.parameters())
    assert decays(how, everything) == [("body.bias", 0, 1), ("body.weight", 0.1, 1), ("head.bias", 0, 1), ("head.weight", 0.1, 1)]
    assert decays(replace(how, learning_rates={"head.*": 3}), everything) == [
        ("body.bias", 0, 1), ("body.weight", 0.1, 1), ("head.bias", 0, 3), ("head.weight", 0.1, 3),
    ]  # fmt: skip
    groups = [{"params": list(model.network.body.parameters()), "weight_decay": 0.5}]
    assert decays(how, groups) == [("body.bias", 0, 1), ("body.weight", 0.5, 1)]
    with pytest.raises(LabError, match=r"^training.undecayed: 'scale' fits no parameter"):
        decays(replace(how, undecayed=["scale"]), everything)


def test_a_step_moves_each_parameter_by_its_rate(recipe: Recipe) -> None:
    data = ImageSet(torch.rand(8, 1, 5, 5), torch.arange(8) % 3, torch.arange(8))

    class Sum(Defense):
        def loss(self, model: Defended, batch: Batch) -> Tensor:
            return torch.stack([parameter.sum() for parameter in model.parameters()]).sum()

    how = replace(
        recipe, epochs=1, batch_size=8, validation=0.0, keep="last", patience=None, optimizer=partial(torch.optim.SGD, lr=0.1),
        schedule=[MultiStep(milestones=[0], factor=0.5), Piecewise(pieces=[[1, 0.2]])], learning_rates={"head.*": 10},
    )  # fmt: skip
    model = Defended(Net())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    fit(Sum(), model, data, how, 0)
    for name, parameter in model.named_parameters():
        expected = 0.1 * 0.5 * 0.2 * (10 if "head" in name else 1)
        torch.testing.assert_close(before[name] - parameter.detach(), torch.full_like(parameter, expected), atol=1e-6, rtol=0)


def test_piecewise() -> None:
    """MatConvNet's NIN: .002, .01, .02, .04 x 60, .004, here as factors of .04."""
    schedule = Piecewise(pieces=[[1, 0.05], [1, 0.25], [1, 0.5], [60, 1], [10, 0.1]])
    assert [schedule(epoch, 83) for epoch in (0, 0.9, 1, 2.5, 3, 62.9, 63, 72, 99)] == [0.05, 0.05, 0.25, 0.5, 1, 1, 0.1, 0.1, 0.1]
    for wrong in ([], [1, 2], [[0, 1]], [[1, -1]], [[1, 2, 3]]):
        with pytest.raises(LabError, match=r"^pieces: expected"):
            Piecewise(pieces=wrong)


def test_rates_and_start_are_words(run_objects: Objects) -> None:
    recipe = run_objects("+training.learning_rates={head.*: 10, bias: 2}", "+training.start=teacher")[3]
    assert (recipe.learning_rates, recipe.start) == ({"head.*": 10, "bias": 2}, "teacher")
