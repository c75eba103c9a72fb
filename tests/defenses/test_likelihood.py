"""Densities as runs: trained by their likelihood on pixels, told in bits per dimension, resumed bit for bit, and no classifiers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from robustbench_lab.backbones.density import Density
from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.jobs.evaluate import job
from robustbench_lab.settings.conf import Place, compose
from robustbench_lab.settings.identity import evaluation_of, run_at_words
from robustbench_lab.training.loop import fit
from robustbench_lab.training.making import make_run

SMALL = ["defense=likelihood", "backbone=pixelcnn_small", "backbone.layers=2", "backbone.filters=8", "backbone.mixtures=2"]
RECIPE = ["training=pixelcnn_quick", "training.epochs=2", "training.batch_size=16"]

Objects = Callable[..., Any]


def test_a_density_becomes_likelier_and_tells_its_bits(run_objects: Objects, digits: tuple[ImageSet, ImageSet]) -> None:
    _, model, defense, recipe = run_objects(*SMALL, *RECIPE, "training.epochs=3", "training.validation=0.25")
    assert isinstance(model.network, Density), "pixels as they are: no first layer"
    images = digits[0].subset(torch.arange(160))
    state = fit(defense, model, images, recipe, 0)
    bits = [row["bits_per_dimension"] for row in state.history]
    assert bits[0] > bits[-1] > 0
    assert "validation_accuracy" not in state.history[-1]
    model.eval()
    for positions, name in ((torch.arange(120), "bits_per_dimension"), (torch.arange(120, 160), "validation_bits_per_dimension")):
        x = next(images.batches(positions, len(positions)))[0]
        assert model.network.bits_per_dimension(x).mean().item() == pytest.approx(state.history[-1][name], rel=1e-5)
    assert model.fast_copy is None


def test_the_loss_is_the_mean_of_bits_per_dimension(run_objects: Objects, digits: tuple[ImageSet, ImageSet]) -> None:
    _, model, defense, recipe = run_objects(*SMALL, *RECIPE, "training.epochs=1", "training.optimizer.lr=1e-12")
    images = digits[0].subset(torch.arange(32))
    told = fit(defense, model, images, recipe, 0).history[0]["loss_model"]
    x = next(images.batches(torch.arange(32), 32))[0]
    assert told == pytest.approx(model.network.bits_per_dimension(x).mean().item(), rel=1e-4)


def test_the_best_epoch_is_the_likeliest(run_objects: Objects, digits: tuple[ImageSet, ImageSet]) -> None:
    words = ["training.epochs=3", "training.validation=0.5", "training.keep=best", "training.averaging=null"]
    _, model, defense, recipe = run_objects(*SMALL, *RECIPE, *words, "training.optimizer.lr=0.3")  # so large that it gets worse
    state = fit(defense, model, digits[0].subset(torch.arange(64)), recipe, 0)
    bits = [row["validation_bits_per_dimension"] for row in state.history]
    assert state.best_epoch == bits.index(min(bits)) + 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backbone=pixelcnn_small"], r"^backbone: expected a classifier for defense=standard, got pixelcnn_small, .* defense=likelihood"),
        (["defense=pni", "backbone=pixelcnn"], r"^backbone: expected a classifier for defense=pni"),
        (["defense=likelihood"], r"^backbone: expected a density of images for defense=likelihood, such as backbone=pixelcnn_small, got"),
    ],
)
def test_a_backbone_of_the_other_kind_is_refused(words: list[str], said: str, run_objects: Objects) -> None:
    with pytest.raises(LabError, match=said):
        run_objects(*words)


def test_a_density_is_not_evaluated(tmp_path: Path) -> None:
    """Before anything is trained."""
    words = [*SMALL, *RECIPE, "train=true", f"output_root={tmp_path}"]
    cfg, choices = compose("evaluate", words)
    with pytest.raises(LabError, match=r"^backbone: expected a classifier to attack, got pixelcnn_small, a density of images"):
        job(cfg, evaluation_of(cfg, choices, words))
    assert not list(tmp_path.rglob("run.json"))


def test_a_trained_density_says_what_its_weights_were_kept_by(tmp_path: Path) -> None:
    run = run_at_words([*SMALL, *RECIPE, "training.epochs=1", "training.validation=0.5", "training.keep=best", "dataset.train_size=40"])
    make_run(run, Place(tmp_path, {"root": str(tmp_path), "download": False, "workers": 0}, "cpu"))
    record = run.at(tmp_path).record
    assert (record["kept_by"], record["kept_epoch"]) == ("validation likelihood", 1)
