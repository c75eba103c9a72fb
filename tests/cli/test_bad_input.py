"""Bad input gets an error that names the key or the file, and leaves nothing half-written behind."""

import errno
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from robustbench_lab.backbones.small_cnn import SmallCNN
from robustbench_lab.errors import LabError
from robustbench_lab.training.checkpoints import load_state, read_tensors, write_tensors


@pytest.fixture
def refused(lab, outputs, snapshot) -> Callable[..., str]:
    """`refused("train", ...)`: the message of a command that must stop with status 2 and change no file."""

    def call(*arguments: str, status: int = 2) -> str:
        before = snapshot(outputs) if outputs.exists() else None
        ended = lab(*arguments)
        assert ended.status == status, ended.err
        assert "Traceback" not in ended.err
        assert (snapshot(outputs) if outputs.exists() else None) == before
        return ended.err

    return call


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


# Keys and values


@pytest.mark.parametrize("verb", ["train", "evaluate"])
def test_unknown_choice_shows_the_choices(refused, verb):
    message = refused(verb, "defense=fn")
    assert message.startswith("error: defense=fn: expected defense to be one of adv_bnn, ")
    for choice in ("fm", "trades", "standard", "gda_bounded_relu"):
        assert f", {choice}, " in message
    assert message.endswith("got 'fn'\n")


@pytest.mark.parametrize(
    ("verb", "word", "remedy"),
    [
        ("train", "sed=1", "did you mean seed?"),
        ("train", "+sed=1", "did you mean seed?"),  # Hydra would take it, and nothing would read it
        ("train", "~sed", "did you mean seed?"),
        ("train", "attack=pgd", "attack is a word of evaluate;"),
        ("train", "+attack=pgd", "attack is a word of evaluate;"),
        ("train", "attack.steps=3", "attack is a word of evaluate;"),
        ("train", "attack@defence.attack=pgd", "did you mean defense?"),
        ("evaluate", "attak=pgd", "did you mean attack?"),
        ("reproduce", "profil=smoke", "did you mean profile?"),
        ("reproduce", "defense=fm", "defense is a word of train, evaluate, check;"),
        ("report", "profile=smoke", "profile is a word of train, evaluate, check, tables, reproduce;"),
        ("check", "zebra=1", "`python -m robustbench_lab check --help` lists them"),
    ],
)
def test_a_word_that_the_verb_does_not_have(refused, verb, word, remedy):
    message = refused(verb, word)
    assert message.startswith(f"error: {word}: {verb} has no group or key ")
    assert remedy in message


@pytest.mark.parametrize(
    ("verb", "word"),
    [
        ("train", "force=no"),  # a text for Hydra, and a text is true
        ("train", "tensorboard=1"),
        ("train", "data.download=off"),
        ("train", "training.flip=no"),
        ("train", "training.compile=0"),
        ("evaluate", "force=off"),
        ("evaluate", "without_noise=no"),
        ("evaluate", "attack_misclassified=no"),
        ("reproduce", "report=no"),
    ],
)
def test_a_flag_is_true_or_false(refused, trained, tiny, verb, word):
    key, _, value = word.partition("=")
    words = [] if verb == "reproduce" else [*tiny, "seed=1"] if key.startswith("training.") else tiny
    assert f"error: {key}: expected true or false, got {value if value.isdigit() else repr(value)}" in refused(verb, *words, word)


@pytest.mark.parametrize("word", ["plan=no", "plan=1", "--dry-run=all"])
def test_a_plan_is_true_false_or_full(refused, word):
    assert f"error: plan: expected one of True, False, full, got {word.partition('=')[2]}" in refused("reproduce", word).replace("'", "")


def test_cells_are_all_or_covering(refused):
    assert "error: cells: expected all or covering, got 'some'" in refused("reproduce", "cells=some")


def test_unknown_key_of_a_group(refused):
    assert "error: training.epoch: there is no such key" in refused("train", "training.epoch=3")
    assert "error: attack.stepz: there is no such key" in refused("evaluate", "attack.stepz=3")


def test_unparsable_override(refused):
    assert "error: seed: expected key=value" in refused("train", "seed")


@pytest.mark.parametrize(
    ("words", "key", "came"),
    [
        (["budget.eps=-0.1"], "budget.eps", "-0.1"),
        (["budget.eps=-8/255"], "budget.eps", "-0.03"),
        (["budget.eps=abc"], "budget.eps", "'abc'"),
        (["budget.eps=true"], "budget.eps", "True"),
        (["budget.eps=nan"], "budget.eps", "nan"),
        (["budget.eps=8/0"], "budget.eps", "'8/0'"),
        (["dataset.budget.eps=8/0"], "budget.eps", "'8/0'"),
        (["budget.eps=null"], "budget.eps", "None"),
        (["budget.eps=???"], "budget.eps", ""),
        (["budget.norm=l7"], "budget.norm", "'l7'"),
        (["attack.steps=0"], "attack.steps", "0"),
        (["attack.steps=2.5"], "attack.steps", "2.5"),
        (["attack.restarts=0"], "attack.restarts", "0"),
        (["attack.eot_samples=0"], "attack.eot_samples", "0"),
        (["attack.loss=cw"], "attack.loss", "'cw'"),
        (["+attack.momentum=0.9"], "attack", "momentum"),
        (["~attack.steps"], "attack", "steps"),
        (["threat_model.sees=all"], "threat_model.sees", "'all'"),
        (["threat_model.overrides=[seed=1]"], "threat_model.overrides", "['seed=1']"),
        (["threat_model=black_queries", "threat_model.answers=some"], "threat_model.answers", "'some'"),
        (["batch_size=0"], "batch_size", "0"),
        (["device=tpu"], "device", "'tpu'"),
        (["device=mps"], "device", "'mps'"),
        (["device=cuda:99"], "device", "'cuda:99'"),
        (["dataset.test_size=0"], "dataset.test_size", "0"),
        (["attack._target_=os.system"], "attack._target_", "'os.system'"),
    ],
)
def test_evaluate_names_the_key_and_what_came(refused, trained, tiny, words, key, came):
    message = refused("evaluate", *tiny, *words)
    assert message.startswith("error: ")
    assert f"{key}: " in message or f"{key} " in message
    assert came in message


@pytest.mark.parametrize(
    ("words", "key", "came"),
    [
        (["training.epochs=0"], "training.epochs", "0"),
        (["training=adv_bnn", "training.schedule.milestones=80"], "training.schedule.milestones", "80"),
        (["training.epochs=2.5"], "training.epochs", "2.5"),
        (["training.batch_size=0"], "training.batch_size", "0"),
        (["training.precision=fp8"], "training.precision", "'fp8'"),
        (["training.keep=best"], "training.validation", "0"),
        (["training.validation=1"], "training.validation", "1"),
        (["training.optimizer.lr=fast"], "training.optimizer", "'fast'"),
        (["training.optimizer.lr=-1"], "training.optimizer", "-1"),
        (["+training.optimizer.speed=1"], "training.optimizer", "speed"),
        (["training.optimizer._target_=builtins.eval"], "training.optimizer._target_", "'builtins.eval'"),
        (["seed=abc"], "seed", "'abc'"),
        (["seed=1.5"], "seed", "1.5"),
        (["dataset.train_size=3"], "dataset.train_size", "3"),
        (["dataset.train_size=5000"], "dataset.train_size", "5000"),
        (["dataset.budget.eps=-1", "defense=trades"], "defense.budget.eps", "-1"),
        (["dataset.budget.eps=1/0", "defense=trades"], "dataset.budget.eps", "'1/0'"),
        (["defense=adversarial_training", "defense.attack.steps=0"], "defense.attack.steps", "0"),
        (["defense=fm", "defense.attack.steps=0"], "defense.attack.steps", "0"),
        (["defense=fm", "defense.negatives=some"], "defense.negatives", "'some'"),
        (["defense=fm", "defense.start_epoch=-1"], "defense.start_epoch", "-1"),
        (["defense=gda", "defense.sigma=-1"], "defense.sigma", "-1"),
        (["defense=gda", "defense.noisy_copies=0"], "defense.noisy_copies", "0"),
        (["defense=trades", "defense.beta=x"], "defense.beta", "'x'"),
        (["defense=trades", "~defense.beta"], "defense", "'beta'"),
        (["defense=label_smoothing", "defense.true_weight=2"], "defense.true_weight", "2"),
        (["defense=fm"], "defense.start_epoch", "training.epochs=3"),
        (["defense=adversarial_training_pni"], "defense.start_epoch", "training.epochs=3"),
        (["defense=pni", "training.epochs=5"], "defense.start_epoch", "training.epochs=5"),
        (["defense=learn2perturb", "defense.start_epoch=0"], "defense.noise_start_epoch", "training.epochs=3"),
        (["defense=gda", "defense.sigma=inf"], "defense.sigma", "inf"),
        (["defense=preprocessed", "defense.fronts=[median,median]"], "defense.fronts", "'median' 2 times"),
        (["defense=preprocessed", "defense.fronts=[median]", "defense.fronts.median.window=9"], "defense.fronts.median.window", "9"),
        (["backbone.widths=[]"], "backbone.widths", "[]"),
        (["backbone.widths=[0]"], "backbone.widths", "[0]"),
    ],
)
def test_train_names_the_key_and_what_came(refused, tiny, words, key, came):
    message = refused("train", *tiny, *words)
    assert message.startswith("error: ")
    assert f"{key}: " in message or f"{key} " in message or f"{key}=" in message
    assert came in message


def test_fm_on_a_backbone_without_a_linear_head_says_what_to_choose(refused, tiny, monkeypatch):
    def with_two_layers(self: SmallCNN, *knobs: int, **named: int) -> None:
        original(self, *knobs, **named)
        self.head = torch.nn.Sequential(self.head, torch.nn.ReLU())

    original = SmallCNN.__init__
    monkeypatch.setattr(SmallCNN, "__init__", with_two_layers)
    message = refused("train", *tiny, "defense=fm_quick")
    assert message.startswith("error: backbone: defense feature matching replaces the linear head, but the head is Sequential; choose ")
    assert "backbone=small_resnet" in message


def test_an_absent_dataset_says_where_it_looked_and_how_to_get_it(refused, tmp_path):
    root = tmp_path / "no data"
    message = refused("train", "dataset=cifar10", f"data.root='{root}'", "data.download=false")
    assert f"'cifar10' is not in {root}" in message
    assert "data.download=true" in message
    assert "ROBUSTBENCH_LAB_DATA" in message
    assert not root.exists()


# Damaged files


def test_damaged_weights_are_named_and_never_half_loaded(refused, trained, tiny):
    path = trained / "model.safetensors"
    whole = path.read_bytes()
    damages = {
        "truncated": lambda: truncate(path),
        "cut in the header": lambda: path.write_bytes(whole[:100]),
        "empty": lambda: path.write_bytes(b""),
        "a flipped bit in a weight": lambda: flip(path, len(whole) - 1000),
        "a flipped bit in the header": lambda: flip(path, 20),
        "another kind of file": lambda: path.write_text("{}"),
        "gone": path.unlink,
    }
    for damage in damages.values():
        path.write_bytes(whole)
        damage()
        message = refused("evaluate", *tiny)
        assert str(path) in message
        assert "force=true" in message


def test_weights_of_another_architecture_are_named(refused, trained, tiny):
    path = trained / "model.safetensors"
    tensors, _ = read_tensors(path)
    name = sorted(tensors)[0]
    tensors[name] = torch.zeros(7, 7)
    write_tensors(path, tensors, {"run": trained.name[-8:]})
    message = refused("evaluate", *tiny)
    assert str(path) in message
    assert "another architecture" in message
    assert name in message
    assert "(7, 7)" in message


def test_weights_of_another_run_are_not_taken_for_this_one(refused, trained, tiny):
    path = trained / "model.safetensors"
    tensors, meta = read_tensors(path)
    write_tensors(path, {name: tensor + 1 for name, tensor in tensors.items()}, {"run": meta["run"]})
    assert str(path) in refused("evaluate", *tiny)


def test_damaged_run_json_is_named(refused, trained, tiny):
    truncate(trained / "run.json")
    message = refused("evaluate", *tiny)
    assert str(trained / "run.json") in message
    assert "force=true" in message


def test_a_damaged_checkpoint_stops_the_resume_and_is_named(lab, interrupted, tiny):
    path = interrupted / "checkpoint.safetensors"
    whole = path.read_bytes()
    for damage in (truncate, lambda p: flip(p, len(whole) - 1000), lambda p: p.write_bytes(b"")):
        path.write_bytes(whole)
        damage(path)
        damaged = path.read_bytes()
        ended = lab("train", *tiny)
        assert ended.status == 2
        assert str(path) in ended.err
        assert "Traceback" not in ended.err
        assert path.read_bytes() == damaged
        assert not (interrupted / "run.json").exists()
        assert not (interrupted / "model.safetensors").exists()
    assert lab("train", *tiny, "force=true").status == 0, "as the message says"


def test_a_checkpoint_of_another_run_is_refused(lab, outputs, interrupted, tiny):
    theirs = (interrupted / "checkpoint.safetensors").read_bytes()
    assert lab("train", *tiny, "seed=1").status == 0
    (other,) = outputs.glob("runs/*-s1-*")
    (other / "run.json").unlink()
    path = other / "checkpoint.safetensors"
    path.write_bytes(theirs)
    ended = lab("train", *tiny, "seed=1")
    assert ended.status == 2
    assert f"{path} belongs to run {interrupted.name[-8:]}, not to {other.name[-8:]}" in ended.err


def test_every_flipped_bit_of_a_checkpoint_is_noticed(interrupted):
    """Its header holds names, shapes, the epoch and the history; a changed epoch would end at other weights without a word."""
    path = interrupted / "checkpoint.safetensors"
    whole = path.read_bytes()
    run = interrupted.name[-8:]
    want = load_state(path, run)
    header = 8 + int.from_bytes(whole[:8], "little")
    silent = []
    for position in [*range(0, header, 11), *range(header, len(whole), 1009)]:
        flip(path, position)
        try:
            got = load_state(path, run)
            silent.append((position, (got.epoch, got.history) == (want.epoch, want.history)))
        except LabError as error:
            silent.extend([position] if str(path) not in str(error) else [])
        path.write_bytes(whole)
    assert not silent


def test_a_damaged_record_is_named_and_made_anew(lab, trained, tiny):
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0
    (path,) = trained.glob("evaluate/*/record.json")
    whole = path.read_bytes()
    for content in (whole[:-20], b"", b"[]", b'{"schema": 1}', b'{"schema": 1, "run": 3}', b'{"schema": 99}'):
        path.write_bytes(content)
        ended = lab("evaluate", *tiny, "attack=fgsm", "panel=none")
        assert ended.status == 0, ended.err
        assert f"made anew: {path}" in ended.err
        assert json.loads(path.read_text())["robust_correct"] == json.loads(whole)["robust_correct"]


def test_a_damaged_run_is_named_and_finished_again(lab, trained, tiny):
    """Its weights are not those of a run that says what they are: training goes on from its last state, or begins anew."""
    path = trained / "run.json"
    digest = json.loads(path.read_text())["model_digest"]
    path.write_bytes(path.read_bytes()[:-20])
    ended = lab("train", *tiny)
    assert ended.status == 0, ended.err
    assert f"trained again: {path}" in ended.err
    assert json.loads(path.read_text())["model_digest"] == digest


def test_weights_that_are_gone_are_trained_again(lab, trained, tiny):
    """As the error that names damaged ones says."""
    weights = (trained / "model.safetensors").read_bytes()
    (trained / "model.safetensors").unlink()
    ended = lab("train", *tiny)
    assert ended.status == 0, ended.err
    assert f"trained again: {trained / 'model.safetensors'} is gone" in ended.err
    assert (trained / "model.safetensors").read_bytes() == weights


def test_a_damaged_partial_outcome_is_not_believed(lab, trained, tiny):
    command = ["evaluate", *tiny, "attack=fgsm", "panel=none"]
    assert lab(*command).status == 0
    (path,) = trained.glob("evaluate/*/record.json")
    record = json.loads(path.read_text())
    path.unlink()
    partial = path.with_name("outcome.partial.npz")
    partial.write_bytes(path.with_name("outcome.npz").read_bytes()[:-30])
    ended = lab(*command)
    assert ended.status == 0
    assert str(partial) in ended.err
    assert json.loads(path.read_text())["robust_correct"] == record["robust_correct"]
    assert not partial.exists()


def test_tables_takes_a_damaged_record_for_a_missing_one_and_says_so(lab, outputs, small_table):
    assert lab("reproduce").status == 0
    (path,) = outputs.glob("runs/*/evaluate/*/record.json")
    truncate(path)
    ended = lab("tables")
    assert ended.status == 0
    page = (outputs / "tables" / "paper" / "small.md").read_text()
    assert "\n| plain   | - " in page
    assert f"{path} cannot be read" in page
    assert "force=true" in page


# Disks


@pytest.mark.parametrize("verb", ["train", "train -m", "tables"])
def test_an_output_folder_that_cannot_be_written(lab, outputs, small_table, tiny, verb):
    outputs.write_text("a file where a folder should be")
    words = [] if verb == "tables" else tiny
    ended = lab(*verb.split(), *words, f"output_root={outputs}/x")
    assert ended.status in (1, 2)
    assert "cannot write" in ended.err
    assert f"{outputs}/x" in ended.err
    assert "output_root" in ended.err
    assert "Traceback" not in ended.err
    assert outputs.read_text() == "a file where a folder should be"


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_an_output_folder_without_permission(lab, outputs, tiny):
    outputs.mkdir(mode=0o500)
    ended = lab("train", *tiny)
    assert ended.status == 2
    assert "output_root" in ended.err
    assert not list(outputs.iterdir())


@pytest.fixture
def small_files():
    """No file may grow over 64 KiB: the checkpoint, of 200 KB, does not fit (EFBIG; Python ignores the signal)."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_keeps_the_checkpoint_before_it(lab, interrupted, tiny, request):
    path = interrupted / "checkpoint.safetensors"
    before = path.read_bytes()
    request.getfixturevalue("small_files")
    ended = lab("train", *tiny)
    assert ended.status == 2
    assert f"cannot write {path}: {os.strerror(errno.EFBIG)}" in ended.err
    assert "output_root" in ended.err
    assert "Traceback" not in ended.err
    assert path.read_bytes() == before
    assert not list(interrupted.rglob("*.partial"))
    assert "cannot write" in json.loads((interrupted / "error.json").read_text())["error"]


def test_after_a_failed_write_the_same_command_goes_on(lab, outputs, tiny, monkeypatch):
    fsync, synced = os.fsync, []

    def full_after_some(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 5:  # .hydra/config.yaml, overrides.yaml, checkpoint and metrics of epoch 1, checkpoint of epoch 2
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_after_some)
        ended = lab("train", *tiny)
    assert ended.status == 2
    assert os.strerror(errno.ENOSPC) in ended.err
    assert "Traceback" not in ended.err
    (folder,) = outputs.glob("runs/*")
    assert {path.name for path in folder.iterdir()} == {".lock", ".hydra", "checkpoint.safetensors", "metrics.jsonl"}
    assert load_state(folder / "checkpoint.safetensors", folder.name[-8:]).epoch == 2
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    ended = lab("train", *tiny)
    assert ended.status == 0
    assert "after epoch 2" in ended.err
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 3
    assert not (folder / "checkpoint.safetensors").exists()


def test_a_full_disk_in_a_multirun_still_ends_with_the_list(lab, tiny, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    ended = lab("train", "-m", *tiny, "seed=0,1")
    assert ended.status == 1
    assert "2 jobs failed:" in ended.err
    assert ended.err.rpartition("jobs failed:")[2].count(os.strerror(errno.ENOSPC)) == 2
    assert "Traceback" not in ended.err


def test_a_full_disk_stops_an_evaluation_without_a_record(lab, trained, tiny, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ended = lab("evaluate", *tiny, "attack=fgsm", "panel=none")
    assert ended.status == 2
    assert "outcome.partial.npz" in ended.err
    (folder,) = (trained / "evaluate").iterdir()
    assert [path.name for path in folder.iterdir()] == [".lock"]
    assert lab("evaluate", *tiny, "attack=fgsm", "panel=none").status == 0


# A loss that is not finite


def test_a_loss_that_is_not_finite_names_epoch_step_and_player(lab, outputs, tiny):
    ended = lab("train", *tiny, "training.optimizer.lr=1e30")
    assert ended.status == 2
    assert "the loss of player 'model' is not finite in epoch 1, step 2" in ended.err
    assert "training.optimizer.lr" in ended.err
    assert "Traceback" not in ended.err
    (folder,) = outputs.glob("runs/*")
    assert {path.name for path in folder.iterdir()} == {".lock", ".hydra", "error.json"}
    assert "player 'model'" in json.loads((folder / "error.json").read_text())["error"]


def test_the_last_good_checkpoint_is_kept(lab, outputs, tiny):
    command = ["train", *tiny, "training=pni", "training.batch_size=64"]
    command += ["training.optimizer.lr=0.01", "training.schedule.milestones=[2]", "training.schedule.factor=1e30"]
    for _ in range(2):  # a second attempt goes on from there, and fails at the same step
        ended = lab(*command)
        assert ended.status == 2
        assert "not finite in epoch 3, step 2; the checkpoint of epoch 2 is kept" in ended.err
        (folder,) = outputs.glob("runs/*")
        state = load_state(folder / "checkpoint.safetensors", folder.name[-8:])
        assert state.epoch == 2
        assert all(torch.isfinite(tensor).all() for tensor in state.model.values())
        assert (folder / "error.json").exists()
        assert not (folder / "run.json").exists()
        assert len((folder / "metrics.jsonl").read_text().splitlines()) == 2


def test_weights_that_overflow_in_the_last_step_are_never_saved(lab, outputs, tiny):
    """The loss of the one step is finite; what the step leaves behind is not."""
    words = ["training.epochs=1", "dataset.train_size=20", "training.optimizer.lr=3e38", "training.optimizer.weight_decay=1e6"]
    ended = lab("train", *tiny, *words)
    assert ended.status == 2
    assert "epoch 1" in ended.err
    (folder,) = outputs.glob("runs/*")
    assert not (folder / "run.json").exists()
    assert not (folder / "checkpoint.safetensors").exists()


# What PyTorch refuses


def test_batchnorm_on_single_values_names_the_batch_size(lab, tiny):
    ended = lab("train", *tiny, "backbone=resnet18", "dataset.train_size=20", "training.batch_size=1")
    assert ended.status == 2
    assert ended.err.startswith("error: training.batch_size: BatchNorm has to see more than one value of each channel")
    assert "got training.batch_size=1; choose a larger one" in ended.err


def test_a_last_batch_of_one_image_is_no_such_case(lab, tiny):
    """It is left out."""
    assert lab("train", *tiny, "backbone=resnet18", "dataset.train_size=21", "training.batch_size=10", "training.epochs=1").status == 0


def test_compiling_without_a_compiler_names_the_key(lab, tiny, monkeypatch):
    """What PyTorch raises is made here: its own search for a compiler takes ten seconds."""
    error = type("InductorError", (RuntimeError,), {"__module__": "torch._inductor.exc"})

    def compiled(network, **_):
        def forward(*_):
            raise error("InvalidCxxCompiler: No working C++ compiler found\n\nand how to report it")

        monkeypatch.setattr(network, "forward", forward)

    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    ended = lab("train", *tiny, "training.compile=true")
    assert ended.status == 2
    assert ended.err.startswith(
        "error: training.compile: torch.compile cannot compile this network here (InductorError: InvalidCxxCompiler: "
    )
    assert "how to report it" not in ended.err
    assert "apt install g++" in ended.err
    assert "training.compile=false" in ended.err


def test_a_job_that_had_nothing_left_to_do_is_not_lost(lab, outputs, small_table):
    """The run is made again to the same weights; its evaluation counts then, and nothing is written."""
    assert lab("reproduce").status == 0
    (path,) = outputs.glob("runs/*/run.json")
    path.write_bytes(path.read_bytes()[:-20])
    ended = lab("reproduce")
    assert ended.status == 0, ended.err
    assert "ended with neither result nor error" not in ended.err
    assert "1 missing" not in lab("reproduce", "--dry-run").out


def test_finished_commands_take_away_what_a_kill_left(lab, outputs, small_table, tiny):
    assert lab("reproduce").status == 0
    (run,) = outputs.glob("runs/*")
    (evaluation,) = run.glob("evaluate/*")
    for command in (["train", *tiny], ["reproduce"], ["evaluate", *tiny, "attack=fgsm", "panel=none"]):
        left = [run / "checkpoint.safetensors", outputs / "tables" / "paper" / ".small.md.4194999.partial"]
        left += [evaluation / "outcome.partial.npz"]
        for path in left:
            path.write_bytes(b"left")
        assert lab(*command).status == 0
        assert [path.name for path in left if path.exists()] == ([left[1].name] if command[0] != "reproduce" else [])
