"""Sweeps from the command line: they end with a table, again with the same one, and an Optuna study goes on where it stopped."""

import json
import shutil
from pathlib import Path

import pytest

from robustbench_lab.datasets.digits import Digits
from robustbench_lab.metrics.nearest_neighbour import TrainingSetDistance
from robustbench_lab.storage.files import locked
from robustbench_lab.training import making

QUICK = ["training.epochs=1", "attack=fgsm", "panel=none"]


def folder_of(outputs: Path) -> Path:
    (found,) = (outputs / "sweeps").iterdir()
    return found


def test_a_sweep_ends_with_its_table_and_the_same_again_is_the_same(lab, outputs, tiny):
    words = ["-m", *tiny, *QUICK, "train=true", "defense=standard,label_smoothing", "budget.eps=0.02,0.3"]
    first = lab("evaluate", *words)
    assert first.status == 0, first.err
    assert "| defense         | eps  | robust %" in first.out
    folder = folder_of(outputs)
    assert str(folder / "sweep.md") in first.out
    told = {name: (folder / name).read_bytes() for name in ("sweep.md", "sweep.csv", "sweep.json")}
    assert told["sweep.csv"].count(b"\n") == 5
    made = {path: path.stat().st_mtime_ns for path in outputs.glob("runs/**/record.json")}
    assert len(made) == 4
    second = lab("evaluate", *words)
    assert second.out.count("| defense") == 1
    assert {name: (folder / name).read_bytes() for name in told} == told
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert folder_of(outputs) == folder
    assert lab("report", "reference=false").status == 0
    page = (outputs / "report" / "index.html").read_text()
    assert "evaluate over defense, eps" in page
    assert f'id="sweep-{folder.name}-title"' in page


def test_a_training_sweep_is_ranked_by_validation_where_there_is_one(lab, outputs, tiny):
    ended = lab("train", "-m", *tiny, "training.epochs=1", "training.validation=0.2", "training.optimizer.lr=1e-9,0.05,1e30")
    assert ended.status == 1
    lines = [line for line in ended.out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["0.05", "1e-09"] or "1e-9" in lines[3]
    assert "best lr=0.05: validation accuracy" in ended.out
    assert "1 of 3 jobs failed" in ended.out
    assert "the loss of player" in (folder_of(outputs) / "sweep.md").read_text()


def test_what_an_earlier_attempt_left_does_not_count(lab, outputs, tiny):
    words = ["-m", *tiny, "training.epochs=1", "seed=0,1"]
    lab("train", *words)
    folder = folder_of(outputs)
    (folder / "0" / "result.json").rename(folder / "0" / "error.json")
    shutil.copytree(folder / "1", folder / "7")
    ended = lab("train", *words)
    assert ended.status == 0
    assert "failed" not in ended.out
    assert sorted(path.parent.name for path in folder.glob("*/result.json")) == ["0", "1"]


def test_two_sweeps_into_one_folder(lab, outputs, tiny, tmp_path):
    place = f"hydra.sweep.dir={tmp_path / 'mine'}"
    assert lab("train", "-m", *tiny, "training.epochs=1", "seed=0,1", place).status == 0
    ended = lab("train", "-m", *tiny, "training.epochs=1", "seed=2,3", place)
    assert ended.status == 2
    assert f"hydra.sweep.dir: {tmp_path / 'mine'} holds another sweep, python -m robustbench_lab train --multirun" in ended.err
    assert "choose another folder" in ended.err
    assert len(list(outputs.glob("runs/*/run.json"))) == 2


def test_an_objective_that_there_is_not_stops_each_job_before_it_trains(lab, outputs, tiny):
    ended = lab("evaluate", "-m", *tiny, *QUICK, "train=true", "seed=0,1", "objective=robustness")
    assert ended.status == 1
    assert "objective: expected one of robust_accuracy, clean_accuracy, seconds" in ended.err
    assert not (outputs / "runs").exists()


def test_an_evaluation_trains_what_is_missing_if_it_may(lab, outputs, tiny):
    words = [*tiny, *QUICK, "threat_model=black_transfer"]
    ended = lab("evaluate", *words)
    assert ended.status == 2
    assert ended.err.rstrip().endswith("or add train=true")
    assert lab("evaluate", *words, "train=true").status == 0
    assert len(list(outputs.glob("runs/*/run.json"))) == 2, "the attacker's too"
    assert lab("evaluate", *words).status == 0
    assert lab("check", *tiny, "training.epochs=1", "panel=default", "seed=5", "train=true").status == 0


def test_validation_images_are_those_that_were_held_out(lab, outputs, tiny, monkeypatch):
    read = Digits.load

    def never_test(self, split, **place):
        assert split == "train", "no test image is read"
        return read(self, split, **place)

    monkeypatch.setattr(Digits, "load", never_test)
    words = [*tiny, *QUICK, "panel=default", "train=true", "training.validation=0.2"]
    ended = lab("evaluate", *words, "split=validation")
    assert ended.status == 0, ended.err
    (path,) = outputs.glob("runs/*/evaluate/*/record.json")
    record = json.loads(path.read_text())
    assert (record["n"], record["config"]["split"]) == (40, "validation")
    assert record["panel"]["n"] <= 40
    monkeypatch.undo()
    assert lab("evaluate", *words).status == 0
    assert len(list(outputs.glob("runs/*/evaluate/*/record.json"))) == 2, "of test images is another evaluation"
    assert len(list(outputs.glob("runs/*/panel/*.json"))) == 2
    for more, said in (
        (["split=validation", "training.validation=0"], "training.validation: expected a share of the training images"),
        (["split=test", "objective=validation_robust_accuracy"], "split: expected validation, or null, with objective="),
        (["split=train"], "split: expected test or validation, or null"),
    ):
        ended = lab("evaluate", *words, *more)
        assert ended.status == 2
        assert f"error: {said}" in ended.err
    lab("report", "reference=false")
    assert "<b>validation</b>" in (outputs / "report" / "index.html").read_text()


def test_optuna_searches_validation_images_and_goes_on_where_it_stopped(lab, outputs, tiny, monkeypatch):
    read = Digits.load

    def never_test(self, split, **place):
        assert split == "train", "no test image is read"
        return read(self, split, **place)

    monkeypatch.setattr(Digits, "load", never_test)
    words = ["-m", "hydra/sweeper=optuna", *tiny, "attack=fgsm", "panel=none", "train=true", "training.validation=0.2", "defense=trades",
             "budget.eps=0.02", "defense.attack.steps=1", "defense.beta=tag(log,interval(0.5,20))",
             "training.optimizer.lr=tag(log,interval(1e-4,0.2))"]  # fmt: skip
    ended = lab("evaluate", *words, "hydra.sweeper.n_trials=3")
    assert ended.status == 0, ended.err
    folder = folder_of(outputs)
    scores = [json.loads((folder / str(i) / "result.json").read_text())["objective"] for i in range(3)]
    assert "validation images" in ended.out
    ended = lab("evaluate", *words, "hydra.sweeper.n_trials=6")
    assert ended.status == 0, ended.err
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == [str(i) for i in range(6)]
    more = [json.loads((folder / str(i) / "result.json").read_text()) for i in range(3, 6)]
    assert len({tuple(result["overrides"]) for result in more}) == 3
    assert max(*scores, *(result["objective"] for result in more)) > scores[0], "the best is better than the first"
    before = {path: path.stat().st_mtime_ns for path in outputs.glob("runs/*/run.json")}
    assert lab("evaluate", *words, "hydra.sweeper.n_trials=6").status == 0
    assert {path: path.stat().st_mtime_ns for path in outputs.glob("runs/*/run.json")} == before


def test_a_failed_trial_is_told_and_counted(lab, outputs, tiny):
    words = ["-m", "hydra/sweeper=optuna", *tiny, "training.epochs=1", "training.validation=0.2", "training.optimizer.lr=choice(1e30,2e30)"]
    for trials, made in ((2, 2), (2, 2), (3, 3)):
        ended = lab("train", *words, f"hydra.sweeper.n_trials={trials}")
        assert ended.status == 1
        assert f"\n{made} jobs failed:" in ended.err
    assert "none of 3 jobs has finished" in ended.out


def test_a_stopped_trial_is_tried_again(lab, outputs, tiny, monkeypatch):
    words = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", *tiny, "training.epochs=1", "training.validation=0.2",
             "training.optimizer.lr=interval(0.01,0.1)"]  # fmt: skip

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("robustbench_lab.training.making._write_metrics", stop)
        assert lab("train", *words).status == 130
    ended = lab("train", *words)
    assert ended.status == 0, ended.err
    finished = sorted(path.parent.name for path in folder_of(outputs).glob("*/result.json"))
    assert finished == ["1", "2"], "the stopped one, under another number, and one more"
    assert len(list(outputs.glob("runs/*/run.json"))) == 2, "and its run went on"


def test_a_search_on_test_images_says_so(lab, tiny, trained, outputs):
    ended = lab("evaluate", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1", *tiny, "attack=fgsm", "panel=none",
                "budget.eps=interval(0.01,0.02)", "objective=robust_accuracy")  # fmt: skip
    assert ended.status == 0, ended.err
    assert "too good to be reported" in ended.out


@pytest.mark.parametrize("word", ["hydra/sweeper=ax", "hydra.sweeper._target_=os.system", "hydra.sweeper.storage={_target_: os.system}"])
def test_other_sweepers_are_refused(lab, tiny, word):
    ended = lab("train", "-m", *tiny, word)
    assert ended.status == 2
    assert "Traceback" not in ended.err


def test_a_second_process_waits_for_the_first_one(outputs, lab, tiny, monkeypatch):
    """Of the same sweep: its folder is taken meanwhile."""
    lab("train", "-m", *tiny, "training.epochs=1", "seed=0,1")
    waited = []

    def wait(folder, say):
        waited.append(folder)
        return locked(folder, say)

    monkeypatch.setattr("robustbench_lab.multirun.locked", wait)
    assert lab("train", "-m", *tiny, "training.epochs=1", "seed=0,1").status == 0
    assert waited == [folder_of(outputs)]


SEARCH = ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "training.epochs=1"]


def test_a_job_of_a_stopped_batch_that_had_ended_is_told_once(lab, outputs, tiny, monkeypatch):
    words = [*SEARCH, "hydra.sweeper.n_jobs=2", *tiny, "training.validation=0.2", "training.optimizer.lr=interval(0.01,0.1)"]
    write, calls = making._write_metrics, []

    def stop(*told: object) -> None:
        calls.append(told)
        if len(calls) > 6:  # a run writes after each of its three epochs, and once more: within the second run
            raise KeyboardInterrupt
        write(*told)

    with monkeypatch.context() as patch:
        patch.setattr(making, "_write_metrics", stop)
        assert lab("train", *words).status == 130
    ended = lab("train", *words)
    assert ended.status == 0, ended.err
    assert sorted(path.parent.name for path in folder_of(outputs).glob("*/result.json")) == ["0", "2"]
    assert "±" not in ended.out, "no configuration counts twice"
    again = lab("train", *words)
    assert "Launching" not in again.out + again.err, "both trials are there"


def test_what_cannot_be_searched_says_why(lab, tiny, outputs):
    held_out = [*tiny, "training.validation=0.2"]
    for more, said in (
        (held_out, "hydra/sweeper=optuna: expected a word to search"),
        ([*held_out, "defense=glob(stand*)"], "defense=glob(stand*): hydra/sweeper=optuna expected interval(low,high), range(...) or"),
        ([*held_out, "training.optimizer.lr=interval(0.2,0.1)"], "training.optimizer.lr=interval(0.2,0.1): hydra/sweeper=optuna expected"),
        ([*held_out, "training.optimizer.lr=tag(log,interval(0,1))"], "training.optimizer.lr=tag(log,interval(0,1)): hydra/sweeper=optuna"),
        ([*held_out, "seed=range(3,1)"], "seed=range(3,1): hydra/sweeper=optuna expected"),
        ([*held_out, "seed=0,1", "hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs: expected a whole number >= 1, got 0"),
        ([*held_out, "seed=0,1", "hydra.sweeper.n_trials=x"], "hydra.sweeper.n_trials: expected a whole number >= 1, got 'x'"),
    ):
        ended = lab("train", *SEARCH, *more)
        assert ended.status == 2
        assert f"error: {said}" in ended.err
    for verb, choice in (("check", "optuna"), ("train", "tables")):
        ended = lab(verb, "-m", f"hydra/sweeper={choice}", "seed=0,1")
        assert ended.status == 2
        assert f"expected hydra/sweeper=optuna, which searches for train and evaluate, got '{choice}' for {verb}" in ended.err
    assert not (outputs / "runs").exists()


def test_without_held_out_images_nothing_is_trained_for_them(lab, outputs, tiny):
    ended = lab("evaluate", *SEARCH, *tiny, "attack=fgsm", "panel=none", "train=true", "seed=0,1")
    assert ended.status == 1
    assert ended.err.count("training.validation: expected a share of the training images") == 4, "as each fails, and at the end"
    assert not (outputs / "runs").exists()


def test_a_search_on_test_images_warns_before_it_begins(lab, tiny, trained, outputs):
    ended = lab("evaluate", *SEARCH, "hydra.sweeper.n_trials=1", *tiny, "attack=fgsm", "panel=none", "train=true",
                "budget.eps=interval(0.01,0.02)", "objective=robust_accuracy")  # fmt: skip
    assert "too good to be reported" in ended.err.partition("Launching")[0]


def test_a_held_out_image_is_not_its_own_neighbour(lab, outputs, tiny, monkeypatch):
    seen = []

    def count(self, looked_at, x, x_adv):
        seen.append(len(looked_at.train))
        return x.flatten(1).norm(dim=1).double()

    monkeypatch.setattr(TrainingSetDistance, "of_broken", count)
    words = [*tiny, *QUICK, "train=true", "training.validation=0.2", "metric=[training_set_distance]", "budget.eps=0.5"]
    assert lab("evaluate", *words, "split=validation").status == 0
    assert set(seen) == {160}, "without the 40 that are attacked"
    seen.clear()
    assert lab("evaluate", *words).status == 0
    assert set(seen) == {200}


def test_the_report_shows_models_of_others_with_their_warnings(lab, outputs, tiny, trained):
    weights = f"weights={trained / 'model.safetensors'}"
    words = [weights, "backbone=small_cnn", "attack=fgsm", "panel=none", "dataset.test_size=40", "device=cpu"]
    assert lab("evaluate", *words).status == 0
    assert lab("report", "reference=false").status == 0
    page = (outputs / "report" / "index.html").read_text()
    assert "model.safetensors as small_<wbr>cnn on digits" in page
    assert 'class="loud">preprocessing' not in page
