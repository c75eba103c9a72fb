"""Event files beside metrics.jsonl: the same numbers, each epoch once."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from robustbench_lab.training import making
from robustbench_lab.training.events import events
from robustbench_lab.training.state import State


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value by tag, of every event that there is: what an old file says twice is seen twice."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def rows_in(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_told(folder: Path, epochs: int, *others: str) -> None:
    """The event files hold the numbers of metrics.jsonl, each epoch once."""
    tags = {"loss/model": "loss_model", "epoch/lr_factor": "lr_factor", "epoch/seconds": "seconds",
            "epoch/images_per_second": "images_per_second", **{tag: tag.replace("/", "_") for tag in others}}  # fmt: skip
    found, rows = scalars_in(folder), rows_in(folder)
    assert found.keys() == tags.keys()
    for tag, name in tags.items():
        assert [step for step, _ in found[tag]] == list(range(1, epochs + 1)), tag
        assert [value for _, value in found[tag]] == pytest.approx([row[name] for row in rows], rel=1e-6), tag


def test_every_number_of_every_epoch_is_told(lab, outputs, tiny):
    assert lab("train", *tiny, "training.validation=0.1", "tensorboard=true").status == 0
    (folder,) = outputs.glob("runs/*")
    assert_told(folder, 3, "validation/accuracy")
    assert "tensorboard" not in json.loads((folder / "run.json").read_text())["config"]


def test_a_finished_run_is_told_afterwards_and_keeps_its_name(lab, trained, tiny):
    weights = (trained / "model.safetensors").read_bytes()
    for _ in range(3):
        ended = lab("train", *tiny, "tensorboard=true")
        assert f"finished already: {trained}" in ended.err
        assert_told(trained, 3)
    assert len(list((trained / "tensorboard").iterdir())) <= 2, "repetitions do not add up"
    assert (trained / "model.safetensors").read_bytes() == weights
    assert lab("train", *tiny, "force=true").status == 0
    assert not (trained / "tensorboard").exists(), "of a training that is no more"
    (trained / "metrics.jsonl").write_text("{")
    ended = lab("train", *tiny, "tensorboard=true")
    assert ended.status == 2
    assert f"{trained / 'metrics.jsonl'} cannot be read" in ended.err


@pytest.mark.parametrize("first", ["tensorboard=true", "tensorboard=false"])
def test_stopped_between_checkpoint_and_events_no_epoch_is_missing_or_there_twice(lab, outputs, tiny, monkeypatch, first):
    write_metrics = making._write_metrics

    def stop_at_the_second(folder: Path, state: State) -> None:
        if state.epoch == 2:
            raise KeyboardInterrupt
        write_metrics(folder, state)

    with monkeypatch.context() as patch:
        patch.setattr(making, "_write_metrics", stop_at_the_second)
        assert lab("train", *tiny, first).status == 130
    (folder,) = outputs.glob("runs/*")
    if first == "tensorboard=true":
        assert_told(folder, 1)
        (path,) = (folder / "tensorboard").iterdir()
        watching = EventAccumulator(str(folder / "tensorboard"))
        watching.Reload()
        path.write_bytes(path.read_bytes()[:-9])  # as a kill may leave it
        time.sleep(1)  # the next file is named after another second
    ended = lab("train", *tiny, "tensorboard=true")
    assert "after epoch 2" in ended.err
    assert_told(folder, 3)
    if first == "tensorboard=true":
        watching.Reload()
        assert [event.step for event in watching.Scalars("loss/model")] == [1, 2, 3], "a TensorBoard that was open all the time"


def test_killed_and_resumed_no_epoch_is_missing_or_there_twice(forked, lab, outputs, tiny):
    command = ["train", *tiny, "training.epochs=12", "dataset.train_size=900", "tensorboard=true"]
    process = forked(*command)
    folder = process.wait_for("runs/*/metrics.jsonl", outputs).parent
    process.send(signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    assert not (folder / "run.json").exists()
    ended = lab(*command)
    assert f"resuming {folder.name} after epoch" in ended.err
    assert_told(folder, 12)


def test_an_epoch_can_be_read_as_soon_as_it_is_over(tmp_path):
    with events(tmp_path, [{"epoch": 1, "loss_model": 4.0}]) as add:
        for epoch in (2, 3):
            add({"epoch": epoch, "loss_model": 4 / epoch, "note": "no number"})
            steps = list(range(1, epoch + 1))
            assert scalars_in(tmp_path) == {"loss/model": [(step, pytest.approx(4 / step)) for step in steps]}


def test_a_missing_package_stops_before_training_with_the_install_command(lab, outputs, tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ended = lab("train", *tiny, "tensorboard=true")
    assert ended.status == 2
    assert ended.err.startswith("error: tensorboard=true needs a package")
    assert "python -m pip install tensorboard" in ended.err
    assert not outputs.exists()
    assert lab("train", *tiny, "training.epochs=1").status == 0


def test_a_wrong_value(lab, outputs, tiny):
    ended = lab("train", *tiny, "tensorboard=runs")
    assert ended.status == 2
    assert "error: tensorboard: expected true or false, got 'runs'" in ended.err
    assert not outputs.exists()
