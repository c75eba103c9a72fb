"""`python -m robustbench_lab <verb> ...`: the only @hydra.main."""

from __future__ import annotations

from robustbench_lab import startup  # before what takes its time to be imported

# isort: split
import os
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from shutil import which
from types import TracebackType

import hydra

from robustbench_lab import __version__
from robustbench_lab.errors import LabError, said
from robustbench_lab.multirun import failures, job, tell_sweeps
from robustbench_lab.output import one_line, telling
from robustbench_lab.settings.conf import CONF, HYDRA_VERSION_BASE
from robustbench_lab.settings.overrides import readable, written_out
from robustbench_lab.settings.packages import FOLDERS, taken
from robustbench_lab.settings.refusals import REFUSALS, refusal
from robustbench_lab.settings.verbs import MODULES, QUICK, VERBS, check_environment, check_flags, check_words, options_first

HELP = f"""robustbench_lab {__version__}: train, attack and tabulate adversarially robust image classifiers

usage: python -m robustbench_lab VERB [key=value ...] [--multirun]

verbs:
{chr(10).join(f"  {verb:<10} {meaning}" for verb, meaning in (VERBS | QUICK).items())}

Every setting is a key=value; a group, such as defense=fm, chooses a file of conf/. The same settings always name the same run, so that
evaluate needs no path. A finished job returns at once; an interrupted one goes on where it was.

examples (real handwritten digits shipped with scikit-learn; minutes on a CPU):
  python -m robustbench_lab train defense=fm
  python -m robustbench_lab evaluate defense=fm attack=pgd attack.steps=20 budget.eps=0.1
  python -m robustbench_lab train -m seed=0,1,2 defense=standard,fm
  python -m robustbench_lab evaluate weights=FILE backbone=resnet20 dataset=cifar10 normalise=imagenet attack=autoattack
  python -m robustbench_lab tables
  python -m robustbench_lab reproduce tables=[smoke/digits] --dry-run

  python -m robustbench_lab VERB --help    the groups, their choices and every key of a verb
"""

PLUGINS = {  # of launchers and sweepers: the module, and the extra that brings it (None: always installed)
    "hydra/launcher=joblib": ("hydra_plugins.hydra_joblib_launcher", None),
    "hydra/launcher=submitit": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=slurm": ("hydra_plugins.hydra_submitit_launcher", "slurm"),
    "hydra/launcher=ray": ("hydra_plugins.hydra_ray_launcher", "ray"),
    "hydra/sweeper=optuna": ("optuna", "optuna"),
}


PLANS = {"plan=true", "plan=full", "--help", "-h", "--info", "--cfg", "-c"}  # words of a command that starts no job


def check_launcher(arguments: list[str]) -> None:
    """Raises LabError, with what to do, when the launcher or sweeper that is asked for is not installed, or has no cluster."""
    for argument in arguments:
        key, _, choice = argument.partition("=")
        for word, (module, extra) in PLUGINS.items():
            if argument.startswith(word) and find_spec(module) is None:
                package = f"robustbench_lab[{extra}]" if extra else "hydra-joblib-launcher"
                checkout = f" (in a checkout: python -m pip install -e '.[{extra}]')" if extra else ""
                raise LabError(f"{key}={choice} is not installed; install it: python -m pip install '{package}'{checkout}")
        if key == "hydra/launcher" and choice in ("slurm", "submitit_slurm") and which("srun") is None and not PLANS & {*arguments}:
            raise LabError(
                f"hydra/launcher: {choice} started no job: there is no SLURM on this machine (srun is not found); start it on a login node "
                "of the cluster, or choose hydra/launcher=joblib, joblib_gpus or submitit_local"
            )


def main() -> None:
    folders = os.environ.get(FOLDERS)  # this command's are its own, where another one follows in the same process
    with telling():
        status: str | int | None = 0
        try:
            command()
        except KeyboardInterrupt:
            print("\ninterrupted; the same command (without force=true) goes on from what was saved last", file=sys.stderr)
            status = startup.STATUS
        except LabError as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
        except SystemExit as end:
            status = end.code
        finally:
            os.environ.pop(FOLDERS, None) if folders is None else os.environ.update({FOLDERS: folders})
        tell_sweeps()
        if failed := failures():  # also where the end was another error, such as a full disk
            print(f"\n{len(failed)} jobs failed:\n" + "\n".join(f"- {line}" for line in failed), file=sys.stderr)
            status = status or 1
        if status:
            raise SystemExit(status)


def command() -> None:
    verb, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
        return
    if verb == "--version":
        print(__version__)
        return
    if verb in QUICK:
        import_module(MODULES[verb]).main(arguments)
        return
    if verb not in VERBS:
        print(f"error: there is no verb {verb!r}; choose one of {', '.join([*VERBS, *QUICK])} (see --help)", file=sys.stderr)
        raise SystemExit(2)
    if verb in ("tables", "reproduce"):  # their words for two keys: `profile` is a group of the other verbs
        arguments = [re.sub("^--dry-run(?:=|$)", "plan=", re.sub("^profile=", "table_profile=", argument)) for argument in arguments]
        arguments = [argument + "true" if argument == "plan=" else argument for argument in arguments]
    arguments = written_out(taken(arguments))
    sys.argv = [f"robustbench_lab {verb}", *map(readable, options_first(arguments))]
    check_environment()
    check_launcher(arguments)
    check_flags(arguments)
    check_words(verb, arguments)
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # what Hydra refuses is told here, as what we refuse
    try:
        hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(CONF), config_name=verb)(job)()
    except LabError:
        raise
    except REFUSALS as error:
        if before == "1":
            raise
        raise LabError(refusal(error)) from error
    except Exception as error:  # of Hydra's, or a launcher's, which finds no cluster or whose workers die
        if before == "1" or any(module.startswith("robustbench_lab.jobs") for module in _modules(error.__traceback__)):
            raise
        words = [argument for argument in arguments if argument.startswith("hydra")]
        reason = one_line(said(error).strip().partition("\n")[0])
        raise LabError(f"{' '.join(words) or 'the launcher'} gave up: {reason}; the same command goes on from what is finished") from error
    finally:
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)


def _modules(traceback: TracebackType | None) -> Iterator[str]:
    """Those that an error came through."""
    while traceback is not None:
        yield str(traceback.tb_frame.f_globals.get("__name__"))
        traceback = traceback.tb_next


if __name__ == "__main__":
    main()
