"""The library's verdicts are those of the command line, image by image, and its runs those of the output folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import robustbench_lab as lab
from robustbench_lab.jobs.evaluate import job
from robustbench_lab.settings.conf import compose, place_of
from robustbench_lab.settings.identity import evaluation_of, run_of
from robustbench_lab.settings.overrides import merged_overrides
from robustbench_lab.training.making import make_run

SMALL = ["backbone=small_cnn", "training.epochs=3", "training.batch_size=20", "dataset.train_size=200"]
FEW = "dataset.test_size=40"
RANDOM = "defense=rse"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a trained run."""
    root = tmp_path_factory.mktemp("outputs")
    trained(root)
    return root


def trained(root: Path, *more: str) -> Path:
    words = [*SMALL, *more, "device=cpu", f"output_root={root}"]
    cfg, choices = compose("train", words)
    with torch.random.fork_rng(devices=[]):
        return make_run(run_of(cfg, choices, words), place_of(cfg))


def evaluated(root: Path, *more: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the outcome of the command line's job."""
    words = merged_overrides([], [*SMALL, FEW, "device=cpu", f"output_root={root}", *more])
    cfg, choices = compose("evaluate", words)
    folder = job(cfg, evaluation_of(cfg, choices, words))
    with np.load(folder / "outcome.npz") as arrays:
        return json.loads((folder / "record.json").read_text()), dict(arrays)


def assert_same(result: lab.Result, record: dict[str, Any], outcome: dict[str, np.ndarray]) -> None:
    for name in ("clean", "robust", "right"):
        assert np.array_equal(getattr(result, name), outcome[name]), name
    assert np.array_equal(result.distance.astype(np.float32), outcome["distance"], equal_nan=True)
    assert result.broken_by.tolist() == [outcome["stages"][stage] if stage >= 0 else "" for stage in outcome["broken_by"]]
    told = json.loads(json.dumps(result.to_dict()))
    for name in ("clean_accuracy", "robust_interval", "n", "draws", "eot_samples", "forward_per_attacked_image", "distance_of_broken"):
        assert told[name] == record[name], name
    assert [{**stage, "seconds": 0} for stage in told["stages"]] == [{**stage, "seconds": 0} for stage in record["stages"]]
    assert told["warnings"] == record["warnings"]


class Strangers(nn.Module):
    """The same function, of which nothing is known."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.inner = model.network  # type: ignore[assignment]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.inner(x)}


def test_verdicts_and_stages_of_a_list_of_attacks(root: Path) -> None:
    attack = ["attack=worst_of", "attack.attacks.pgd.steps=10", "budget=l2", "budget.eps=0.9", "batch_size=16", "attack_seed=3"]
    record, outcome = evaluated(root, *attack, "panel=none")
    assert 0 < record["robust_correct"] < record["clean_correct"]
    assert len(set(outcome["broken_by"])) == 3
    model, images = lab.load_run([*SMALL], root), lab.load_images([*SMALL, FEW], output_root=root)
    assert (len(images), images.images.dtype, sorted(images.ids.tolist()) == list(range(40))) == (40, torch.float32, False)
    how = {"attack": lab.attack("worst_of", attacks={"pgd": {"steps": 10}}), "norm": "l2", "eps": 0.9, "batch_size": 16, "seed": 3}
    assert_same(lab.evaluate(model, images, panel=False, **how), record, outcome)
    stranger = Strangers(model).train()
    assert_same(lab.evaluate(stranger, images, panel=False, output="scores", **how), record, outcome)
    without_ids = lab.evaluate(stranger, images.images.numpy(), images.labels.numpy(), panel=False, output="scores", **how)
    assert not np.array_equal(without_ids.distance, outcome["distance"], equal_nan=True), "random numbers belong to images' ids"
    numbered = {"x": images.images.numpy(), "y": images.labels.numpy(), "ids": images.ids}
    assert_same(lab.evaluate(stranger, panel=False, output="scores", **numbered, **how), record, outcome)


def test_random_output_is_drawn_and_averaged_as_there(root: Path) -> None:
    trained(root, RANDOM, "training.epochs=1")
    words = [RANDOM, "training.epochs=1"]
    record, outcome = evaluated(
        root, *words, "attack=pgd", "attack.steps=3", "budget.eps=0.05", "verdict_draws=3", "eot_samples=2", "panel=none"
    )
    assert 0 < record["robust_correct"] < record["draws"]["robust_accuracy_mean"] * 40
    model, images = lab.load_run([*SMALL, *words], root), lab.load_images([*SMALL, *words, FEW], output_root=root)
    result = lab.evaluate(model, images, attack=lab.attack("pgd", steps=3), eps=0.05, draws=3, eot_samples=2, panel=False)
    assert_same(result, record, outcome)
    assert (result.random_output, result.draws, result.eot_samples) == (True, 3, 2)
    assert "random output: two passes over an image differ; 3 draws a verdict" in repr(result)


def test_a_panels_figures_and_warnings_are_the_records(root: Path) -> None:
    small = {"images": 12, "queries": {"queries": 20}, "random": {"draws": 20}, "longer": {"steps": 12}, "tolerance": 0, "larger": 1.01}
    words = [f"panel.{k}.{i}={w}" for k, v in small.items() if isinstance(v, dict) for i, w in v.items()]
    words += [f"panel.{k}={v}" for k, v in small.items() if not isinstance(v, dict)]
    record, outcome = evaluated(root, "attack=fgsm_predicted", "budget.eps=0.1", *words)
    assert record["warnings"]
    model, images = lab.load_run(SMALL, root), lab.load_images([*SMALL, FEW], output_root=root)
    result = lab.evaluate(model, images, attack="fgsm_predicted", eps=0.1, panel=small)
    assert_same(result, record, outcome)
    assert result.panel == {name: entry for name, entry in record["panel"].items() if name != "key"}
    checked = lab.check(model, images, eps=0.1, panel={**small, "strongest": None})
    assert (checked.n, checked.accuracy) == (12, record["panel"]["accuracy"])
    assert [sign["code"] for sign in checked.signs] == [
        sign["code"] for sign in record["warnings"] if sign["code"] != "random_draws_beat_the_attack"
    ]
    assert all(f"warning {sign['code']}: {sign['message']}" in repr(checked) for sign in checked.signs)


def test_a_run_is_found_by_words_name_fingerprint_and_path(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = next(path for path in (root / "runs").iterdir() if "standard" in path.name)
    expected = lab.load_run(SMALL, root).state_dict()
    state = torch.random.get_rng_state()
    monkeypatch.setenv("ROBUSTBENCH_LAB_OUTPUTS", str(root))
    for name in (" ".join(SMALL), folder.name, folder.name.rpartition("-")[2], str(folder), folder):
        model = lab.load_run(name)
        assert not model.training
        assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(lab.load_images(folder.name, "train")) == 200
    with pytest.raises(
        lab.LabError, match=rf"no finished run for digits/small_cnn/standard seed 5 .*nearest: {folder.name}, which differs in seed"
    ):
        lab.load_run([*SMALL, "seed=5"], root)
    with pytest.raises(lab.LabError, match=rf"run: no finished run 'digits-small_cnn' in .*nearest: .*{folder.name}"):
        lab.load_run("digits-small_cnn", root)
    shutil.copytree(folder, tmp_path / "runs" / folder.name)
    weights = tmp_path / "runs" / folder.name / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(lab.LabError, match=r"model\.safetensors"):
        lab.load_run(SMALL, tmp_path)
