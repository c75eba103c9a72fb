"""Launchers before any job of theirs runs: presets, what is refused, and when a job counts as finished."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.utils import get_object
from omegaconf import OmegaConf

from robustbench_lab.jobs.reproduce import Launches, _all_awaited
from robustbench_lab.settings.conf import CONF
from robustbench_lab.tables.planning import Job


@pytest.mark.parametrize(("launcher", "owner", "name"), [
    ("hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "submitit.Job", "results"),
    ("hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher", "ray", "get"),
])  # fmt: skip
def test_a_dead_job_is_no_reason_not_to_wait_for_the_others(monkeypatch, launcher, owner, name):
    def died(job: object) -> None:
        raise RuntimeError(f"{job} died\nand this is its log")

    owner = get_object(owner)
    monkeypatch.setattr(owner, name, died)
    with _all_awaited(launcher):
        assert [getattr(owner, name)(number)[0] for number in range(3)] == [None, None, None]
    with pytest.raises(RuntimeError, match="3 died"):
        getattr(owner, name)(3)


def test_a_job_is_finished_when_its_result_counts_now(tmp_path):
    """Whoever made it, and when: a run that was made again to the same weights has no newer file than it needs."""
    counting = {"there"}
    jobs = [Job("evaluate", name, [], tmp_path / name, frozenset(), name, False, None, lambda name=name: name in counting) for name in "ab"]
    cfg = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}, "launcher": {"_target_": "basic"}}})
    launches = Launches(cfg, None, None)
    assert [launches.finished(job) for job in jobs] == [False, False]
    counting |= {"a"}
    assert [launches.finished(job) for job in jobs] == [True, False]


def test_what_launches_nothing_leaves_nothing(lab, small_table, outputs):
    ended = lab("reproduce", "--dry-run", "hydra/launcher=joblib")
    assert ended.status == 0, ended.err
    assert "1 training runs: 0 finished, 1 missing" in ended.out
    assert lab("reproduce", "tables=[paper/large]").status == 2
    assert not outputs.exists()


def test_a_launcher_that_starts_no_job_says_why(lab, small_table, monkeypatch):
    monkeypatch.setenv("PATH", "")  # no sbatch
    ended = lab("reproduce", "device=cpu", "hydra/launcher=slurm")
    assert ended.status == 2
    assert "error: hydra/launcher: " in ended.err
    assert "started no job" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(("choice", "module", "install"), [
    ("ray", "hydra_plugins.hydra_ray_launcher", "'robustbench_lab[ray]'"),
    ("ray_cluster", "hydra_plugins.hydra_ray_launcher", "'robustbench_lab[ray]'"),
    ("submitit_local", "hydra_plugins.hydra_submitit_launcher", "'robustbench_lab[slurm]'"),
    ("slurm", "hydra_plugins.hydra_submitit_launcher", "'robustbench_lab[slurm]'"),
])  # fmt: skip
def test_a_launcher_that_is_not_installed(lab, outputs, monkeypatch, choice, module, install):
    from robustbench_lab import __main__

    find_spec = __main__.find_spec
    monkeypatch.setattr(__main__, "find_spec", lambda name: None if name == module else find_spec(name))
    ended = lab("reproduce", f"hydra/launcher={choice}")
    assert ended.status == 2
    assert ended.err.startswith(f"error: hydra/launcher={choice} is not installed; install it: python -m pip install {install}")
    assert not outputs.exists()


@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONF / "hydra" / "launcher").glob("*.yaml")))
@pytest.mark.parametrize("verb", ["reproduce", "train"])
def test_a_preset_composes_and_makes_a_launcher(preset, verb):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(verb, [f"hydra/launcher={preset}"], return_hydra_config=True)
        launcher = Plugins.instance()._instantiate(cfg.hydra.launcher)
    assert isinstance(launcher, Launcher)
    lines = (CONF / "hydra" / "launcher" / f"{preset}.yaml").read_text().splitlines()
    assert f"hydra/launcher={preset}" in lines[0]
