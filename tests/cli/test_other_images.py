"""A result of other images than there are now does not count: nothing goes on with it, and it is made again, with a word that says why."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from robustbench_lab.settings.identity import run_at_words

WORDS = [
    "dataset=image_folder", "dataset.path=images", "dataset.classes=2", "dataset.size=8", "dataset.resize=8", "backbone=small_cnn",
    "training.epochs=10", "training.batch_size=10", "device=cpu",
]  # fmt: skip
EVALUATE = ["evaluate", *WORDS, "attack=fgsm", "panel=none"]


def picture(path: Path, shade: int, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 60, (8, 8, 3))
    Image.fromarray((shade + noise).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def _made_once(lab_in: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a folder `images`, a dark and a bright class of 10 pictures each for training and 5 for testing; outputs with a run
    and its evaluation."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("train", 10), ("test", 5)):
        for label, (name, shade) in enumerate((("dark", 20), ("light", 170))):
            for number in range(count):
                picture(folder / "data" / "images" / split / name / f"{number}.png", shade, 1000 * label + number + 100 * (split == "test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTBENCH_LAB_DATA", str(folder / "data"))
        for words in (["train", *WORDS], EVALUATE):
            ended = lab_in(folder / "outputs", *words)
            assert ended.status == 0, ended.err
    return folder


@pytest.fixture
def images(_made_once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    shutil.copytree(_made_once / "data", root, copy_function=shutil.copyfile)  # other times of change: a copy is the same images
    monkeypatch.setenv("ROBUSTBENCH_LAB_DATA", str(root))
    return root / "images"


@pytest.fixture
def done(_made_once: Path, images: Path, outputs: Path) -> Path:
    """`outputs` with the run and the evaluation."""
    shutil.copytree(_made_once / "outputs", outputs)
    return outputs


def the(outputs: Path, pattern: str) -> dict[str, Any]:
    (path,) = outputs.glob(pattern)
    return json.loads(path.read_text())


def run_json(outputs: Path) -> dict[str, Any]:
    return the(outputs, "runs/*/run.json")


def record(outputs: Path) -> dict[str, Any]:
    return the(outputs, "runs/*/evaluate/*/record.json")


def repaint(split: Path) -> None:
    """The same names; the classes have each other's pictures, or nearly."""
    for number, path in enumerate(sorted(split.rglob("*.png"))):
        picture(path, 20 if path.parent.name == "light" else 170, 5000 + number)


def exchange(split: Path) -> None:
    """The two classes have each other's name."""
    (split / "dark").rename(split / "other")
    (split / "light").rename(split / "dark")
    (split / "other").rename(split / "light")


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch, lab: Callable[..., Any]) -> Callable[..., None]:
    """`interrupt("robustbench_lab.training.making._write_metrics", "train", ...)`: a command stopped when it comes there."""

    def call(place: str, *words: str) -> None:
        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(place, stop)
            assert lab(*words).status == 130

    return call


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`table(*words)`: the only table there is, of the one evaluation."""

    def write(*words: str) -> None:
        path = tmp_path / "table" / "paper" / "small.yaml"
        path.parent.mkdir(parents=True)
        content = {
            "title": "Small", "source": "none", "profile": "smoke", "corner": "defense", "metric": "robust_accuracy",
            "overrides": [*(word for word in WORDS if not word.startswith("device")), "attack=fgsm", "panel=none", *words],
            "rows": [{"label": "plain"}], "columns": [{"label": "FGSM"}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "table"))

    return write


@pytest.mark.parametrize("change", [repaint, exchange])
def test_a_run_of_other_images_is_trained_again(lab, done, images, change):
    before = run_json(done)
    change(images / "train")
    refused = lab(*EVALUATE)
    assert refused.status == 2
    assert "run.json: it is of other images (train) than there are now; train again" in refused.err
    again = lab("train", *WORDS)
    assert again.status == 0
    assert again.err.count("trained again: ") == 1
    assert "it is of other images (train) than there are now" in again.err
    after = run_json(done)
    assert after["model_digest"] != before["model_digest"]
    assert after["images"] != before["images"]
    assert "finished already" in lab("train", *WORDS).err


@pytest.mark.parametrize("change", [repaint, exchange])
def test_an_evaluation_of_other_images_is_made_again(lab, done, images, change):
    assert record(done)["clean_accuracy"] == 1
    change(images / "test")
    again = lab(*EVALUATE)
    assert again.status == 0
    assert again.err.count("made anew: ") == 1
    assert "it is of other images (test) than there are now" in again.err
    assert record(done)["clean_accuracy"] == 0
    assert "finished already" in lab(*EVALUATE).err


def test_a_copy_of_the_images_is_the_same_images(lab, done):
    for words in (["train", *WORDS], EVALUATE):
        assert "finished already" in lab(*words).err


def test_results_from_before_images_were_told_stay(lab, done, images):
    for path in [*done.glob("runs/*/run.json"), *done.glob("runs/*/evaluate/*/record.json")]:
        content = json.loads(path.read_text())
        assert content.pop("images")
        path.write_text(json.dumps(content))
    repaint(images / "train")
    repaint(images / "test")
    for words in (["train", *WORDS], EVALUATE):
        assert "finished already" in lab(*words).err


def test_without_the_images_what_is_finished_stays_finished(lab, done, images):
    images.rename(images.with_name("elsewhere"))
    for words in (["train", *WORDS], EVALUATE):
        assert "finished already" in lab(*words).err


def test_no_other_dataset_has_images_to_tell_of(lab, outputs, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    assert "images" not in run_json(outputs)
    assert "images" not in record(outputs)


def test_a_folder_has_one_name_however_it_is_written(done, images, tmp_path):
    (tmp_path / "link").symlink_to(images.parent)
    known = run_at_words(WORDS).fingerprint
    assert run_json(done)["fingerprint"] == known
    for path in (images, "./images/", images / ".." / "images", tmp_path / "link" / "images"):
        assert run_at_words([*WORDS, f"dataset.path={path}"]).fingerprint == known
    assert run_at_words([*WORDS, f"dataset.path={tmp_path}/images"]).fingerprint != known


def test_a_folder_outside_the_data_root_is_named_in_full(images, tmp_path):
    one, other = (run_at_words([*WORDS, f"dataset.path={path}"]) for path in ("../mine", tmp_path / "mine"))
    assert one.config["dataset"]["path"] == str(tmp_path / "mine")
    assert one.fingerprint == other.fingerprint


def test_an_interrupted_training_does_not_go_on_with_other_images(lab, outputs, images, interrupt):
    interrupt("robustbench_lab.training.making._write_metrics", "train", *WORDS)
    exchange(images / "train")
    ended = lab("train", *WORDS)
    assert ended.status == 0
    assert "trained from the start: " in ended.err
    assert "resuming" not in ended.err
    assert len((outputs / "runs" / run_at_words(WORDS).name / "metrics.jsonl").read_text().splitlines()) == 10


def test_an_interrupted_training_of_the_same_images_goes_on(lab, outputs, images, interrupt):
    interrupt("robustbench_lab.training.making._write_metrics", "train", *WORDS)
    ended = lab("train", *WORDS)
    assert "resuming" in ended.err
    assert run_json(outputs)["images"]


def test_an_interrupted_evaluation_does_not_go_on_with_other_images(lab, done, images, interrupt):
    interrupt("robustbench_lab.jobs.evaluate.record_of", *EVALUATE, "force=true")
    assert list(done.glob("runs/*/evaluate/*/outcome.partial.npz"))
    exchange(images / "test")
    ended = lab(*EVALUATE)
    assert "starting afresh, because" in ended.err
    assert "of other images (test)" in ended.err
    assert record(done)["clean_accuracy"] == 0


def test_a_panel_of_other_images_is_made_again(lab, done, images):
    words = [*EVALUATE, "panel=default"]
    assert lab(*words).status == 0
    assert record(done)["panel"]["clean_accuracy"] == 1
    assert "images" not in record(done)["panel"]
    exchange(images / "test")
    ended = lab(*words)
    assert ended.status == 0, ended.err
    assert ended.err.count("of other images (test)") == 2, "of the record and of the panel"
    assert record(done)["panel"]["clean_accuracy"] == 0


def test_examples_crafted_on_other_images_are_not_tried(lab, done, images, monkeypatch):
    monkeypatch.setattr("robustbench_lab.evaluation.crafted.WORTH_KEEPING", 0)
    assert lab("train", *WORDS, "seed=1").status == 0
    words = [*EVALUATE, "threat_model=black_transfer", "threat_model.overrides=[seed=1]"]
    assert lab(*words).status == 0
    assert list(done.glob("runs/*/crafted/*.npz"))
    exchange(images / "test")
    ended = lab(*words)
    assert ended.status == 0, ended.err
    assert "is of no use and is written anew" in ended.err
    assert the(done, "runs/*/evaluate/*black*/record.json")["examples_from_before"] == [0]


def test_the_runs_that_a_run_learns_from_have_images_too(lab, outputs, images):
    shutil.copytree(images, images.with_name("others"))
    words = ["train", *WORDS, "defense=distillation", "defense.teacher=[defense=standard,dataset.path=others]"]
    ended = lab(*words)
    assert ended.status == 0, ended.err
    exchange(images.with_name("others") / "train")
    ended = lab(*words)
    assert ended.status == 0
    assert "of other images (teacher.train)" in ended.err
    assert ended.err.count("trained again: ") == 2


def test_reproduce_makes_again_what_is_of_other_images(lab, done, images, table):
    table()
    command = ["reproduce", "device=cpu", "report=false"]
    exchange(images / "test")
    ended = lab(*command)
    assert ended.status == 0, ended.err
    assert "1 training runs: 1 finished, 0 missing" in ended.out
    assert "1 evaluations: 0 finished, 1 missing" in ended.out
    assert record(done)["clean_accuracy"] == 0
    exchange(images / "train")
    ended = lab(*command)
    assert ended.status == 0, ended.err
    assert "1 training runs: 0 finished, 1 missing" in ended.out
    assert record(done)["clean_accuracy"] == 1
    assert "1 evaluations: 1 finished, 0 missing" in lab(*command, "plan=true").out


def test_reproduce_names_a_folder_as_its_jobs_do(lab, done, images, table, monkeypatch):
    """Where images are is said on the command line, and the table's path is absolute."""
    table(f"dataset.path={images}")
    monkeypatch.setenv("ROBUSTBENCH_LAB_DATA", os.devnull)
    ended = lab("reproduce", "device=cpu", "report=false", f"data.root={images.parent}", "plan=true")
    assert "1 evaluations: 1 finished, 0 missing" in ended.out, ended.err
