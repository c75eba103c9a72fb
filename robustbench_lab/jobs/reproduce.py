"""Train and evaluate what tables still miss, through Hydra's launcher, then write the tables and the report."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from robustbench_lab.grid import chosen_tables
from robustbench_lab.jobs.tables import filled, write
from robustbench_lab.multirun import lost
from robustbench_lab.planning import Job, duration, estimate, plan_of
from robustbench_lab.records import ERROR_FILE

log = logging.getLogger("robustbench_lab")

ATTEMPTS = 2  # launches of a job that ends with neither result nor error: its worker was killed, or another one's death took it along
LOOK_EVERY = 2.0  # seconds between looks at what is finished


def sweep(cfg: DictConfig, context: HydraContext, task_function: TaskFunction) -> None:
    """What `reproduce` does; `cfg` is its config with Hydra's own part."""
    output_root = Path(cfg.output_root).absolute()
    tables = chosen_tables(cfg.tables, cfg.table_profile)
    plan = plan_of((cell for _, cells in filled(tables, output_root) for cell in cells), output_root)
    print(f"{len(tables)} tables, profile {cfg.table_profile}\n" + "\n".join(plan.lines()), flush=True)
    if cfg.plan:
        return
    launches = Launches(cfg, context, task_function)
    launches.run(plan.missing("train"))
    trained = {job.fingerprint for job in plan.jobs if job.verb == "train" and (job.finished or job.file.exists())}
    evaluations = plan.missing("evaluate")
    launches.run([job for job in evaluations if job.needs <= trained])
    if waiting := [job for job in evaluations if not job.needs <= trained]:
        log.warning("%d evaluations wait for runs that could not be trained", len(waiting))
    for table, cells in filled(tables, output_root):
        write(table, cells, output_root)
    if cfg.report:
        from robustbench_lab.jobs.report import write_report

        write_report(output_root)


class Launches:
    """Lists of jobs, handed to the launcher that the command chose."""

    def __init__(self, cfg: DictConfig, context: HydraContext, task_function: TaskFunction) -> None:
        self.cfg, self.context, self.task_function = cfg, context, task_function
        self.folder = Path(cfg.hydra.sweep.dir)
        self.started = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """All jobs of one verb; those whose worker was killed once more."""
        for _ in range(ATTEMPTS):
            if not jobs:
                return
            jobs = self._launch(jobs)
        for job in jobs:
            lost(f"{job.verb} {job.name}", "ended with neither result nor error: was its process killed? The same command goes on from it")

    def _launch(self, jobs: Sequence[Job]) -> list[Job]:
        """Those of the jobs that ended with neither result nor error."""
        first, self.started = self.started, self.started + len(jobs)
        master = copy.deepcopy(self.cfg)
        with open_dict(master):
            master.hydra.job.config_name = jobs[0].verb
        launcher = Plugins.instance().instantiate_launcher(hydra_context=self.context, task_function=self.task_function, config=master)
        before = {job.file: _written(job.file) for job in jobs}
        with _watched(jobs, before):
            try:
                launcher.launch([self._words(job) for job in jobs], initial_job_idx=first)
            except Exception as error:  # a launcher gives up when one of its workers dies
                log.warning("the launcher stopped: %s: %s", type(error).__name__, str(error).strip().partition("\n")[0])
        return [
            job for number, job in enumerate(jobs, first)
            if _written(job.file) == before[job.file] and not (self.folder / str(number) / ERROR_FILE).exists()
        ]  # fmt: skip

    def _words(self, job: Job) -> list[str]:
        """The job's words, and this command's device and folders."""
        data = self.cfg.data
        local = [
            f"device={self.cfg.device}", f"output_root={_quoted(Path(self.cfg.output_root).absolute())}",
            f"data.root={_quoted(data.root)}", f"data.download={str(data.download).lower()}", f"data.workers={data.workers}",
        ]  # fmt: skip
        return [*job.words, *local, *([f"batch_size={self.cfg.batch_size}"] if job.verb == "evaluate" else [])]


def _quoted(path: object) -> str:
    """A text as Hydra's grammar takes it, whatever is in it."""
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _written(file: Path) -> int | None:
    """When the file was written; None if it is not there."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return None


@contextmanager
def _watched(jobs: Sequence[Job], before: dict[Path, int | None]) -> Iterator[None]:
    """Say how far the whole is whenever a job is finished, wherever it runs."""
    ended, started = threading.Event(), time.monotonic()

    def watch() -> None:
        said = 0
        while not ended.wait(LOOK_EVERY):
            left = [job for job in jobs if _written(job.file) == before[job.file]]
            done = len(jobs) - len(left)
            if done > said:
                said = done
                log.info("%s: %d of %d done in %s; %s", jobs[0].verb, done, len(jobs), duration(time.monotonic() - started), _rest(left))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _rest(left: Sequence[Job]) -> str:
    return f"{len(left)} left ({estimate(left)})" if left else "none left"
