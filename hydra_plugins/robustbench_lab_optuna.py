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
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
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
        self.start = Plugins.instance().instantiate_launcher(hydra_context=hydra_context, task_function=task_function, config=config).launch

    def sweep(self, arguments: Sequence[str]) -> None:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        from robustbench_lab.knobs import Count, Seed, check, require
        from robustbench_lab.tables.sweep import has_ended, objective_left, searched_for

        for key, kind in {"n_trials": Count, "n_jobs": Count, "seed": Seed, "storage": str | None}.items():
            check(f"hydra.sweeper.{key}", getattr(self, key), kind)
        words = OverridesParser.create().parse_overrides(list(arguments))
        space = {word.get_key_element(): _distribution(word) for word in words if word.is_sweep_override()}
        require(bool(space), "hydra/sweeper=optuna", "a word to search, such as defense.beta=interval(1,10)", None)
        fixed = [str(word.input_line) for word in words if not word.is_sweep_override()]
        fixed += [] if any(word.startswith("objective=") for word in fixed) else [f"objective={searched_for(self.verb, fixed)}"]
        study = self._study()

        def tell(trial: Any, value: float | None) -> None:
            study.tell(trial.number, value, TrialState.FAIL if value is None else TrialState.COMPLETE)
            log.info("trial %d, %s: %s", trial.number, trial.params, "failed" if value is None else f"{value:.4f}")

        for left in study.get_trials(states=(TrialState.RUNNING,)):  # of a command that was stopped, maybe after the job's end
            tell(left, objective_left(self.folder / str(left.number)))
            if not has_ended(self.folder / str(left.number)):
                study.enqueue_trial(left.params)
        study.sampler = TPESampler(seed=(self.seed + len(study.trials)) % 2**32, constant_liar=True)  # does not repeat its first draws
        missing = self.n_trials - sum(has_ended(self.folder / str(trial.number)) for trial in study.trials)
        for begun in range(0, missing, self.n_jobs):
            batch = [study.ask(space) for _ in range(min(self.n_jobs, missing - begun))]
            jobs = [(*fixed, *(f"{key}={value}" for key, value in trial.params.items())) for trial in batch]
            try:
                returned = self.start(jobs, initial_job_idx=batch[0].number)
            except Exception:  # it lost its workers: of some trials nothing is known, and the same command makes as many more
                for trial in batch:
                    tell(trial, objective_left(self.folder / str(trial.number)))
                raise
            for trial, job in zip(batch, returned, strict=True):
                tell(trial, job.return_value)

    def _study(self) -> Any:
        import optuna
        from optuna.storages import JournalStorage, journal

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage = self.storage or JournalStorage(journal.JournalFileBackend(str(self.folder / "optuna.log")))
        return optuna.create_study(storage=storage, study_name=self.folder.name, direction="maximize", load_if_exists=True)


def _distribution(word: Override) -> Any:
    """What Optuna draws from, for a sweep in Hydra's grammar. Raises LabError where it cannot."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    from robustbench_lab.errors import LabError

    value: Any = word.value()
    try:
        if isinstance(value, ChoiceSweep):
            return CategoricalDistribution([Override._get_value_element_as_str(entry) for entry in value.list])
        is_range = isinstance(value, RangeSweep)
        ends = sorted(value.range()) if is_range else [value.start, value.end]  # a range: Hydra's, to its last value
        kind: Any = IntDistribution if all(isinstance(end, int) for end in ends) else FloatDistribution
        return kind(ends[0], ends[-1], log="log" in value.tags, **({"step": abs(value.step)} if is_range else {}))
    except (AttributeError, IndexError, ValueError) as error:
        expected = "interval(low,high), range(...) or choice(...); a log needs low > 0, and a range in steps of 1"
        raise LabError(f"{word.input_line}: hydra/sweeper=optuna expected {expected}; {error}") from error
