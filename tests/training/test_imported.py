"""Runs that someone else has trained: made at once, measured, and attacked as any other."""

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from robustbench_lab.errors import LabError
from robustbench_lab.jobs.evaluate import job
from robustbench_lab.settings.conf import compose, place_of
from robustbench_lab.settings.identity import evaluation_of, run_at_words, run_of
from robustbench_lab.settings.overrides import merged_overrides, written_out
from robustbench_lab.training import imported
from robustbench_lab.training.making import make_run
from robustbench_lab.training.runs import objects

TRAINED = ["training.epochs=2", "training.validation=0"]
HERE = ["device=cpu"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An output folder with a trained run of ours, and its weights as a stranger's checkpoint."""
    root = tmp_path_factory.mktemp("trained")
    words = [*TRAINED, *HERE, f"output_root={root}"]
    cfg, choices = compose("train", words)
    with torch.random.fork_rng(devices=[]):
        folder = make_run(run_of(cfg, choices, words), place_of(cfg))
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        if name.startswith("network.backbone."):
            state["module." + name.removeprefix("network.backbone.").replace("body.stage", "layer").replace("norm", "bn")] = tensor
    order = sorted(state, key=lambda name: (not name.startswith("module.body"), "head" in name, name))
    torch.save({"state_dict": {name: state[name] for name in order}, "epoch": 3}, root / "theirs.pt")
    return root, root / "theirs.pt"


def evaluated(words: list[str]) -> tuple[dict[str, Any], dict[str, np.ndarray], Path]:
    words = merged_overrides([], [*words, "panel=none"])
    cfg, choices = compose("evaluate", words)
    folder = job(cfg, evaluation_of(cfg, choices, words))
    with np.load(folder / "outcome.npz") as arrays:
        return json.loads((folder / "record.json").read_text()), dict(arrays), folder


def test_a_strangers_checkpoint_gives_the_verdicts_of_the_run_that_it_came_from(trained: tuple[Path, Path]) -> None:
    root, theirs = trained
    attack = ["attack=apgd_ce", "attack.steps=5", "budget.eps=0.1", "dataset.test_size=100", *HERE, f"output_root={root}"]
    _, ours, _ = evaluated([*TRAINED, *attack])
    record, foreign, folder = evaluated([f"weights={theirs}", *attack])
    for name in ("clean", "robust", "right", "distance", "broken_by"):
        assert np.array_equal(ours[name], foreign[name], equal_nan=ours[name].dtype.kind == "f"), name
    assert 0 < record["robust_correct"] < record["clean_correct"]
    run = json.loads((folder.parents[1] / "run.json").read_text())
    assert (run["epochs"], run["imported"]["file"], run["imported"]["n"]) == (0, "theirs.pt", 360)
    assert "names differ: " in run["imported"]["matched"]
    assert run["imported"]["warnings"] == record["warnings"] == []


def test_the_same_file_under_another_name_is_the_same_run_and_another_file_is_not(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, theirs = trained
    (tmp_path / "copy.pt").write_bytes(theirs.read_bytes())
    name = run_at_words([f"weights={theirs}"]).name
    assert run_at_words([f"weights={tmp_path / 'copy.pt'}", "training.claimed_clean=50", "training.images=3"]).name == name
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "copy.pt")
    assert run_at_words([f"weights={tmp_path / 'copy.pt'}"]).name != name


def test_another_normalisation_that_is_clearly_better_is_told(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, theirs = trained
    attack = ["attack=fgsm", "dataset.test_size=20", *HERE, f"output_root={tmp_path}"]
    record, _, _ = evaluated([f"weights={theirs}", "normalise={mean: [0], std: [4]}", *attack])
    (warning,) = (warning for warning in record["warnings"] if warning["code"] == "preprocessing")
    assert warning["word"] == "normalise=dataset"
    assert warning["other"] > warning["asked"] + 0.2
    assert f"{100 * warning['asked']:.2f} % under the asked normalisation and {100 * warning['other']:.2f} %" in warning["message"]


def test_a_claim_is_held_against_what_is_measured(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, theirs = trained
    words = merged_overrides([], [f"weights={theirs}", *HERE, f"output_root={tmp_path}"])

    def claimed(percent: float) -> Path:
        said = [*words, f"training.claimed_clean={percent}"]
        cfg, choices = compose("train", said)
        return make_run(run_of(cfg, choices, said), place_of(cfg))

    with pytest.raises(LabError, match=r"^training\.claimed_clean: expected 20 %, measured [\d.]+ % on 360 test images"):
        claimed(20)
    assert not list(tmp_path.glob("runs/*/run.json")), "nothing counts that is not what was claimed"
    folder = claimed(_measured(theirs, tmp_path))
    with pytest.raises(LabError, match=r"^training\.claimed_clean: expected 20 %"):
        claimed(20)  # of a finished run too
    assert (folder / "run.json").exists()


def _measured(theirs: Path, tmp_path: Path) -> float:
    words = merged_overrides([], [f"weights={theirs}", *HERE, f"output_root={tmp_path / 'other'}"])
    cfg, choices = compose("train", words)
    folder = make_run(run_of(cfg, choices, words), place_of(cfg))
    return round(100 * json.loads((folder / "run.json").read_text())["imported"]["clean_accuracy"], 2)


def test_warnings_by_hand() -> None:
    """Of 100 images 50 are right; another layer has 14 of those wrong and 32 others right: 18 more, 46 discordant; 3 sqrt(46) = 20.3."""
    right = np.arange(100) < 50
    told = {"n": 100, "clean_accuracy": 0.5}
    for gained, found in ((32, False), (36, True)):  # 36: 22 more, 3 sqrt(50) = 21.2
        other = right.copy()
        other[:14], other[50 : 50 + gained] = False, True
        codes = [warning["code"] for warning in imported._warnings(told, right, {"normalise=none": other}, classes=10)]
        assert codes == (["preprocessing"] if found else [])
    chance = imported._warnings({"n": 100, "clean_accuracy": 0.16}, np.arange(100) < 16, {}, classes=10)  # Wilson: .101 to .244
    assert chance == []
    chance = imported._warnings({"n": 100, "clean_accuracy": 0.15}, np.arange(100) < 15, {}, classes=10)  # .093 to .233
    assert [warning["code"] for warning in chance] == ["at_chance"]


@pytest.mark.parametrize(
    ("words", "long"),
    [
        (["weights=/a b.pt", "seed=1"], ["training=imported", "training.weights=/a b.pt", "seed=1"]),
        (["weights=a,b"], ["training=imported", "training.weights=a,b"]),
        (["normalise=none"], ["normalise@dataset.normalise=none"]),
        (["normalise=dataset"], []),
        (["output=probabilities"], ["backbone.gives=probabilities"]),
        (
            ["normalise={mean: [0, 0.5], std: [1, 1]}"],
            ["normalise@dataset.normalise=mean_std", "dataset.normalise.mean=[0,0.5]", "dataset.normalise.std=[1,1]"],
        ),
        (["dataset.normalise.mean=[0]", "--help"], ["dataset.normalise.mean=[0]", "--help"]),
    ],
)
def test_short_words(words: list[str], long: list[str]) -> None:
    assert written_out(words) == long


def test_a_normalisation_of_other_keys() -> None:
    with pytest.raises(LabError, match=r"^normalise=\{mean: \[0\]\}: expected normalise=\{mean: "):
        written_out(["normalise={mean: [0]}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training=imported"], r"training\.weights: expected a file, or backbone=callable .*, got None"),
        (
            ["weights=https://x.org/w.pt"],
            r"training\.weights: expected a file on this machine; fetch it first, .* got 'https://x\.org/w\.pt'",
        ),
        (["weights=/nowhere/w.pt"], r"training\.weights: expected a file, but /nowhere/w\.pt is none"),
        (["weights=THEIRS", "backbone=resnet20"], r"training\.weights: \S+ does not fit this network: missing in it: "),
        (["weights=THEIRS", "dataset.normalise.std=[0]"], r"dataset\.normalise\.std: expected a list of finite numbers > 0"),
    ],
)
def test_what_is_refused_leaves_nothing_that_counts(words: list[str], said: str, trained: tuple[Path, Path], tmp_path: Path) -> None:
    words = [word.replace("THEIRS", str(trained[1])) for word in words]
    with pytest.raises(LabError, match=f"^{said}"):
        evaluated([*words, "attack=fgsm", *HERE, f"output_root={tmp_path}"])
    assert not list(tmp_path.glob("runs/*/run.json"))


def test_a_callable_with_weights_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calling convention of RobustBench: a function of names that returns a network with its weights and its normalisation."""
    from robustbench_lab.settings import build as building

    (tmp_path / "somebench").mkdir()
    (tmp_path / "somebench" / "__init__.py").write_text("")
    (tmp_path / "somebench" / "utils.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def load_model(model_name, dataset='cifar10', threat_model='Linf'):\n"
        "    assert (model_name, dataset, threat_model) == ('Somebody2020', 'digits', 'L2')\n"
        "    torch.manual_seed(3)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(building, "PACKAGES", (*building.PACKAGES, "somebench"))
    attack = ["attack=fgsm", "dataset.test_size=20", *HERE, f"output_root={tmp_path}", "normalise=none", "training=imported"]
    arguments = "{model_name: Somebody2020, dataset: digits, threat_model: L2}"
    _, _, folder = evaluated([*attack, "backbone=callable", "backbone.call=somebench.utils.load_model", f"backbone.arguments={arguments}"])
    assert "-callable_load_model-" in folder.parents[1].name
    weights = load_file(folder.parents[1] / "model.safetensors")["network.backbone.module.1.weight"]
    torch.manual_seed(3)
    assert torch.equal(weights, torch.nn.Linear(64, 10).weight)


def test_a_run_of_ours_reads_back_whole(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """Its model.safetensors says everything, the first layer too."""
    root, _ = trained
    (folder,) = (
        path.parent for path in root.glob("runs/*/model.safetensors") if json.loads((path.parent / "run.json").read_text())["epochs"]
    )
    _, _, mine = evaluated(
        [f"weights={folder / 'model.safetensors'}", "attack=fgsm", "dataset.test_size=20", *HERE, f"output_root={tmp_path}"]
    )
    ours, theirs = load_file(folder / "model.safetensors"), load_file(mine.parents[1] / "model.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_strangers_network_of_the_examples_is_ours_under_its_own_names(tmp_path: Path) -> None:
    spec = spec_from_file_location("strangers_resnet20", Path(__file__).parents[2] / "examples" / "strangers_resnet20.py")
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    theirs = nn.ModuleDict({"module": script.ResNet20()})
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)  # type: ignore[operator, union-attr]
    torch.save({"state_dict": theirs.state_dict(), "best_prec1": np.float64(91.2)}, tmp_path / "w.pt")
    x, words = torch.rand(4, 3, 32, 32), ["dataset=cifar10", "backbone=resnet20", "normalise=imagenet", f"weights={tmp_path / 'w.pt'}"]
    told = {}
    for shortcut in ("zeros_around", "zeros"):
        _, model, _, recipe = objects(run_at_words([*words, f"backbone.shortcut={shortcut}"]))
        imported.bring(model, recipe)
        told[shortcut] = model.eval()(x)
    expected = theirs.eval()["module"]((x - script.MEAN) / script.STD)
    assert torch.allclose(told["zeros_around"], expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(told["zeros"], expected, atol=1e-2)


def test_a_network_of_torchvision_from_end_to_end(tmp_path: Path) -> None:
    for split, number in (("train", 3), ("test", 6)):
        for label in ("a", "b"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for place in range(number):
                pixels = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8).numpy()
                Image.fromarray(pixels).save(folder / f"{place}.png")
    torch.manual_seed(0)
    torch.save({"model": torchvision.models.resnet18(num_classes=2).state_dict()}, tmp_path / "w.pt")
    network = ["backbone=callable", "backbone.call=torchvision.models.resnet18", "backbone.arguments={num_classes: 2}"]
    pictures = ["dataset=image_folder", f"dataset.path={tmp_path / 'pictures'}", "dataset.classes=2", "dataset.size=32"]
    attack = ["attack=apgd_ce", "attack.steps=2", "normalise=imagenet", *HERE, f"output_root={tmp_path / 'out'}"]
    record, outcome, folder = evaluated([f"weights={tmp_path / 'w.pt'}", *network, *pictures, *attack])
    assert record["n"] == len(outcome["robust"]) == 12
    run = json.loads((folder.parents[1] / "run.json").read_text())
    assert run["imported"]["matched"] == "every tensor by its name"
    assert "-callable_resnet18-" in folder.parents[1].name
