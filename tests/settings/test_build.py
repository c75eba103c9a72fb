"""From a config to objects: only such as may be named, only where their kind is wanted, and errors with the whole key."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.optim import Optimizer

from robustbench_lab.attacks.base import Attack
from robustbench_lab.defenses.base import Defense
from robustbench_lab.errors import LabError
from robustbench_lab.models.front import Front
from robustbench_lab.settings.build import build
from robustbench_lab.settings.conf import compose, plain
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.threats import Budget
from robustbench_lab.training.recipe import Recipe
from robustbench_lab.training.runs import objects

BUDGET = {"_target_": "robustbench_lab.threats.Budget", "norm": "l2", "eps": 1}
FGSM = {"_target_": "robustbench_lab.attacks.fgsm.FGSM", "loss": "ce", "labels": "ground_truth", "eot_samples": 1}
BITS = {"_target_": "robustbench_lab.fronts.bit_depth.BitDepth", "bits": 1}
SGD = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.5}
ONE_CYCLE = {"_target_": "robustbench_lab.training.recipe.OneCycle", "warmup": 0.3, "start": 0.1, "end": 0}
Maker = Callable[..., Optimizer]
Schedule = Callable[[float, int], float]


def test_build_makes_objects_all_the_way_down() -> None:
    assert build(SGD, "optimizer", Maker).keywords == {"lr": 0.5}
    assert build([BUDGET], "b", Sequence[Budget])[0].norm == "l2"
    assert build({"a": [1, None]}, "x", Mapping[str, Any]) == {"a": [1, None]}
    assert build({"one": BUDGET}, "b", Mapping[str, Budget])["one"].norm == "l2"
    assert build(ONE_CYCLE, "s", Schedule)(0, 10) == pytest.approx(0.1)
    assert isinstance(build({**BITS, "_partial_": True}, "f", Callable[[], Front])(), Front)
    assert build(BUDGET, "b", Budget | None).eps == 1
    assert build(None, "b", Budget | None) is None


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "torch.load",
        "robustbench_labx.y",
        "subprocess.run",
        "torch.optimx",
        "robustbench_lab.multirun.logging.os.system",  # through what a module imports
        "robustbench_lab.multirun.import_module",
        "robustbench_lab.multirun.sys",
        "robustbench_lab.threats.math.inf",
        "robustbench_lab.threats.dataclass",  # there, but defined elsewhere
        "torch.optim.sgd.torch.load",
        "robustbench_lab.threats.Bugdet",
        "robustbench_lab.nowhere.Budget",
        "robustbench_lab.",
        "robustbench_lab..threats.Budget",
        "robustbench_lab.threats.Budget.project",
        "",
        None,
        7,
        ["robustbench_lab.threats.Budget"],
    ],
)
@pytest.mark.parametrize("wanted", [Attack, Callable[..., Attack]])
def test_what_the_packages_do_not_define_is_refused(target: object, wanted: object) -> None:
    with pytest.raises(
        LabError, match=r"^defense\.attack\._target_: expected a class or function that robustbench_lab or torch.optim defines"
    ):
        build({"_target_": target, "command": "true"}, "defense.attack", wanted)


@pytest.mark.parametrize(
    "target",
    [
        "robustbench_lab.storage.files.write_bytes",
        "robustbench_lab.multirun.job",
        "robustbench_lab.training.checkpoints.write_tensors",
        "torch.optim.SGD",
    ],
)
def test_a_function_of_ours_that_makes_no_such_object_is_not_called(target: str, tmp_path: Path) -> None:
    node = {"_target_": target, "path": str(tmp_path / "made"), "content": "x"}
    for wanted in (Attack, Budget, Schedule, Maker, float, Any, Sequence[int]):
        with pytest.raises(LabError, match=r"^k: expected "):
            build(node, "k", wanted)
        with pytest.raises(LabError, match=r"^k: expected "):
            build({**node, "_partial_": True}, "k", Attack)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("node", "wanted", "said"),
    [
        (BUDGET, Attack, "an Attack, got robustbench_lab.threats.Budget"),
        (FGSM, Budget, "a Budget, got robustbench_lab.attacks.fgsm.FGSM"),
        (FGSM, Schedule, "a function, got "),  # it can be called, with other arguments
        (FGSM, Callable[[Tensor, Tensor], Tensor], "a function, got "),
        (ONE_CYCLE, Callable[[Tensor, Tensor], Tensor], "a function, got "),
        (BUDGET, float, "a finite number, got an object "),
        (BUDGET, str, "a text, got an object "),
        (BUDGET, Any, "anything, got an object "),
        (BUDGET, Sequence[float], r"a list \(each a finite number\), got an object "),
        (BITS, Callable[[], Front], "what makes a Front, with _partial_: true, got"),
        ({**BITS, "_partial_": True}, Front, "a Front, got what makes "),
        ({**BUDGET, "_partial_": True}, Maker, "a function, got what makes "),
    ],
)
def test_an_object_of_another_kind_is_refused(node: Mapping[str, Any], wanted: object, said: str) -> None:
    with pytest.raises(LabError, match=f"^k: expected {said}"):
        build(node, "k", wanted)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": BUDGET["_target_"], "norm": "l2"}, r"^budget: .*'eps'"),
        ({**BUDGET, "more": 2}, r"^budget: .*'more'"),
        ({**BUDGET, "eps": -1}, r"^budget\.eps: expected .*, got -1"),
        ({**BUDGET, "eps": BUDGET}, r"^budget\.eps: expected a number >= 0, such as .*, got an object \(robustbench_lab.threats.Budget\)"),
        ({**BUDGET, "eps": [{"_target_": "robustbench_lab.multirun.sys.exit"}]}, r"^budget\.eps\[0\]: expected anything, got an object"),
        ({**BUDGET, "_partial_": "yes"}, r"^budget\._partial_: expected true or false, got 'yes'"),
        ({"norm": "l2", "eps": 1}, r"^budget\._target_: expected the class of a Budget, got none"),
        (8, r"^budget: expected a Budget, got 8"),
        ([BUDGET], r"^budget\[0\]: expected anything, got an object"),
    ],
)
def test_a_wrong_knob_is_named(node: object, message: str) -> None:
    with pytest.raises(LabError, match=message):
        build(node, "budget", Budget)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"speed": 1}, "^optimizer: .*'speed'"),
        ({"lr": True}, "^optimizer.lr: expected a number, got True"),
        ({"lr": float("nan")}, "^optimizer.lr: expected a number, got nan"),
        ({"lr": 1e300}, "^optimizer.lr: expected a number, got 1e"),
        ({"lr": BUDGET}, "^optimizer.lr: expected .*got robustbench_lab.threats.Budget"),
        ({"nesterov": 1}, "^optimizer.nesterov: expected true or false, got 1"),
    ],
)
def test_a_wrong_knob_of_torchs_optimisers_is_named(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(LabError, match=said):
        build({**SGD, **knobs}, "optimizer", Maker)


def test_a_wrong_knob_deep_inside_is_named_in_full() -> None:
    cfg, _ = compose("train", ["defense=fm", "defense.attack.steps=0"])
    with pytest.raises(LabError, match=r"^defense\.attack\.steps: "):
        build(plain(cfg, "defense")["defense"], "defense", Defense)


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("training.optimizer={_target_: robustbench_lab.storage.files.write_bytes, _partial_: true}", "training.optimizer"),
        ("training.schedule._target_=robustbench_lab.threats.Budget", "training.schedule"),
        ("training.schedule=3", "training.schedule"),
        ("training.optimizer.lr={_target_: robustbench_lab.multirun.sys.exit}", "training.optimizer.lr"),
        ("dataset.normalise={_target_: robustbench_lab.backbones.mlp.MLP}", "dataset.normalise"),
        ("dataset.normalise=1", "dataset.normalise"),
        ("dataset.train_size={_target_: robustbench_lab.multirun.sys.exit}", "dataset.train_size"),
        ("+backbone.width={_target_: robustbench_lab.multirun.sys.exit}", "backbone.width"),
        ("defense.attack=1e9", "defense.attack"),
        ("defense.budget=1/3/5", "defense.budget"),
        ("defense.attack.loss={_target_: robustbench_lab.attacks.fgsm.FGSM, loss: ce}", "defense.attack.loss"),
        ("defense._target_=robustbench_lab.attacks.fgsm.FGSM", "defense"),
        ("~defense._target_", "defense._target_"),
        ("~dataset._target_", "dataset._target_"),
        ("~training._target_", "training._target_"),
        ("backbone._target_=torch.optim.SGD", "backbone"),
    ],
)
def test_no_word_of_a_run_names_what_its_place_does_not_take(word: str, key: str) -> None:
    with pytest.raises(LabError, match=rf"^{re.escape(key)}\b"):
        objects(run_at_words(["defense=adversarial_training", word]))


def test_a_recipe_is_built_from_its_file() -> None:
    cfg, _ = compose("train", ["training=quick"])
    assert isinstance(build(plain(cfg, "training")["training"], "training", Recipe), Recipe)
