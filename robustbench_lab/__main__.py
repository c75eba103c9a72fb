"""`python -m robustbench_lab <verb> ...`: the only @hydra.main."""

from __future__ import annotations

import logging
import signal
import sys
from importlib import import_module

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from robustbench_lab import __version__
from robustbench_lab.config import CONF, HYDRA_VERSION_BASE, readable
from robustbench_lab.errors import LabError
from robustbench_lab.multirun import failures, leave_error

VERBS = {
    "train": "train a model, or finish or find the run that these settings name",
    "evaluate": "attack the model that these settings name, and write how many images it still gets right",
    "check": "look for signs of hidden gradients in the model that these settings name",
    "tables": "write papers' tables, our figures beside theirs, from the records there are",
    "reproduce": "train and evaluate what tables still miss, then write them",
}
HELP = f"""robustbench_lab {__version__}: train, attack and tabulate adversarially robust image classifiers

usage: python -m robustbench_lab VERB [key=value ...] [--multirun]

verbs:
{chr(10).join(f"  {verb:<10} {meaning}" for verb, meaning in VERBS.items())}

Every setting is a key=value; a group, such as defense=fm, chooses a file of conf/. The same settings always name the same run, so that
evaluate needs no path. A finished job returns at once; an interrupted one goes on where it was.

examples (real handwritten digits shipped with scikit-learn; minutes on a CPU):
  python -m robustbench_lab train defense=fm
  python -m robustbench_lab evaluate defense=fm attack=pgd attack.steps=20 budget.eps=0.1
  python -m robustbench_lab train -m seed=0,1,2 defense=standard,fm
  python -m robustbench_lab tables

  python -m robustbench_lab VERB --help    the groups, their choices and every key of a verb
"""

log = logging.getLogger("robustbench_lab")


def job(cfg: DictConfig) -> None:
    """One job of a verb. In a multirun a failing job leaves its error and the next one starts."""
    run = HydraConfig.get()
    try:
        import_module(f"robustbench_lab.jobs.{run.job.config_name}").main(cfg)
    except Exception as error:
        if run.mode == RunMode.MULTIRUN:
            log.error("failed: %s", error)
            leave_error(error)
        elif isinstance(error, LabError):
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        else:
            raise


def main() -> None:
    verb, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if "--help" in sys.argv or verb == "help":
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a traceback
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if verb == "--version":
        print(__version__)
        return
    if verb not in VERBS:
        print(f"error: there is no verb {verb!r}; choose one of {', '.join(VERBS)} (see --help)", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"robustbench_lab {verb}", *map(readable, arguments)]
    try:
        hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(CONF), config_name=verb)(job)()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command (without force=true) goes on from what was saved last", file=sys.stderr)
        raise SystemExit(130) from None
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    if failed := failures():
        print(f"\n{len(failed)} jobs failed:\n" + "\n".join(f"- {line}" for line in failed), file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
