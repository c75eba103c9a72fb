"""What was interrupted goes on, and ends as if nothing had happened."""

import json
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_lab.evaluation import judging
from robustbench_lab.evaluation import loop as evaluation
from robustbench_lab.training import making
from robustbench_lab.training.checkpoints import read_tensors
from robustbench_lab.training.state import State

EPOCHS = 5
SLOW = [
    "backbone=small_cnn", f"training.epochs={EPOCHS}", "dataset.train_size=600", "defense=fm", "defense.start_epoch=0", "device=cpu",
]  # fmt: skip  # FM's inner PGD starts at random points, tied to images; the recipe has momentum; an epoch lasts some 0.3 s


def epochs_in(folder: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_killed_in_the_middle_of_an_epoch_training_ends_at_the_same_weights(forked, lab, lab_in, outputs, tmp_path):
    killed = forked("train", *SLOW)
    folder = killed.wait_for("runs/*/metrics.jsonl", outputs).parent
    time.sleep(0.1)  # into the next epoch
    killed.send(signal.SIGKILL)
    assert killed.wait()[0] == -signal.SIGKILL
    done = epochs_in(folder)
    assert done == list(range(1, len(done) + 1))
    assert len(done) < EPOCHS
    assert not (folder / "run.json").exists()
    assert (folder / "checkpoint.safetensors").exists()

    resumed = lab("train", *SLOW)
    assert resumed.status == 0, resumed.err
    assert f"resuming {folder.name} after epoch" in resumed.err
    whole = lab_in(tmp_path / "whole", "train", *SLOW)
    assert whole.status == 0, whole.err
    assert "resuming" not in whole.err

    reference = tmp_path / "whole" / "runs" / folder.name
    expected, meta = read_tensors(reference / "model.safetensors")
    got, _ = read_tensors(folder / "model.safetensors")
    assert same(got, expected)
    assert json.loads((folder / "run.json").read_text())["model_digest"] == meta["digest"]
    assert epochs_in(folder) == epochs_in(reference) == list(range(1, EPOCHS + 1))
    losses = [[json.loads(line)["loss_model"] for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (folder, reference)]
    assert losses[0] == losses[1]
    assert not (folder / "checkpoint.safetensors").exists()


def test_stopped_between_checkpoint_and_metrics_no_epoch_is_lost(lab, interrupted, lab_in, tiny, tmp_path):
    assert not (interrupted / "metrics.jsonl").exists()
    ended = lab("train", *tiny)
    assert "after epoch 1" in ended.err
    assert epochs_in(interrupted) == [1, 2, 3]
    assert lab_in(tmp_path / "whole", "train", *tiny).status == 0
    reference = tmp_path / "whole" / "runs" / interrupted.name
    assert same(*(read_tensors(folder / "model.safetensors")[0] for folder in (interrupted, reference)))


def test_stopped_between_the_last_checkpoint_and_its_metrics_no_epoch_is_lost(lab, outputs, tiny, monkeypatch):
    write_metrics = making._write_metrics

    def stop_at_the_last(folder: Path, state: State) -> None:
        if state.epoch == 3:
            raise KeyboardInterrupt
        write_metrics(folder, state)

    with monkeypatch.context() as patch:
        patch.setattr(making, "_write_metrics", stop_at_the_last)
        assert lab("train", *tiny).status == 130
    (folder,) = outputs.glob("runs/*")
    assert epochs_in(folder) == [1, 2]
    assert lab("train", *tiny).status == 0
    assert epochs_in(folder) == [1, 2, 3]


def test_stopped_after_the_last_epoch_training_only_finishes(lab, outputs, tiny, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("robustbench_lab.storage.folders.write_json", stop)  # model.safetensors is there, run.json is not
        assert lab("train", *tiny).status == 130
    (folder,) = outputs.glob("runs/*")
    weights = (folder / "model.safetensors").read_bytes()
    assert lab("evaluate", *tiny).status == 2, "a run without its last file is not finished"
    ended = lab("train", *tiny)
    assert ended.status == 0
    assert "after epoch 3" in ended.err
    assert (folder / "model.safetensors").read_bytes() == weights
    assert epochs_in(folder) == [1, 2, 3]


def test_a_forced_repetition_that_is_stopped_leaves_no_finished_run(lab, trained, tiny, monkeypatch):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("robustbench_lab.training.making.fit", stop)
        assert lab("train", *tiny, "force=true").status == 130
    ended = lab("evaluate", *tiny)
    assert ended.status == 2
    assert "no finished run" in ended.err


def test_an_interrupted_evaluation_goes_on_to_the_same_outcome(lab, outputs, trained, tiny, monkeypatch):
    command = ["evaluate", *tiny, "attack.steps=3", "panel=none", "batch_size=8"]
    assert lab(*command).status == 0
    (folder,) = (trained / "evaluate").iterdir()
    record = json.loads((folder / "record.json").read_text())
    expected = dict(np.load(folder / "outcome.npz", allow_pickle=False))
    for path in folder.iterdir():
        path.unlink()

    predictions, calls = judging.predictions, []

    def stop_in_the_third_batch(*arguments):
        calls.append(len(arguments[1]))
        if calls.count(8) == 3 and calls[-1] == 8:
            raise KeyboardInterrupt
        return predictions(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "SAVE_EVERY", 0.0)
        patch.setattr(judging, "predictions", stop_in_the_third_batch)
        assert lab(*command).status == 130
    done = int(np.load(folder / "outcome.partial.npz", allow_pickle=False)["done"].sum())
    assert done in (8, 16)
    assert not (folder / "record.json").exists()

    ended = lab(*command)
    assert ended.status == 0
    assert f"going on after {done} of 40 images" in ended.err
    got = dict(np.load(folder / "outcome.npz", allow_pickle=False))
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name])
    again = json.loads((folder / "record.json").read_text())
    kept = ("robust_correct", "clean_correct", "forward_per_attacked_image", "backward_per_attacked_image", "distance_of_broken")
    assert {key: again[key] for key in kept} == {key: record[key] for key in kept}
    assert not (folder / "outcome.partial.npz").exists()


def test_metrics_in_another_order_keep_their_values(lab, trained, tiny, monkeypatch):
    """One evaluation, whatever the order; the values of a partial outcome stand in the order that it was asked for."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    def command(*metrics: str) -> list[str]:
        return ["evaluate", *tiny, "attack=fgsm", "panel=none", f"metric=[{','.join(metrics)}]"]

    assert lab(*command("loss_sensitivity", "training_set_distance")).status == 0
    (path,) = trained.glob("evaluate/*/record.json")
    expected = json.loads(path.read_text())["metrics"]
    path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr("robustbench_lab.jobs.evaluate.record_of", stop)
        assert lab(*command("loss_sensitivity", "training_set_distance")).status == 130
    assert path.with_name("outcome.partial.npz").exists()
    assert lab(*command("training_set_distance", "loss_sensitivity")).status == 0
    assert json.loads(path.read_text())["metrics"] == expected


def test_a_partial_outcome_of_other_weights_is_not_gone_on_from(lab, trained, tiny):
    command = ["evaluate", *tiny, "attack=fgsm", "panel=none"]
    assert lab(*command).status == 0
    (folder,) = (trained / "evaluate").iterdir()
    arrays = dict(np.load(folder / "outcome.npz", allow_pickle=False))
    n = len(arrays["index"])
    (folder / "record.json").unlink()
    np.savez_compressed(
        folder / "outcome.partial.npz", mark=np.array(f"{folder.name[-8:]} of other weights"), ids=arrays["index"], clean=np.ones(n, bool),
        robust=np.ones(n, bool), distance=np.zeros(n), done=np.ones(n, bool), forward=0, backward=0, seconds=0.0,
    )  # fmt: skip
    ended = lab(*command)
    assert "going on" not in ended.err
    np.testing.assert_array_equal(np.load(folder / "outcome.npz")["robust"], arrays["robust"])


def test_two_processes_that_start_one_run_at_once_share_it(forked, outputs):
    """One trains; the other waits, says so, and finds it finished. The first is held up until the second waits for it."""
    first = forked("train", *SLOW)
    folder = first.wait_for("runs/*/metrics.jsonl", outputs).parent
    first.send(signal.SIGSTOP)
    second = forked("train", *SLOW)
    second.wait_for_words(f"another process works in {folder}; waiting")
    first.send(signal.SIGCONT)
    (status, trained), (other_status, waited) = first.wait(), second.wait()
    assert (status, other_status) == (0, 0), (trained, waited)
    assert f"trained {folder}" in trained
    assert f"trained {folder}" not in waited
    assert f"finished already: {folder}" in waited
    assert list(outputs.glob("runs/*")) == [folder]
    assert epochs_in(folder) == list(range(1, EPOCHS + 1))
    _, meta = read_tensors(folder / "model.safetensors")
    assert json.loads((folder / "run.json").read_text())["model_digest"] == meta["digest"]
    assert {path.name for path in folder.iterdir()} == {".lock", ".hydra", "model.safetensors", "run.json", "metrics.jsonl"}


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_what_a_killed_process_left_half_written_is_never_read(lab, trained, tiny, name):
    """A .partial file is another process's business: it neither counts as finished nor gets in the way."""
    folder = trained if name == "train" else trained / "evaluate"
    folder.mkdir(exist_ok=True)
    (trained / ".run.json.1.partial").write_text("{")
    (trained / ".model.safetensors.1.partial").write_bytes(b"half")
    assert lab(name, *tiny, *(["attack=fgsm"] if name == "evaluate" else [])).status == 0
