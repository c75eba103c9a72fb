"""AlexNet and ResNet-18 for ImageNet end to end: from a folder of pictures and a file of weights through fine-tuning to a verdict."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import evaluating
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from robustbench_lab.defenses.base import Defense
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.threats import Budget
from robustbench_lab.training.loop import accuracy, fit
from robustbench_lab.training.runs import objects

SIZES = {"alexnet": 64, "resnet18_imagenet": 48}
SHADES = {"dark": 30, "light": 170}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes of six pictures for training and three for testing, of 64x64 pixels."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name, shade in SHADES.items():
            folder = tmp_path / "pictures" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = shade + rng.integers(0, 60, (64, 64, 3))
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "pictures"


@pytest.mark.parametrize("name", SIZES)
def test_they_are_fine_tuned_from_a_file_and_judged(name: str, pictures: Path, tmp_path: Path, built: Callable[..., Any]) -> None:
    size = SIZES[name]
    words = [
        f"backbone={name}", "dataset=image_folder", f"dataset.path={pictures}", "dataset.classes=2", f"dataset.size={size}",
        f"dataset.resize={size}", "training=deep_defense_imagenet", "training.batch_size=4", "training.optimizer.lr=0.01",
    ]  # fmt: skip
    if name == "resnet18_imagenet":  # AlexNet's file would be of 230 MB
        backbone = objects(run_at_words([*words, "seed=5"]))[1].get_submodule("network.backbone")
        torch.nn.init.zeros_(backbone.get_parameter("head.weight"))
        save_file(backbone.state_dict(), tmp_path / "weights.safetensors")
        words.append(f"training.weights={tmp_path / 'weights.safetensors'}")
    dataset, model, _, recipe = objects(run_at_words(words))
    before = {path: parameter.detach().clone() for path, parameter in model.named_parameters() if path.endswith("bias")}
    train, test = (dataset.load(split, root=tmp_path, download=False, workers=0) for split in ("train", "test"))
    begun = []

    class Watching(Defense):
        def prepare(self, model: Defended, *others: object) -> None:
            begun.append(bool(model.get_parameter("network.backbone.head.weight").any()))

    state = fit(Watching(), model, train, recipe, seed=0)
    assert (state.epoch, begun) == (1, [recipe.weights is None])
    assert all((parameter != before[path]).any() for path, parameter in model.named_parameters() if path in before)
    outcome = evaluating.judged(model.eval(), test, built("attack", "fgsm"), Budget("linf", 8 / 255), batch_size=6)
    assert outcome.done.all()
    assert outcome.clean.mean() == accuracy(model, test, torch.arange(6), 6)
    assert (outcome.right <= outcome.clean_right).all()
