"""`hydra/sweeper=optuna`: the words of a sweep as a space that Optuna searches, by ask and tell (hydra-optuna-sweeper wants Optuna 2).

`defense.beta=interval(1,10)`, `tag(log,interval(1e-4,1e-1))`, `int(interval(1,5))`, `range(1,10)` and `choice(a,b)` are searched; other
words stand. What a job returns is its objective, the larger the better. The study is kept in the sweep's folder, beside its jobs: the same
command goes on to `n_trials` in all, and what was stopped is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

log = logging.getLogger("robustbench_lab")


class OptunaSweeper(Sweeper):
    """n_trials: in all, with those of before. n_jobs: trials that are launched together. seed: of the sampler (TPE). storage: the URL of an
    Optuna storage; None: a journal in the sweep's folder."""

    def __init__(self, n_trials: int, n_jobs: int, seed: int, storage: str | None) -> None:
        self.n_trials, self.n_jobs, self.seed, self.storage = n_trials, n_jobs, seed, storage

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.folder, self.verb = Path(config.hydra.sweep.dir), str(config.hydra.job.config_name)
        self.launcher = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: Sequence[str]) -> None:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        from robustbench_lab.tables.sweep import ERROR_FILE, searched_for

        words = OverridesParser.create().parse_overrides(list(arguments))
        space = {word.get_key_element(): _distribution(word) for word in words if word.is_sweep_override()}
        fixed = [str(word.input_line) for word in words if not word.is_sweep_override()]
        fixed += [] if any(word.startswith("objective=") for word in fixed) else [f"objective={searched_for(self.verb, fixed)}"]
        study = self._study()
        for left in study.get_trials(states=(TrialState.RUNNING,)):  # of a process that was stopped
            study.tell(left.number, state=TrialState.FAIL)
            study.enqueue_trial(left.params)
        trials = study.trials
        study.sampler = TPESampler(seed=self.seed + len(trials))  # that goes on, and does not draw again what it drew at first
        failed = {trial.number for trial in trials if (self.folder / str(trial.number) / ERROR_FILE).exists()}
        missing = self.n_trials - sum(trial.state == TrialState.COMPLETE or trial.number in failed for trial in trials)
        while missing > 0:
            batch = [study.ask(space) for _ in range(min(self.n_jobs, missing))]
            missing -= len(batch)
            jobs = [(*fixed, *(f"{key}={value}" for key, value in trial.params.items())) for trial in batch]
            try:
                returned = self.launcher.launch(jobs, initial_job_idx=batch[0].number)
            except Exception:  # it lost its workers: nothing is known of these trials
                for trial in batch:
                    study.tell(trial, state=TrialState.FAIL)
                raise
            for trial, job in zip(batch, returned, strict=True):
                value = job.return_value
                study.tell(trial, value, TrialState.FAIL if value is None else TrialState.COMPLETE)
                log.info("trial %d, %s: %s", trial.number, trial.params, "failed" if value is None else f"{value:.4f}")

    def _study(self) -> Any:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = self.storage or JournalStorage(JournalFileBackend(str(self.folder / "optuna.log")))
        return optuna.create_study(storage=storage, study_name=self.folder.name, direction="maximize", load_if_exists=True)


def _distribution(word: Override) -> Any:
    """What Optuna draws from, for a sweep in Hydra's grammar."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = word.value()
    if isinstance(value, IntervalSweep):
        whole = isinstance(value.start, int) and isinstance(value.end, int)
        return (IntDistribution if whole else FloatDistribution)(value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep):
        assert value.start is not None and value.stop is not None  # noqa: PT018 (Hydra's grammar gives both)
        if all(isinstance(end, int) for end in (value.start, value.stop, value.step)):
            return IntDistribution(int(value.start), int(value.stop) - 1, step=int(value.step))
        return FloatDistribution(value.start, value.stop, step=float(value.step))
    assert isinstance(value, ChoiceSweep)
    return CategoricalDistribution([Override._get_value_element_as_str(entry) for entry in value.list])
