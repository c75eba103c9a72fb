"""Whatever a user says is read, or refused with its key, what was expected and what came: words, options and environment variables."""

import os
from collections.abc import Callable
from pathlib import Path

import fuzz
import pytest
from hypothesis import HealthCheck, Phase, given, settings

POINTS = fuzz.POINTS
TRIES = {"train": 40, "evaluate": 40, "check": 20, "tables": 20, "report": 20, "reproduce": 20}


@pytest.mark.parametrize("verb", TRIES)
def test_any_word_is_read_or_refused(verb: str, lab_in: Callable, tmp_path_factory: pytest.TempPathFactory) -> None:
    """`python tests/cli/try_words.py 2000` tries more of them."""
    outputs = tmp_path_factory.mktemp("words") / "outputs"
    if verb in ("evaluate", "check"):
        assert lab_in(outputs, "train", *POINTS).status == 0
    assert lab_in(outputs, verb, *fuzz.USUAL[verb]).status == 0, "but for the word, nothing is wrong"
    ended = {0: 0, 2: 0}

    @settings(
        max_examples=TRIES[verb],
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(fuzz.commands(verb))
    def go(command: tuple[str, ...]) -> None:
        if command[-1].lstrip("+").startswith(("output_root=", "hydra.sweep.dir=")):
            return  # wherever that is
        end = lab_in(outputs, *command)
        assert not fuzz.wrong(end.status, end.err), (command, end.err)
        ended[end.status] += 1

    go()
    assert ended[2] > 0


@pytest.fixture
def refused(lab: Callable, outputs: Path) -> Callable[..., str]:
    def call(*arguments: str) -> str:
        ended = lab(*arguments)
        assert ended.status == 2, ended.err
        assert "Traceback" not in ended.err
        assert ended.err.startswith("error: ")
        assert not list(outputs.rglob("*"))
        return ended.err.removeprefix("error: ").strip()

    return call


# Code


@pytest.mark.parametrize(
    "value",
    [
        "{{_target_:robustbench_lab.records.os.system,command:'touch {mark}'}}",
        "{{_target_:robustbench_lab.multirun.sys.modules.os.system,command:'touch {mark}'}}",
        "{{_target_:os.system,command:'touch {mark}'}}",
        "{{_target_:robustbench_lab.storage.files.write_bytes,path:{mark},content:a}}",
    ],
)
@pytest.mark.parametrize(
    "key", ["budget.eps", "attack.steps", "attack", "dataset.normalise", "training.optimizer", "training.optimizer.lr", "seed"]
)
def test_no_word_runs_code(refused: Callable[..., str], tmp_path: Path, key: str, value: str) -> None:
    mark = tmp_path / "mark"
    message = refused("evaluate", "budget=linf", f"{key}={value.format(mark=mark)}")
    assert message.startswith(key)
    assert not mark.exists()


@pytest.mark.parametrize(
    "words",
    [
        ["+hydra.callbacks.more={_target_:os.system,command:'touch MARK'}"],
        ["hydra.callbacks.failures._target_=os.system"],
        ["+hydra.launcher.more={_target_:os.system,command:'touch MARK'}"],
        ["hydra.launcher={_target_:os.system}"],
        ["-m", "+hydra.launcher.more={a:{_target_:os.system,command:'touch MARK'}},1"],
        ["hydra.launcher._target_=os.system"],
        ["+defense.more={_target_:os.system,command:'touch MARK'}", "+hydra.launcher.more=${defense.more}"],
        ["+hydra.job_logging.handlers.more={'()':os.system,command:'touch MARK'}"],
        ["hydra.sweeper._target_=os.system", "-m"],
        ["hydra.sweeper.params={seed:'1,2'}", "-m"],
        ["hydra.searchpath=[file:///tmp]"],
        ["--experimental-rerun", "MARK"],
        ["--experimental-rerun=MARK"],
        ["--exp", "MARK"],
        ["--config-name", "evaluate"],
        ["--config-name=evaluate"],
        ["-cn", "evaluate"],
        ["--config-path", "/tmp"],
        ["--config-n=x"],
        ["--config-dir", "/tmp"],
        ["--config-dir=/tmp", "hydra/job_logging=evil"],
        ["-cd", "/tmp"],
    ],
)
def test_what_would_make_hydra_run_another_thing_is_no_word(refused: Callable[..., str], tmp_path: Path, words: list[str]) -> None:
    mark = tmp_path / "mark"
    refused("train", *POINTS, *(word.replace("MARK", str(mark)) for word in words))
    assert not mark.exists()


# Types


@pytest.mark.parametrize(
    ("verb", "word", "said"),
    [
        *(
            (verb, f"output_root={value}", "output_root: expected a path")
            for verb in ("train", "evaluate", "check", "tables", "report", "reproduce")
            for value in ("null", "[a]", "true", "''")
        ),
        ("train", "data.root=null", "data.root: expected a path"),
        ("train", "data.root=[a]", "data.root: expected a path"),
        ("train", "data=1", "data: expected a mapping"),
        ("train", "+data.more=1", "data: expected download, root, workers"),
        ("train", "data.workers=-1", "data.workers: expected a whole number >= 0, got -1"),
        ("train", "device=null", "device: expected auto, free, cpu, cuda or cuda:N, got None"),
        ("train", "device=[]", "device: expected auto, free, cpu, cuda or cuda:N, got []"),
        ("train", "seed=true", "seed: expected a whole number"),
        ("train", "seed=1e400", "seed: expected a whole number"),
        ("train", "training.epochs=true", "training.epochs: expected a whole number >= 0, got True"),
        ("train", "training.batch_size=true", "training.batch_size: expected a whole number >= 1, got True"),
        ("train", "training.optimizer.lr=1e300", "training.optimizer.lr: expected a number, got 1e+300"),
        ("train", "training.optimizer.lr=nan", "training.optimizer.lr: expected a number, got nan"),
        ("train", "training.epochs=${nope}", "training.epochs: "),
        ("train", "training.epochs=${training.epochs}", "training.epochs: "),
        ("train", "output_root=${nope}", "output_root: "),
        ("train", "dataset=1", "dataset=1: expected dataset to be one of "),
        ("train", "dataset=null", "dataset=null: expected dataset to be one of "),
        ("train", "=1", "=1: expected key=value"),
        ("train", "~backbone", "backbone: expected a choice"),
        ("train", "~seed", "seed: expected a value"),
        ("train", "dataset.budget=3", "dataset.budget: expected a mapping"),
        ("train", "+dataset.budget.more=3", "dataset.budget: "),
        ("train", "backbone.channels=5", "backbone.channels: expected 2, as the dataset has, got 5"),
        ("train", "training.optimizer.betas=[0.9]", "training.optimizer.betas: expected a list of 2 numbers, got [0.9]"),
        ("train", "training.optimizer.betas=3", "training.optimizer.betas: expected a list of 2 numbers, got 3"),
        ("train", "training.optimizer.lr=null", "training.optimizer.lr: expected a value, got None"),
        ("train", "training.optimizer._target_=torch.optim.SparseAdam", "training.optimizer: "),
        ("train", "training.optimizer._target_=torch.optim.LBFGS", "training.optimizer: "),
        ("train", "dataset.classes=99999999", "dataset.classes: expected 2, as moons has, got 99999999"),
        ("train", "defense.teacher=[defense=nope]", "defense.teacher: there is no such key"),
        ("train", "training.start=[defense=nope]", "defense: expected one of "),
        ("evaluate", "attack.steps=${nope}", "attack.steps: "),
        ("evaluate", "attack=[pgd,fgsm]", "attack=[pgd,fgsm]: expected attack to be one of "),
        ("evaluate", "attack_seed=true", "attack_seed: expected a whole number"),
        ("evaluate", "batch_size=true", "batch_size: expected a whole number >= 1, got True"),
        ("evaluate", "panel.longer=0", "panel.longer: "),
        ("evaluate", "threat_model.overrides=3", "threat_model.overrides: "),
        ("evaluate", "training.validation=7", "training.validation: expected a finite number >= 0 and < 1, got 7"),
        ("tables", "tables=1", "tables: expected a text, or a list (each a text)"),
        ("tables", "tables=null", "tables: expected a text, or a list (each a text)"),
        ("tables", "tables=[1,2]", "tables: expected a text, or a list (each a text)"),
        ("report", "reference=1", "reference: expected true or false, got 1"),
        ("reproduce", "profile=[quick]", "profile: expected a text"),
        ("reproduce", "batch_size=0", "batch_size: expected a whole number >= 1, got 0"),
        ("train", "hydra/launcher=7", "hydra/launcher=7: "),
        ("train", "hydra.verbose=0.5", "hydra.verbose=0.5: "),
    ],
)  # fmt: skip
def test_a_word_of_the_wrong_type_is_named(refused: Callable[..., str], verb: str, word: str, said: str) -> None:
    words = [word for word in fuzz.USUAL[verb] if not word.startswith("-")] + (["panel=default"] if "panel" in word else [])
    message = refused(verb, *words, word)
    assert message.startswith(said), message


def test_a_launchers_own_refusal_is_one_line(lab: Callable) -> None:
    ended = lab("train", "-m", *POINTS, "seed=1,2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0")
    assert ended.status == 2
    assert "error: hydra/launcher=joblib hydra.launcher.n_jobs=0 gave up: ValueError: n_jobs == 0" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["backbone=resnet20", "backbone.width=100000"], "out of memory: "),
        (["backbone=resnet20", "backbone.width=100000000000000000000"], "out of memory: "),
        ([*POINTS, "dataset.size=259631145818"], "dataset.size: expected a whole number >= 1 and <= 50000, got 259631145818"),
    ],
    ids=["memory", "counting", "size"],
)
def test_what_is_too_large_is_no_traceback(refused: Callable[..., str], words: list[str], said: str) -> None:
    assert refused("train", *words).startswith(said)


# Words that nothing reads


@pytest.mark.parametrize("word", ["profile=quik", "+profile=quik", "profile=1"])
def test_a_choice_that_is_not_there_is_refused(refused: Callable[..., str], word: str) -> None:
    assert f"{word}: expected profile to be one of paper, quick, smoke, got " in refused("train", word)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ROBUSTBENCH_LAB_OUTPUT", "/tmp/x", "no such environment variable is read; expected one of ROBUSTBENCH_LAB_OUTPUTS, "),
        ("ROBUSTBENCH_LAB_PROFILE", "quick", "no such environment variable is read"),
        ("ROBUSTBENCH_LAB_DATA", " ", "expected a path, got an empty text"),
        ("ROBUSTBENCH_LAB_TABLES", "/nowhere", "expected a folder of tables, <paper>/<table>.yaml, but there is no /nowhere"),
    ],
)
def test_a_variable_that_nothing_reads_is_refused(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    assert refused("tables").startswith(f"{name}: {said}")


def test_options_stand_anywhere(lab: Callable, outputs: Path) -> None:
    assert lab("train", *POINTS, "--multirun", "seed=1,2").status == 0
    assert len(list(outputs.glob("runs/*/run.json"))) == 2
    assert "seed: 3" in lab("train", "seed=3", "--cfg", "job", "force=true").out


# Paths


@pytest.mark.parametrize("path", ["20241105", "~/im", "a b", "é=x", "it's", "[a]", "a#{b}"])
def test_a_folder_of_images_may_have_any_name(refused: Callable[..., str], path: str) -> None:
    message = refused("train", "dataset=image_folder", f"dataset.path={path}", "backbone=small_cnn")
    assert message.startswith("dataset.path: ") or "image" in message
    assert "key=value" not in message


@pytest.mark.parametrize("name", ["20241105", "1_000", "1e5", "3.10", "007", "inf"])
@pytest.mark.parametrize("verb", ["train", "tables", "report", "reproduce"])
def test_a_folder_may_be_named_as_a_number(lab: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, name: str) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    real = os.chdir
    monkeypatch.setattr(os, "chdir", lambda path: real(folder if "elsewhere" in str(path) else path))
    words = [*fuzz.USUAL[verb], f"output_root={name}", *([f"data.root={name}"] if verb in ("train", "reproduce") else [])]
    ended = lab(verb, *words)
    assert ended.status == 0, ended.err
    assert [path.name for path in folder.iterdir()] == ([name] if verb != "reproduce" else [])


def test_a_home_folder_is_found_wherever_it_is_said(lab: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lab("train", *POINTS, "output_root=~/results").status == 0
    assert list(tmp_path.glob("results/runs/*/run.json"))
    assert lab("train", "-m", *POINTS, "seed=1", "output_root=~/results").status == 0
    assert len(list(tmp_path.glob("results/runs/*/run.json"))) == 2
    assert lab("tables", "tables=[smoke/digits]", "output_root=~/results").status == 0
    assert (tmp_path / "results" / "tables" / "smoke" / "digits.md").exists()


def test_a_home_folder_in_the_environment(lab_in: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert lab_in(Path("~/results"), "train", *POINTS).status == 0
    assert list(tmp_path.glob("results/runs/*/run.json"))


# Balls


@pytest.mark.parametrize(
    ("words", "key", "farthest"),
    [
        (["budget=linf", "budget.eps=8"], "budget", "1"),
        (["budget=linf", "budget.eps=1.01"], "budget", "1"),
        (["budget=l2", "budget.eps=8.1"], "budget", "8"),  # 64 pixels
        (["budget=l0", "attack=one_pixel", "budget.eps=65"], "budget", "64"),
        (["defense=static_adversarial_training", "defense.budget.eps=8"], "defense.budget", "1"),
        (["dataset.budget.eps=8"], "dataset.budget", "1"),
        (["defense=vat", "defense.eps=8.1"], "defense", "8"),
    ],
)
def test_a_ball_in_grey_levels_is_refused(refused: Callable[..., str], words: list[str], key: str, farthest: str) -> None:
    message = refused("evaluate" if key == "budget" else "train", *words)
    assert message.startswith(f"{key}.eps: expected at most {farthest}, ")
    assert ("as a number of pixels" if "budget=l0" in words else "8/255; or inf") in message


@pytest.mark.parametrize("words", [["budget=linf", "budget.eps=1"], ["budget=l2", "budget.eps=8"], ["attack=deepfool", "budget=box"]])
def test_the_largest_ball_is_none_too_large(lab: Callable, words: list[str]) -> None:
    assert "no finished run" in lab("evaluate", *words).err


@pytest.mark.parametrize("eps", ["8./255.", "8/255.", "8./255", "8/255"])
def test_a_fraction_is_written_as_the_field_does(lab: Callable, eps: str) -> None:
    message = lab("evaluate", f"budget.eps={eps}").err
    assert "no finished run" in message
