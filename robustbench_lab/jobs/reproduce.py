"""Train and evaluate what tables still miss, through Hydra's launcher, then write the tables and the report."""

from __future__ import annotations

import copy
import glob
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from robustbench_lab.errors import LabError, said
from robustbench_lab.multirun import lost
from robustbench_lab.output import command_line, one_line
from robustbench_lab.settings.conf import CONF, PACKAGE, compose, output_root_of, path_of, reference_results, table_folders
from robustbench_lab.settings.images import Images
from robustbench_lab.settings.keys import check_config
from robustbench_lab.settings.overrides import quoted
from robustbench_lab.settings.packages import sources
from robustbench_lab.settings.refusals import REFUSALS
from robustbench_lab.storage.files import storing
from robustbench_lab.storage.folders import RunFolder
from robustbench_lab.storage.made import Made, content_of
from robustbench_lab.storage.records import ERROR_FILE
from robustbench_lab.tables.cells import Cell, filled
from robustbench_lab.tables.covering import covering
from robustbench_lab.tables.grid import Table
from robustbench_lab.tables.planning import Job, duration, plan_of
from robustbench_lab.tables.reading import chosen_tables
from robustbench_lab.tables.view import view_of

log = logging.getLogger("robustbench_lab")

ATTEMPTS = 2  # turns of a job that ends with neither result nor error: its worker was killed, or another one's death took it along
LOST = "ended with neither result nor error: was its process killed? The same command goes on from it"
LOOK_EVERY = 2.0  # seconds between looks at what is finished


def sweep(cfg: DictConfig, context: HydraContext, task_function: TaskFunction) -> None:
    """What `reproduce` does; `cfg` is its config with Hydra's own part."""
    try:
        _reproduce(cfg, context, task_function)
    except LabError as error:  # Hydra would print a traceback
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _reproduce(cfg: DictConfig, context: HydraContext, task_function: TaskFunction) -> None:
    check_config(cfg, "reproduce")
    output_root = output_root_of(cfg)
    tables = chosen_tables(cfg.tables, cfg.table_profile)
    made = None if cfg.plan else _made(output_root)
    here = _elsewhere(cfg)
    both = filled(tables, output_root, here)
    cells_of = {table.name: cells for table, cells in both}
    wanted = covering(both) if cfg.cells == "covering" else cells_of
    plan = plan_of((cell for cells in wanted.values() for cell in cells), output_root, Images(cfg.data.root))
    about = "what several need is in the line of each and once in the sums; times are those of one job after the other"
    lines = plan.lines(wanted, full=cfg.plan == "full")
    print(f"{len(tables)} tables, profile {cfg.table_profile}: {about}\n" + "\n".join(lines), flush=True)
    if made is None:
        return
    for job in plan.runs.values():
        RunFolder(job.file.parent).tidy()
    launches = Launches(cfg, context, task_function, lambda job: _place(job, both))
    trainings = plan.missing("train")
    teachers = {fingerprint for job in trainings for fingerprint in job.needs}
    launches.run([job for job in trainings if job.fingerprint in teachers])
    launches.run([job for job in trainings if job.fingerprint not in teachers])
    trained = {job.fingerprint for job in plan.jobs if job.verb == "train" and (job.finished or launches.finished(job))}
    evaluations = plan.missing("evaluate")
    launches.run([job for job in evaluations if job.needs <= trained])
    if waiting := [job for job in evaluations if not job.needs <= trained]:
        log.warning("%d evaluations wait for runs that could not be trained", len(waiting))
    if launches.started:
        made = _made(output_root)
        cells_of = {table.name: cells for table, cells in filled(tables, output_root, here)}
    reference = reference_results() if cfg.reference else None
    _write_pages([(table, cells_of[table.name]) for table in tables], made, reference, report=cfg.report)


def _elsewhere(cfg: DictConfig) -> list[str]:
    """The word for the folder of images, where it is not the usual one: a path that lies in it is named by it."""
    usual = compose("train", [])[0].data.root
    return [] if cfg.data.root == usual else [f"data.root={quoted(Path(cfg.data.root).absolute())}"]


def _made(output_root: Path) -> Made:
    """To be asked before the records are read: one that comes later is then news to the next command."""
    shown = [reference] if (reference := reference_results()) is not None else []  # beside the user's own, in the report
    return Made(output_root, content_of(output_root, [PACKAGE, CONF, *table_folders(), *(source.whole for source in sources()), *shown]))


def _write_pages(tables: Sequence[tuple[Table, list[Cell]]], made: Made, reference: Path | None, report: bool) -> None:
    """The tables, and the report, unless they are there and nothing that they are made from has changed; each table is told.

    reference: the project's own results, which the report shows beside the user's.
    """
    from robustbench_lab.jobs.tables import table_file, tell, write

    output_root = made.output_root
    for table, cells in tables:
        base = table_file(table, output_root)
        name = str(base.relative_to(output_root))
        if made.unchanged(name):
            tell(view_of(table, cells, output_root))
            log.info("unchanged: %s.md", base)
        else:
            write(table, cells, output_root)
            made.note(name, base.parent.glob(f"{glob.escape(base.name)}.*"))
    if report and made.unchanged("report"):
        log.info("unchanged: %s", output_root / "report" / "index.html")
    elif report:
        from robustbench_lab.report.page import write_report

        write_report(output_root, reference=reference)
        made.note("report", (path for path in (output_root / "report").rglob("*") if path.is_file()))
    made.store()


def _place(job: Job, tables: Sequence[tuple[Table, list[Cell]]]) -> str:
    """Where the words of a job come from: the first table and cell that need it."""
    for table, cells in tables:
        for cell in cells:
            for one in cell.measurements:
                if job.fingerprint in (one.evaluation.fingerprint, *(run.fingerprint for run in one.runs)):
                    return f"{table.path}: {cell.name}"
    return "of no table's own words"  # of a teacher, which a run's words name


class Launches:
    """Lists of jobs, handed to the launcher that the command chose; place: the table and the cell that a job's words come from."""

    def __init__(self, cfg: DictConfig, context: HydraContext, task_function: TaskFunction, place: Callable[[Job], str] = str) -> None:
        self.cfg, self.context, self.task_function, self.place = cfg, context, task_function, place
        self.folder = path_of(cfg.hydra.sweep.dir, "hydra.sweep.dir")
        self.launcher = str(cfg.hydra.launcher._target_)
        self.done = set[Path]()
        self.started = 0

    def run(self, jobs: Sequence[Job]) -> None:
        """All jobs of one verb. Those that end without a trace have another turn when every other job has had its own.

        Raises LabError when the launcher cannot start any of them.
        """
        waiting, deaths = [job for job in jobs if not self.finished(job)], Counter[Path]()
        together = 1 if "joblib" in self.launcher else None  # its workers die together: the next death shall take no other job along
        while waiting:
            fresh = [job for job in waiting if not deaths[job.file]]
            chosen = fresh or waiting[:together]
            others = [job for job in waiting if deaths[job.file]] if fresh else waiting[len(chosen) :]
            dead, untried = self._launch(chosen)
            deaths.update(job.file for job in dead)
            waiting = [*untried, *others, *(job for job in dead if deaths[job.file] < ATTEMPTS)]
            for job in dead:
                if deaths[job.file] == ATTEMPTS:
                    lost(command_line(job.verb, job.words), LOST)

    def finished(self, job: Job) -> bool:
        """Whether its result counts now: made by this command or another, or again, as its run has the same weights."""
        if job.file not in self.done and job.counts():
            self.done.add(job.file)
        return job.file in self.done

    def _launch(self, jobs: Sequence[Job]) -> tuple[list[Job], list[Job]]:
        """Of the jobs that end with neither result nor error, those that had their turn, and those that the launcher gave up before."""
        first, self.started = self.started, self.started + len(jobs)
        master = copy.deepcopy(self.cfg)
        with open_dict(master):
            master.hydra.job.config_name = jobs[0].verb
            master.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(self.folder)}")  # the verb's own would be another one
        launcher = Plugins.instance().instantiate_launcher(hydra_context=self.context, task_function=self.task_function, config=master)
        words, problem, refusal = self._words(jobs), None, False
        with storing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        with _watched(jobs, self.finished), _all_awaited(self.launcher):
            try:
                launcher.launch(words, initial_job_idx=first)
            except Exception as error:  # a launcher gives up when one of its workers dies
                problem, refusal = _first_line(error), isinstance(error, REFUSALS)
        dead: list[Job] = []
        untried: list[Job] = []
        for job, folder in zip(jobs, (self.folder / str(number) for number in range(first, self.started)), strict=True):
            if not self.finished(job) and not (folder / ERROR_FILE).exists():
                (dead if folder.exists() or not problem else untried).append(job)  # Hydra makes the folder when the job starts
        refused = [job for job in untried if refusal and self._refused(job)]
        untried = [job for job in untried if job not in refused]
        if not refused and len(untried) == len(jobs):
            raise LabError(f"hydra/launcher: {self.launcher} started no job: {problem}")
        if problem:
            log.warning("the launcher stopped: %s", problem)
        return dead, untried

    def _refused(self, job: Job) -> bool:
        """Whether Hydra refuses the job's words, which then have failed; the launcher gave up at them, and the others go on without."""
        try:
            compose(job.verb, self._words([job])[0])
        except Exception as error:
            lost(command_line(job.verb, job.words), f"{self.place(job)}: {one_line(said(error))}")
            return True
        return False

    def _words(self, jobs: Sequence[Job]) -> list[list[str]]:
        """The jobs' words, all of one verb, and this command's folders and what else of its places is not the verb's default."""
        verb, usual = jobs[0].verb, compose(jobs[0].verb, [])[0]
        keys = ["device", "data.download", "data.workers", *(["batch_size"] if verb == "evaluate" else [])]
        here = {key: OmegaConf.select(self.cfg, key) for key in keys}
        changed = [f"{key}={str(value).lower()}" for key, value in here.items() if value != OmegaConf.select(usual, key)]
        folders = {"output_root": output_root_of(self.cfg), "data.root": path_of(self.cfg.data.root, "data.root")}
        places = [*changed, *(f"{key}={quoted(folder)}" for key, folder in folders.items())]
        return [[*job.words, *places] for job in jobs]


@contextmanager
def _all_awaited(launcher: str) -> Iterator[None]:
    """Submitit's and Ray's launchers give up at the first job that died, while others run or wait in a queue: here they wait for all."""
    owner: Any
    if "submitit" in launcher:
        from submitit import Job as owner

        name = "results"
    elif "hydra_ray" in launcher:
        import ray as owner

        name = "get"
    else:
        yield
        return
    wait = getattr(owner, name)

    def awaited(submitted: object, *rest: Any, **more: Any) -> Any:
        try:
            return wait(submitted, *rest, **more)
        except Exception as error:
            log.warning("%s", _first_line(error))
            return [None]

    setattr(owner, name, awaited)
    try:
        yield
    finally:
        setattr(owner, name, wait)


def _first_line(error: Exception) -> str:
    return said(error).strip().partition("\n")[0]


@contextmanager
def _watched(jobs: Sequence[Job], finished: Callable[[Job], bool]) -> Iterator[None]:
    """Say how far the whole is whenever a job is finished, wherever it runs."""
    ended, started = threading.Event(), time.monotonic()

    def watch() -> None:
        said = 0
        while not ended.wait(LOOK_EVERY):
            left = [job for job in jobs if not finished(job)]
            done, seconds = len(jobs) - len(left), time.monotonic() - started
            if done > said:
                said = done
                rest = f"{len(left)} left, about {duration(seconds / done * len(left))} at this pace" if left else "none left"
                log.info("%s: %d of %d done in %s; %s", jobs[0].verb, done, len(jobs), duration(seconds), rest)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
