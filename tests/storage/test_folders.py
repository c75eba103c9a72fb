"""Whether a run is finished and a record counts: one rule each, whoever asks."""

import re
import shutil

import fake_records as fake
import numpy as np
import pytest
import torch

from robustbench_lab.errors import LabError
from robustbench_lab.settings.conf import compose
from robustbench_lab.settings.identity import evaluation_of, run_at_words
from robustbench_lab.storage.files import read_json, write_json
from robustbench_lab.storage.folders import Clash, Missing, OutputFolder
from robustbench_lab.training.checkpoints import write_tensors


@pytest.fixture
def run(tmp_path):
    run = run_at_words([])
    fake.train(run, tmp_path)
    return run


@pytest.fixture
def evaluation(run, tmp_path):
    evaluation = evaluation_of(*compose("evaluate", []), [])
    folder = fake.evaluate(evaluation, tmp_path, 9, 5)
    fake.outcome(folder)
    return evaluation


def digest(run) -> str:
    return f"weights of {run.fingerprint}"


def test_a_run_without_its_weights_is_trained_and_of_no_use(run, tmp_path):
    assert run.at(tmp_path).trained
    assert not run.at(tmp_path).usable
    fake.train(run, tmp_path, model_digest=write_tensors(run.at(tmp_path).weights, {"weight": torch.ones(3)}, {}))
    assert run.at(tmp_path).usable
    assert not run_at_words(["seed=1"]).at(tmp_path).trained


@pytest.mark.parametrize("content", [b"{", b'{"schema": 1, "config": {}}', b'{"schema": 1, "model_digest": 3, "config": {}}', b"[]"])
def test_a_run_whose_file_is_damaged_is_not_finished(run, tmp_path, content):
    folder = run.at(tmp_path)
    folder.weights.touch()
    (folder.path / "run.json").write_bytes(content)
    assert not run.at(tmp_path).usable
    assert not run.at(tmp_path).trained
    with pytest.raises(LabError, match=r"run\.json"):
        _ = run.at(tmp_path).digest


def test_a_folder_of_another_run_with_the_same_name_is_an_error_and_not_trained_over(run, tmp_path):
    path = run.folder(tmp_path) / "run.json"
    content = read_json(path)
    content["config"]["training"]["epochs"] = 7
    write_json(path, content)
    for asked in (lambda: run.at(tmp_path).usable, lambda: run.at(tmp_path).trained, lambda: run.at(tmp_path).digest):
        with pytest.raises(Clash, match=r"something else with the same name: training\.epochs: 7 != 30; move one"):
            asked()


def test_a_record_counts_when_it_is_of_these_weights(run, evaluation, tmp_path):
    folder = evaluation.at(tmp_path)
    assert folder.record({"run": digest(run)})["robust_correct"] == 5
    assert folder.finished({"run": digest(run)}) is not None
    with pytest.raises(LabError, match="speaks of other weights than"):
        folder.record({"run": "others"})
    assert folder.finished({"run": "others"}) is None


def test_a_record_of_another_evaluation_is_an_error(run, evaluation, tmp_path):
    path = evaluation.folder(tmp_path) / "record.json"
    content = read_json(path)
    content["config"]["attack"]["steps"] += 1
    write_json(path, content)
    with pytest.raises(Clash, match=r"something else with the same name: attack\.steps: 21 != 20"):
        evaluation.at(tmp_path).finished({"run": digest(run)})


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_an_evaluation_whose_outcome_cannot_be_read_is_not_finished(run, evaluation, tmp_path, damage):
    outcome = evaluation.folder(tmp_path) / "outcome.npz"
    content = outcome.read_bytes()
    outcome.unlink()
    if damage == "truncated":
        outcome.write_bytes(content[:50])
    assert evaluation.at(tmp_path).finished({"run": digest(run)}) is None
    assert evaluation.at(tmp_path).record({"run": digest(run)})["n"] == 10, "its figures stand for tables"


def test_what_was_never_made_is_missing(run, tmp_path):
    other = evaluation_of(*compose("evaluate", ["attack=fgsm"]), ["attack=fgsm"])
    with pytest.raises(Missing):
        other.at(tmp_path).record({"run": digest(run)})
    with pytest.raises(Missing):
        OutputFolder(tmp_path).digests({"run": "0" * 8})


def test_of_two_folders_of_one_run_the_finished_one_counts(run, tmp_path):
    (tmp_path / "runs" / f"a-{run.fingerprint}").mkdir()
    assert OutputFolder(tmp_path).digests({"run": run.fingerprint}) == {"run": digest(run)}


def test_a_packed_evaluation_reads_as_one_in_a_folder(run, evaluation, tmp_path):
    folder, digests = evaluation.at(tmp_path), {"run": digest(run)}
    record, outcome = folder.record(digests), folder.arrays("outcome.npz")
    pack = run.at(tmp_path).pack
    pack.add({folder.name: (record, {"outcome.npz": outcome, "examples.npz": fake.examples()})})
    pack.add({"other-0123abcd": (record, {"outcome.npz": {"index": np.arange(2)}})})
    shutil.rmtree(folder.path)
    again = evaluation.at(tmp_path)
    assert again.name == folder.name
    assert again.record(digests) == record
    assert again.finished(digests) is not None
    assert again.file.name == "evaluations.jsonl"
    np.testing.assert_array_equal(again.arrays("outcome.npz")["index"], outcome["index"])
    assert again.arrays("features.npz") is None
    assert [one.name for one in run.at(tmp_path).evaluations()] == sorted([folder.name, "other-0123abcd"])
    with pytest.raises(LabError, match="speaks of other weights"):
        again.record({"run": "others"})
    lines = (run.folder(tmp_path) / "evaluations.jsonl").read_bytes()
    run.at(tmp_path).pack.add({folder.name: (record, {"outcome.npz": outcome, "examples.npz": fake.examples()})})
    assert (run.folder(tmp_path) / "evaluations.jsonl").read_bytes() == lines, "what is packed again is the same"


def test_a_folder_of_its_own_counts_before_what_is_packed(run, evaluation, tmp_path):
    folder, digests = evaluation.at(tmp_path), {"run": digest(run)}
    run.at(tmp_path).pack.add({folder.name: ({**folder.record(digests), "n": 7}, {})})
    assert evaluation.at(tmp_path).record(digests)["n"] == 10


@pytest.mark.parametrize("content", ["{", '{"name": "a"}', '{"name": "a", "record": 3}', '{"name": "a", "record": {"schema": 99}}'])
def test_a_damaged_pack_is_named_with_its_line(run, tmp_path, content):
    path = run.folder(tmp_path) / "evaluations.jsonl"
    path.write_text('{"name": "fine", "record": {"schema": 1}}\n' + content + "\n")
    pack = run.at(tmp_path).pack
    assert re.search(r"evaluations\.jsonl:2 is damaged", pack.problem)
    assert list(pack.records) == ["fine"], "the other lines count"
    with pytest.raises(LabError, match=r"evaluations\.jsonl:2 is damaged"):
        pack.add({})
