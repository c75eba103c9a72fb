"""Defenses that learn from another run: examples made once, and distillation, by hand."""

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.defenses.base import Batch
from robustbench_lab.errors import LabError
from robustbench_lab.models.defended import Defended
from robustbench_lab.randomness import ImageRandom
from robustbench_lab.settings.conf import compose, place_of
from robustbench_lab.settings.identity import run_at_words, run_of
from robustbench_lab.training.loop import fit
from robustbench_lab.training.making import make_run

N = 6


class Plane(nn.Module):
    """Logits (s, -s) with s = w x, over images [1, 1, 2]."""

    def __init__(self, w: tuple[float, float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, -score], dim=1)


def images(n: int = N) -> ImageSet:
    x = torch.full((n, 1, 1, 2), 0.5)
    return ImageSet(x, torch.zeros(n, dtype=torch.int64), torch.arange(10, 10 + n))


def batch(source: nn.Module) -> Batch:
    data = images()
    rng = ImageRandom.of(data.ids, 0)
    return Batch(data.images, data.labels, data.ids, torch.zeros(N, dtype=torch.int64), 0, rng, rng, source)


def test_examples_are_made_on_the_source(built: Callable[..., Any]) -> None:
    """The source says class 0 with w = (1, -.1); FGSM lowers x1 by .3 and raises x2 by .3, whatever the trained model is."""
    defense = built("defense", "static_adversarial_training", "defense.budget.eps=0.3")
    extra = defense.extra_images(Defended(Plane((0.0, 0.0))), Plane((1.0, -0.1)), images(300), seed=0)
    torch.testing.assert_close(extra.images, torch.tensor([0.2, 0.8]).expand(300, 1, 1, 2))
    assert extra.labels.tolist() == [0] * 300
    assert extra.ids.tolist() == [-1 - i for i in range(10, 310)]


def test_training_visits_images_and_examples_and_validates_on_images_alone(
    run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]
) -> None:
    """Of 100 images, 80 are trained on: 160 visits an epoch, 5 steps of 32; 20 are held out, and no example is made of them."""
    words = ("backbone=small_cnn", "training.epochs=1", "training.batch_size=32", "training.validation=0.2")
    _, model, defense, recipe = run_objects("defense=static_adversarial_training", *words)
    few, asked = digits[0].subset(torch.arange(100)), []
    source = run_objects("backbone=small_cnn", "seed=5")[1]

    def watch(module: nn.Module, args: tuple[Tensor], kwargs: Any = None) -> None:
        asked.append(len(args[0]))

    source.register_forward_pre_hook(watch)
    state = fit(defense, model, few, recipe, 0, teacher=source)
    assert sum(asked) >= 80
    assert state.history[0]["images_per_second"] * state.history[0]["seconds"] == pytest.approx(160)
    assert 0 <= state.history[0]["validation_accuracy"] <= 1
    assert (state.history[0]["validation_accuracy"] * 20) == pytest.approx(round(state.history[0]["validation_accuracy"] * 20))


def test_distillation_by_hand(built: Callable[..., Any]) -> None:
    """x = (.5, .5). Source w = (4, 0): logits (2, -2); at T = 2 its probabilities are s(2), s(-2). Model w = (1, 1): logits (1, -1), at
    T = 2 log probabilities log s(1), log s(-1): the loss is -(s(2) log s(1) + s(-2) log s(-1)), and pulls nothing into the source."""
    defense = built("defense", "distillation", "defense.temperature=2")
    assert defense.teacher == ["defense=tempered", "defense.temperature=2"]
    model, source = Defended(Plane((1.0, 1.0))), Plane((4.0, 0.0))
    loss = defense.loss(model, batch(source))
    sigmoid = torch.tensor([2.0, -2.0]).sigmoid(), torch.tensor([1.0, -1.0]).sigmoid().log()
    torch.testing.assert_close(loss, -(sigmoid[0] * sigmoid[1]).sum())
    loss.backward()
    assert source.w.grad is None


def test_the_teacher_s_loss_by_hand(built: Callable[..., Any]) -> None:
    """Logits (1, -1) at T = 4: -log s(.5)."""
    loss = built("defense", "tempered", "defense.temperature=4").loss(Defended(Plane((1.0, 1.0))), batch(Plane((1.0, 1.0))))
    torch.testing.assert_close(loss, -torch.tensor(0.5).sigmoid().log())


@pytest.mark.parametrize("name", ["tempered", "distillation"])
@pytest.mark.parametrize("value", ["0", "-1", "hot", "inf", "nan", "true"])
def test_a_wrong_temperature_is_named(name: str, value: str, built: Callable[..., Any]) -> None:
    with pytest.raises(LabError, match=r"^defense\.temperature: expected a finite number > 0"):
        built("defense", name, f"defense.temperature={value}")


def test_the_teacher_is_the_run_that_its_own_words_describe() -> None:
    """So that undefended runs are shared; another teacher is another run."""
    words = ["training.epochs=3", "seed=2"]
    taught = run_at_words(["defense=static_adversarial_training", *words])
    plain = run_at_words(["defense=standard", *words])
    assert taught.teacher is not None
    assert (taught.teacher.fingerprint, taught.teacher.name) == (plain.fingerprint, plain.name)
    assert plain.teacher is None
    other = run_at_words(["defense=static_adversarial_training", "defense.teacher=[defense=trades]", *words])
    assert other.fingerprint != taught.fingerprint
    hot = run_at_words(["defense=distillation", "defense.temperature=40", *words])
    assert hot.teacher == run_at_words(["defense=tempered", "defense.temperature=40", *words])


def test_the_teacher_is_trained_first_and_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["backbone=small_cnn", "training.epochs=1", "dataset.train_size=100", "device=cpu", f"output_root={tmp_path}"]
    cfg, choices = compose("train", ["defense=distillation", *words])
    run = run_of(cfg, choices, ["defense=distillation", *words])
    folder = make_run(run, place_of(cfg))
    runs = sorted(path.name.split("-")[2] for path in (tmp_path / "runs").iterdir())
    assert runs == ["distillation", "tempered"]
    teacher = next(path for path in (tmp_path / "runs").iterdir() if "tempered" in path.name)
    assert json.loads((folder / "run.json").read_text())["teacher"]["name"] == teacher.name
    made = (teacher / "run.json").stat().st_mtime_ns
    make_run(run, place_of(cfg), force=True)
    assert (teacher / "run.json").stat().st_mtime_ns == made


def test_examples_without_the_originals(run_objects: Callable[..., Any], digits: tuple[ImageSet, ImageSet]) -> None:
    """Adv. Train I of Deep Defense: an epoch visits one example of each image, and no image."""
    words = ("backbone=small_cnn", "training.epochs=1", "training.batch_size=32", "defense.examples_alone=true")
    _, model, defense, recipe = run_objects("defense=static_adversarial_training", *words)
    few, seen = digits[0].subset(torch.arange(64)), []
    asked = type(defense).augmented

    class Watched(type(defense)):  # type: ignore[misc]
        def augmented(self, batch: Batch) -> Tensor:
            seen.extend(batch.ids.tolist())
            return asked(self, batch)

    watched = Watched(**{field.name: getattr(defense, field.name) for field in fields(defense)})
    fit(watched, model, few, recipe, 0, teacher=run_objects("backbone=small_cnn", "seed=5")[1])
    assert sorted(seen) == sorted((-1 - few.ids).tolist())
