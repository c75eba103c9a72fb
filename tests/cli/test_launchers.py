"""`reproduce` through Hydra's launchers, each for real: worker processes that are killed, and jobs that fail."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from other_package import write_choice
from PIL import Image

LAUNCHERS = {
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit": ["hydra/launcher=submitit_local"],
    "ray": ["hydra/launcher=ray", "+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"],
}
COMMAND = ["reproduce", "device=cpu", "report=false"]
FAST = {"label": "fast"}
SLOW = {
    "label": "slow",
    "overrides": ["training.epochs=8", "dataset.train_size=600", "defense=fm", "defense.start_epoch=0"],  # some 0.3 s an epoch
}
FGSM = {"label": "FGSM", "overrides": ["attack=fgsm"]}
CODE = "attack.steps={_target_:robustbench_lab.multirun.sys.modules.os.system,command:'touch code-ran'}"
BROKEN = {"label": "broken", "overrides": ["attack=pgd", CODE]}  # no worker does what it says
OF_THE_PROCESS = ("seconds", "finished_at", "device")  # what two records of one job may differ in
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds processes by what they hold open"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: list[str]) -> Callable[..., None]:
    """`table(rows, columns)`: the only table there is, for this process and for real ones."""

    def write(rows: list[dict[str, Any]], columns: list[dict[str, Any]]) -> None:
        path = tmp_path / "table" / "paper" / "small.yaml"
        path.parent.mkdir(parents=True)
        words = [*(word for word in tiny if not word.startswith("device")), "panel=none"]
        content = {
            "title": "Small", "source": "none", "profile": "smoke", "corner": "defense", "metric": "robust_accuracy",
            "overrides": words, "rows": rows, "columns": columns,
        }  # fmt: skip
        path.write_text(yaml.safe_dump(content))
        monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "table"))

    return write


@pytest.fixture
def reproduce(start: Callable[..., subprocess.Popen[str]], outputs: Path, monkeypatch) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """`reproduce("joblib", ...)`: the command through that launcher, started; whatever it leaves running is ended after the test."""
    for name, value in {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}.items():
        monkeypatch.setenv(name, value)

    yield lambda launcher, *words: start(*COMMAND, *LAUNCHERS[launcher], *words)
    for process in workers(outputs):
        os.kill(process, signal.SIGKILL)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status, and what went to stderr."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


def workers(outputs: Path) -> set[int]:
    """Processes that the command started, and it: they have its output folder in their environment."""
    found = set()
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"ROBUSTBENCH_LAB_OUTPUTS={outputs}".encode() in environment.read_bytes().split(b"\0"):
                found.add(int(environment.parent.name))
        except OSError:  # it ended, or is another user's
            continue
    return found


def holders(folder: Path) -> set[int]:
    """Processes that have the folder's lock open."""
    found = set()
    for process in workers(next(parent.parent for parent in folder.parents if parent.name == "runs")):
        try:
            if any(os.readlink(file) == str(folder / ".lock") for file in Path(f"/proc/{process}/fd").iterdir()):
                found.add(process)
        except OSError:
            continue
    return found


def slow_run(outputs: Path, process: subprocess.Popen[str]) -> Path:
    """The folder of the slow run, once its first epoch is on disk."""
    while not (found := list(outputs.glob("runs/*-fm-*/metrics.jsonl"))):
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)
    return found[0].parent


def results(outputs: Path) -> dict[str, dict[str, Any]]:
    """Every run.json and record.json, without what tells time or process."""

    def kept(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: kept(entry) for key, entry in value.items() if key not in OF_THE_PROCESS}
        return [kept(entry) for entry in value] if isinstance(value, list) else value

    files = [*outputs.glob("runs/*/run.json"), *outputs.glob("runs/*/evaluate/*/record.json")]
    return {str(path.relative_to(outputs)): kept(json.loads(path.read_text())) for path in files}


def made(outputs: Path) -> dict[Path, int]:
    files = [*outputs.glob("runs/*/run.json"), *outputs.glob("runs/*/evaluate/*/record.json")]
    return {path: path.stat().st_mtime_ns for path in files}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_same_records_as_in_one_process_and_a_failing_job_stops_no_other(reproduce, table, lab_in, outputs, tmp_path, launcher):
    table([FAST, {"label": "smooth", "overrides": ["defense=label_smoothing"]}], [FGSM, BROKEN])
    assert lab_in(tmp_path / "basic", *COMMAND).status == 1
    status, err = ended(reproduce(launcher))
    assert status == 1, err
    head, _, listed = err.rpartition("jobs failed:\n")
    assert head.endswith("\n2 ")
    assert listed.count("attack.steps") == 4, "the words of two evaluations and what was wrong with them"
    assert "Traceback" not in err
    assert not list(tmp_path.rglob("code-ran"))
    found = results(outputs)
    assert len(found) == 4
    assert found == results(tmp_path / "basic")
    for path, result in found.items():
        verb = "train" if path.endswith("run.json") else "evaluate"
        assert re.fullmatch(rf"python -m robustbench_lab {verb} backbone=small_cnn [^/']+", result["command"])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_workers_know_other_packages_and_folders(reproduce, outputs, other_package, tmp_path, monkeypatch, launcher):
    """By the variables alone, whatever their current folder."""
    write_choice(tmp_path / "choices", "attack/uphill_quarter", "defaults: [uphill]\nshare: 0.25\n")
    table = other_package / "conf" / "table" / "theirs" / "sides.yaml"
    table.write_text(table.read_text().replace("uphill_half", "uphill_quarter"))
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("ROBUSTBENCH_LAB_TABLES", str(tmp_path / "none"))
    status, err = ended(reproduce(launcher, "tables=[theirs/sides]", "--config-dir", str(tmp_path / "choices")))
    assert status == 0, err
    attacks = [path.parent.name.partition("-")[0] for path in outputs.glob("runs/*/evaluate/*/record.json")]
    assert sorted(attacks) == ["uphill"] * 2 + ["uphill_quarter"] * 2


@pytest.mark.parametrize("launcher", ["joblib", "ray"])
def test_a_killed_worker_loses_nothing_but_its_own_job_which_starts_again(reproduce, table, lab, outputs, launcher):
    table([FAST, SLOW], [FGSM])
    process = reproduce(launcher)
    folder = slow_run(outputs, process)
    (worker,) = holders(folder)
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    status, err = ended(process)
    assert status == 0, err
    assert len(results(outputs)) == 4
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(1, 9))
    before = made(outputs)
    assert lab(*COMMAND, *LAUNCHERS[launcher]).status == 0
    assert made(outputs) == before, "nothing is left to do"


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_job_that_is_killed_each_time_is_listed_and_the_next_call_finishes_it(reproduce, table, outputs, launcher):
    table([SLOW, FAST, {"label": "smooth", "overrides": ["defense=label_smoothing"]}], [FGSM])
    words = ["+hydra.launcher.ray.remote.max_retries=0"] if launcher == "ray" else []  # Ray itself would try it three times more
    process, killed = reproduce(launcher, *words), set()
    while process.poll() is None:
        for worker in {worker for folder in outputs.glob("runs/*-fm-*") for worker in holders(folder)}:
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
        time.sleep(0.2)
    status, err = ended(process)
    assert status == 1, err
    assert len(killed) == 2
    (folder,) = outputs.glob("runs/*-fm-*")
    listed = err.rpartition("1 jobs failed:\n")[2]
    assert listed.startswith("- python -m robustbench_lab train backbone=small_cnn ")
    assert "ended with neither result nor error" in listed
    assert "was its process killed?" in listed
    assert "1 evaluations wait for runs that could not be trained" in err
    launched = err.count("\t#")
    assert launched == 6 or launcher == "joblib", "3 trainings, 1 of them again, 2 evaluations; joblib's other worker dies as well"
    before = made(outputs)
    assert len(before) == 4, "the two other runs are trained and attacked"
    status, err = ended(reproduce(launcher))
    assert status == 0, err
    after = made(outputs)
    assert {path: after[path] for path in before} == before
    assert {path.relative_to(folder).parts[0] for path in after.keys() - before.keys()} == {"run.json", "evaluate"}


def test_a_job_that_its_time_limit_stops_is_queued_again_and_goes_on(reproduce, table, outputs):
    """Submitit asks for an end with SIGUSR2, here as on SLURM."""
    table([SLOW], [FGSM])
    process = reproduce("submitit")
    folder = slow_run(outputs, process)
    (worker,) = holders(folder)
    os.kill(worker, signal.SIGUSR2)
    status, err = ended(process)
    assert status == 0, err
    assert err.count("\t#") == 2, "it is launched once"
    said = "".join(path.read_text() for path in outputs.glob("sweeps/*/.submitit/*/*.err"))
    assert f"resuming {folder.name} after epoch" in said
    assert len(results(outputs)) == 2


def test_killed_as_a_whole_the_same_command_goes_on(reproduce, table, outputs):
    table([FAST, SLOW], [FGSM])
    process = reproduce("joblib")
    folder = slow_run(outputs, process)
    process.kill()
    process.wait()
    assert not (folder / "run.json").exists()
    status, err = ended(reproduce("joblib"))
    assert status == 0, err
    assert len(results(outputs)) == 4
    assert [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == list(range(1, 9))


def test_ctrl_c_leaves_no_worker_of_joblib_behind(reproduce, table, outputs):
    table([FAST, SLOW], [FGSM])
    process = reproduce("joblib")
    slow_run(outputs, process)
    assert len(workers(outputs)) > 2
    while process.poll() is None:  # as a person does who sees nothing happen: joblib may swallow one
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
    status, err = ended(process)
    assert status == 130, err
    assert "Traceback" not in err
    deadline = time.monotonic() + 10
    while workers(outputs) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not workers(outputs)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_images_are_streamed_by_processes_of_the_jobs(reproduce, table, outputs, tmp_path, launcher):
    shades = np.random.default_rng(0).integers(0, 80, (12, 8, 8, 3))
    for split in ("train", "test"):
        for number, pixels in enumerate(shades):
            path = tmp_path / "images" / split / ("light" if number % 2 else "dark") / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels + 150 * (number % 2)).astype(np.uint8)).save(path)
    folder = ["dataset=image_folder", f"dataset.path={tmp_path}/images", "dataset.classes=2", "dataset.size=8", "dataset.resize=8"]
    table([{"label": "folder", "overrides": [*folder, "dataset.in_memory_limit=0"]}], [FGSM])
    status, err = ended(reproduce(launcher, "data.workers=2"))
    assert status == 0, err
    assert len(results(outputs)) == 2


def test_a_sweep_of_one_verb_through_joblib(start, outputs, tiny, monkeypatch):
    monkeypatch.delenv("ROBUSTBENCH_LAB_DATA", raising=False)  # the default, which a worker must be able to resolve
    status, err = ended(start("train", "-m", *tiny, "training.epochs=1", "seed=0,1", *LAUNCHERS["joblib"]))
    assert status == 0, err
    runs = [result for path, result in results(outputs).items() if path.endswith("run.json")]
    assert sorted(run["config"]["seed"] for run in runs) == [0, 1]
    assert all(re.fullmatch(r"python -m robustbench_lab train backbone=small_cnn [^/']* seed=\d", run["command"]) for run in runs), runs
