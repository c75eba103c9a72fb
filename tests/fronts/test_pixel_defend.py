"""PixelDefend: its density comes from another run, is never trained, is in the run's weights, and moves images within the ball."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from robustbench_lab.datasets.base import ImageSet
from robustbench_lab.errors import LabError
from robustbench_lab.fronts.pixel_defend import PixelDefend
from robustbench_lab.models.defended import Defended
from robustbench_lab.settings.conf import Place
from robustbench_lab.settings.identity import run_at_words
from robustbench_lab.storage.files import Missing
from robustbench_lab.training.loop import fit
from robustbench_lab.training.making import make_run
from robustbench_lab.training.runs import load_run

TINY = ("layers=2", "filters=8", "mixtures=2")
KEY = "defense.fronts.pixel_defend"
TEACHER = ["defense=likelihood", "backbone=pixelcnn_small", *(f"backbone.{knob}" for knob in TINY), "training=pixelcnn_quick"]
WORDS = ["defense=preprocessed", "defense.fronts=[pixel_defend]", "backbone=small_cnn", *(f"{KEY}.density.{knob}" for knob in TINY)]

Objects = Callable[..., Any]


def test_its_density_is_the_teachers_and_stays_it(run_objects: Objects, digits: tuple[ImageSet, ImageSet]) -> None:
    teacher = run_objects(*TEACHER)[1]
    _, model, defense, recipe = run_objects(*WORDS, "training.epochs=2")
    front = model.fronts[0]
    fit(defense, model, digits[0].subset(torch.arange(30)), recipe, 0, teacher=teacher)
    assert all(torch.equal(tensor, front.density.state_dict()[name]) for name, tensor in teacher.network.state_dict().items())
    assert front.density is not teacher.network
    assert not any(parameter.requires_grad for parameter in front.parameters())
    assert not front.train().density.training, "no dropout"
    assert not len(model.without_fixed_fronts().fronts)
    x = digits[1].images[:4].float() / (255 if digits[1].images.dtype == torch.uint8 else 1)
    shown = front(x.requires_grad_())
    torch.testing.assert_close(shown, teacher.network.purified(x, 16))
    level = torch.round(x.detach() * 255)
    assert 0 < (shown * 255 - level).abs().max() <= 16 + 1e-3
    seen = torch.randn_like(x)
    assert torch.equal(torch.autograd.grad((shown * seen).sum(), x)[0], seen), "the gradient of the identity"


def test_without_its_density_it_names_the_run_to_train(run_objects: Objects) -> None:
    model = run_objects(*WORDS)[1]
    said = (
        "pixel_defend: expected a density that has been trained.*train defense=likelihood backbone=pixelcnn_small training=pixelcnn_quick"
    )
    with pytest.raises(LabError, match=said):
        model(torch.rand(1, 1, 8, 8))


def test_a_finished_run_is_whole_without_its_teacher(tmp_path: Path) -> None:
    """Trained with its teacher, loaded without: the density is in its weights."""
    short = ["training.epochs=1", "dataset.train_size=20"]
    teacher = f"{KEY}.teacher=[{','.join(TEACHER)}]"
    run = run_at_words([*WORDS, teacher, "defense.train_on=originals", *short])
    make_run(run, Place(tmp_path, {"root": str(tmp_path), "download": False, "workers": 0}, "cpu"))
    assert run.teacher is not None
    gone = run.teacher.at(tmp_path).path
    for path in sorted(gone.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(Missing):
        _ = run.teacher.at(tmp_path).digest
    _, model, _ = load_run(run, tmp_path, torch.device("cpu"))
    x = torch.rand(2, 1, 8, 8)
    assert not torch.equal(model.fronts(x), x)


def test_a_density_of_other_knobs_than_the_teachers_is_refused(run_objects: Objects) -> None:
    teacher = run_objects(*TEACHER)[1]
    for word, said in [
        (
            f"{KEY}.density.filters=4",
            r"^density: expected that of the teacher, whose network is SmallPixelCNN, got SmallPixelCNN, maybe",
        ),
        (f"{KEY}.density.levels=16", r"^density\.levels: expected 256, as the teacher's, got 16"),
    ]:
        front = run_objects(*WORDS, word)[1].fronts[0]
        with pytest.raises(LabError, match=said):
            front.learn_from(teacher)
        assert not front.has_learned
    with pytest.raises(LabError, match=r"^density: .*whose network is Linear, .*name the same backbone in both"):
        front.learn_from(Defended(nn.Linear(2, 2)))


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (f"{KEY}.strength=0", rf"^{KEY}\.strength: expected a whole number >= 1 and <= 255, in levels of 256, got 0"),
        (f"{KEY}.strength=256", rf"^{KEY}\.strength: "),
        (f"{KEY}.strength=1.5", rf"^{KEY}\.strength: "),
        (f"{KEY}.density.image_size=28", rf"^{KEY}\.density: expected one of images \[1, 8, 8\]"),
        (f"{KEY}.density._partial_=false", rf"^{KEY}\.density: expected what makes a Density, with _partial_: true"),
    ],
)
def test_what_does_not_fit_is_named(word: str, said: str, run_objects: Objects) -> None:
    with pytest.raises(LabError, match=said):
        run_objects(*WORDS, word)


def test_the_same_density_is_made_for_each_model_anew(run_objects: Objects) -> None:
    fronts = [run_objects(*WORDS)[1].fronts[0] for _ in range(2)]
    assert isinstance(fronts[0], PixelDefend)
    assert fronts[0].density is not fronts[1].density
