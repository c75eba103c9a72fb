"""Results on disk: whole or not at all, and read without executing anything."""

import ast
import errno
import json
import math
import os
import shlex
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from robustbench_lab.errors import LabError
from robustbench_lab.intervals import wilson_interval
from robustbench_lab.storage import files as records
from robustbench_lab.storage.files import locked, read_arrays, read_json, to_json, write_arrays, write_bytes, write_json
from robustbench_lab.storage.folders import OutputFolder
from robustbench_lab.storage.provenance import provenance
from robustbench_lab.storage.records import read_record
from robustbench_lab.training.checkpoints import digest, load_state, load_weights, read_tensors, save_state, write_tensors
from robustbench_lab.training.state import State

PACKAGE = Path(records.__file__).parent

# Writing


def test_an_interval_holds_its_share():
    for n in (100, 360, 500, 1000, 10_000):
        for successes in (0, 1, n - 1, n):
            low, high = wilson_interval(successes, n)
            assert 0 <= low <= successes / n <= high <= 1


def test_write_makes_folders_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "a" / "b" / "file.json"
    write_bytes(path, b"old")
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("stop", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), MemoryError()])
def test_a_write_that_stops_in_the_middle_leaves_the_old_file(tmp_path, monkeypatch, stop):
    path = tmp_path / "file.json"
    write_bytes(path, b"old")

    def fail(descriptor: int) -> None:
        raise stop

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LabError if isinstance(stop, OSError) else type(stop)) as error:
        write_bytes(path, b"new")
    if isinstance(stop, OSError):
        assert f"cannot write {path}: No space left on device" in str(error.value)
        assert "output_root" in str(error.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_file_that_fails_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(LabError, match="Input/output error"):
        write_bytes(tmp_path / "file", b"new")
    assert not list(tmp_path.iterdir())


def test_the_content_is_on_disk_before_the_name_is(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (order.append("flushed"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append("named"), replace(self, target))[1])
    write_bytes(tmp_path / "file", b"content")
    assert order == ["flushed", "named"]


def test_a_path_under_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabError, match=r"cannot write .*file/x"):
        write_bytes(tmp_path / "file" / "x", b"")


# JSON


def test_json_keeps_values_and_writes_what_no_number_can_say_as_text(tmp_path):
    path = tmp_path / "x.json"
    content = {"schema": 1, "eps": 8 / 255, "n": np.int64(3), "share": np.float64(0.25), "ok": np.bool_(True), "pair": (1, [2.5]), 4: "ü"}
    write_json(path, {**content, "inf": math.inf, "minus": -np.inf, "nan": {"deep": [math.nan, np.float32("nan")]}})
    strict = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert strict == {
        "schema": 1, "eps": 8 / 255, "n": 3, "share": 0.25, "ok": True, "pair": [1, [2.5]], "4": "ü",
        "inf": "inf", "minus": "-inf", "nan": {"deep": ["nan", "nan"]},
    }  # fmt: skip
    assert read_json(path) == strict
    assert to_json({"a": 1}).endswith("}\n")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"3", b'{"n": 1}', b'{"schema": 2}', b'{"schema": "1"}', b"\xff\xfe", b"nothing"])
def test_damaged_or_foreign_json_is_named_with_the_remedy(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(LabError, match="force=true") as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_json_that_is_not_there_is_named(tmp_path):
    with pytest.raises(LabError, match=r"gone\.json"):
        read_json(tmp_path / "gone.json")


ABOUT = {
    "name": "a-run", "fingerprint": "0" * 8, "seed": 0, "model_digest": "d",
    "choices": {"dataset": "digits", "backbone": "mlp", "defense": "standard", "training": "digits"},
}  # fmt: skip
RUN = {
    "schema": 1, "fingerprint": "0" * 8, "model_digest": "d", "choices": ABOUT["choices"],
    "config": {"dataset": {}, "backbone": {}, "defense": {}, "training": {"epochs": 3}, "seed": 0},
}  # fmt: skip


@pytest.fixture
def record() -> dict:
    """9 of 10 right, 5 of 10 robust, as evaluate writes it."""
    return {
        "schema": 1, "fingerprint": "1" * 8, "run": ABOUT, "source": None, "choices": {"attack": "fgsm", "threat_model": "white"},
        "config": {"attack": {}, "budget": {"norm": "linf", "eps": 0.1}, "threat_model": {"sees": "defended"}}, "seconds": 1.5,
        "warnings": [], "n": 10, "clean_correct": 9, "robust_correct": 5, "clean_accuracy": 0.9, "robust_accuracy": 0.5,
        "clean_interval": wilson_interval(9, 10), "robust_interval": wilson_interval(5, 10),
    }  # fmt: skip


def test_a_sound_record_is_read(tmp_path, record):
    write_json(tmp_path / "record.json", record)
    assert read_record(tmp_path / "record.json")["robust_correct"] == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("robust_accuracy", 0.7),
        ("robust_correct", 7),
        ("n", 11),
        ("n", 0),
        ("n", None),
        ("clean_interval", [0, 1]),
        ("clean_interval", None),
        ("run", None),
        ("run", {}),
    ],
)
def test_a_record_whose_figures_disagree_is_damaged(tmp_path, record, key, value):
    write_json(tmp_path / "record.json", {**record, key: value})
    with pytest.raises(LabError, match=r"record\.json is damaged"):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("key", ["run", "n", "robust_accuracy", "robust_correct", "clean_interval"])
def test_a_record_without_a_figure_is_damaged(tmp_path, record, key):
    del record[key]
    write_json(tmp_path / "record.json", record)
    with pytest.raises(LabError, match=r"record\.json is damaged"):
        read_record(tmp_path / "record.json")


# Arrays


def test_arrays_come_back_and_nothing_else_is_read(tmp_path):
    path = tmp_path / "outcome.npz"
    arrays = {"clean": np.array([True, False]), "distance": np.array([0.1, np.nan]), "mark": np.array("word")}
    write_arrays(path, **arrays)
    got = read_arrays(path)
    assert got.keys() == arrays.keys()
    for name in arrays:
        np.testing.assert_array_equal(got[name], arrays[name])
    np.savez(path, objects=np.array([{"a": 1}], dtype=object))
    with pytest.raises(LabError, match=r"outcome\.npz cannot be read"):
        read_arrays(path)


def test_a_flipped_bit_in_arrays_is_an_error_or_changes_nothing(tmp_path):
    path = tmp_path / "outcome.npz"
    arrays = {"clean": np.arange(300) % 7 == 0, "distance": np.linspace(0, 1, 100)}
    write_arrays(path, **arrays)
    whole = path.read_bytes()
    for position in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(bytes(damaged))
        try:
            got = read_arrays(path)
        except LabError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right
            continue
        for name in arrays.keys() & got.keys():  # a damaged name is the caller's to notice
            np.testing.assert_array_equal(got[name], arrays[name])


# Weights


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"layer.weight": torch.randn(4, 3, generator=generator), "layer.bias": torch.zeros(4), "steps": torch.tensor(7)}


def test_weights_come_back_bit_for_bit(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    checksum = write_tensors(path, weights, {"run": "abcd1234"})
    got, meta = read_tensors(path)
    assert meta == {"run": "abcd1234", "digest": checksum}
    assert got.keys() == weights.keys()
    assert all(torch.equal(got[name], weights[name]) for name in weights)
    assert digest(got) == checksum


def test_tensors_that_share_memory_are_written_apart(tmp_path):
    both = torch.arange(3.0)
    write_tensors(tmp_path / "m.safetensors", {"a": both, "b": both, "c": both.expand(2, 3).t()}, {})
    got, _ = read_tensors(tmp_path / "m.safetensors")
    assert torch.equal(got["a"], got["b"])
    assert got["c"].shape == (3, 2)


def test_the_digest_depends_on_names_shapes_types_and_values(weights):
    others = [
        {**weights, "layer.bias": weights["layer.bias"].view(2, 2)},
        {**weights, "layer.bias": weights["layer.bias"].int()},
        {**weights, "layer.bias": weights["layer.bias"] + torch.tensor([0, 0, 0, 1e-45])},
        {**weights, "more": torch.zeros(1)},
        {name: tensor for name, tensor in weights.items() if name != "steps"},
        {name.replace("bias", "gain"): tensor for name, tensor in weights.items()},
    ]
    digests = [digest(weights), *map(digest, others)]
    assert len(set(digests)) == len(digests)
    assert digest(dict(reversed(weights.items()))) == digests[0]


def test_every_flipped_bit_of_the_weights_is_noticed(tmp_path, weights):
    path = tmp_path / "model.safetensors"
    write_tensors(path, weights, {})
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in range(len(whole)):
        for bit in (0, 6) if position < header else (0, 7):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(bytes(damaged))
            try:
                got, _ = read_tensors(path)
            except LabError as error:
                assert str(path) in str(error)  # noqa: PT017 - either outcome is right in the header, whose spaces mean nothing
                continue
            assert position < header
            assert all(torch.equal(got[name], weights[name]) for name in weights)


@pytest.mark.parametrize("length", [0, 4, 50, -1])
def test_truncated_weights_are_named(tmp_path, weights, length):
    path = tmp_path / "model.safetensors"
    write_tensors(path, weights, {})
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(LabError, match=r"model\.safetensors is damaged"):
        read_tensors(path)


def test_weights_of_another_architecture_change_nothing(tmp_path):
    model = torch.nn.Linear(3, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensors in ({"weight": torch.ones(4, 3)}, {"weight": torch.ones(4, 3), "bias": torch.ones(5)}, {**before, "more": torch.ones(1)}):
        with pytest.raises(LabError, match=r"m\.safetensors holds another architecture.*1 tensors differ.*'(bias|more)'"):
            load_weights(model, tensors, tmp_path / "m.safetensors")
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)


def test_a_training_state_comes_back(tmp_path, weights):
    path = tmp_path / "checkpoint.safetensors"
    state = State(2, weights, weights, {"model/0/momentum_buffer": torch.ones(2)}, [{"epoch": 1, "loss_model": 0.1}, {"epoch": 2}])
    save_state(path, state, "abcd1234")
    got = load_state(path, "abcd1234")
    assert (got.epoch, got.history) == (2, state.history)
    for group in ("model", "best", "optimizers"):
        ours, theirs = getattr(got, group), getattr(state, group)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(LabError, match="belongs to run abcd1234, not to 00000000"):
        load_state(path, "00000000")


def test_weights_are_no_training_state(tmp_path, weights):
    path = tmp_path / "checkpoint.safetensors"
    write_tensors(path, weights, {"run": "abcd1234"})
    with pytest.raises(LabError, match=r"checkpoint\.safetensors is no training state"):
        load_state(path, "abcd1234")


def test_a_state_that_is_not_finite_is_not_saved(tmp_path, weights):
    path = tmp_path / "checkpoint.safetensors"
    weights["layer.bias"][2] = torch.inf
    with pytest.raises(LabError, match=r"'layer\.bias' are not finite at the end of epoch 3"):
        save_state(path, State(3, weights), "abcd1234")
    assert not path.exists()


# Locks, runs, figures


def test_a_folder_is_one_process_at_a_time(tmp_path):
    said, order = [], []

    def second() -> None:
        with locked(tmp_path / "run", said.append):
            order.append("second")

    with locked(tmp_path / "run", said.append):
        assert not said
        waiting = threading.Thread(target=second)
        waiting.start()
        while not said:
            assert waiting.is_alive()
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    assert said == [f"another process works in {tmp_path / 'run'}; waiting for it to finish"]


def test_a_lock_is_freed_by_an_error(tmp_path):
    with pytest.raises(ValueError, match="x"), locked(tmp_path):
        raise ValueError("x")
    with locked(tmp_path, pytest.fail):
        pass


def test_finished_runs_passes_over_damaged_ones(tmp_path):
    sound = {name: json.dumps({**RUN, "n": number}) for number, name in enumerate(("a-1", "b-2"), 1)}
    contents = {**sound, "c-3": "{", "d-4": None, "e-5": '{"schema": 1, "config": {}}'}
    for name, content in contents.items():
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if content:
            (folder / "run.json").write_text(content)
    assert [(run.name, run.record["n"]) for run in OutputFolder(tmp_path).trained()] == [("a-1", 1), ("b-2", 2)]


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # as R's prop.test(x, n, correct = FALSE) gives them
        (8, 10, 0.4901625, 0.9433178),
        (50, 100, 0.4038315, 0.5961685),
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
    ],
)
def test_wilson_interval(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=5e-8)


@pytest.mark.parametrize(("successes", "n"), [(1, 7), (3, 1000), (9000, 10_000), (1, 2)])
def test_wilson_interval_solves_its_equation_and_mirrors(successes, n):
    low, high = wilson_interval(successes, n)
    p = successes / n
    for bound in (low, high):  # the score test's statistic is z at both ends
        assert abs(p - bound) / math.sqrt(bound * (1 - bound) / n) == pytest.approx(1.959963984540054)
    assert wilson_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_provenance_says_where_from():
    found = provenance("a device")
    assert found["device"] == "a device"
    assert found["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"platform", "commit", "command", "finished_at"} <= found.keys()


def test_a_records_command_can_be_pasted(monkeypatch):
    words = ["data.root=/a folder", r"threat_model.overrides=[seed\=1]", "output_root='it''s'", "a=$HOME", "seed=1"]
    monkeypatch.setattr(sys, "argv", ["robustbench_lab train", *words])
    assert shlex.split(provenance("a device")["command"]) == ["python", "-m", "robustbench_lab", "train", *words]


# Nothing that is read can execute anything


def unsafe_calls(source: str) -> list[str]:
    """Calls and imports by which a file that is read could run code: pickle and its kin, torch.load, eval, exec, yaml.load."""
    tree, found = ast.parse(source), []
    forbidden_modules = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    forbidden = {"eval", "exec", "compile", "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            pickles = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
            if called in forbidden or pickles or (called in ("np.load", "numpy.load") and not node.keywords):
                found.append(f"{called} in line {node.lineno}")
        found += [f"{name} in line {node.lineno}" for name in names if name.partition(".")[0] in forbidden_modules or name in forbidden]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_of_the_package_can_run_what_it_reads(path):
    assert not unsafe_calls(path.read_text())


@pytest.mark.parametrize(
    "planted",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import dill.session",
        "torch.load(path)",
        "from torch import load",
        "eval('8/255')",
        "yaml.load(text)",
        "np.load(p)",
        "np.load(p, allow_pickle=x)",
    ],
)
def test_the_scan_sees_a_planted_violation(planted):
    assert unsafe_calls(planted)


def test_the_scan_lets_safe_reading_pass():
    calls = "yaml.safe_load(t)\nnp.load(p, allow_pickle=False)\nmodel.eval()\nmodel.compile()\nre.compile('x')"
    assert not unsafe_calls(f"import yaml\n{calls}")
