"""`python tests/cli/try_words.py 2000 train evaluate`: so many commands of these verbs (all, without any), each with a word that somebody
might have mistyped; prints those that end otherwise than they should, once for each line of code that they end in."""

import io
import logging
import os
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import fuzz
import torch
from hydra.core.hydra_config import HydraConfig
from hypothesis import HealthCheck, Phase, given, seed, settings

from robustbench_lab import multirun
from robustbench_lab.__main__ import main


def ended(*command: str) -> tuple[int, str]:
    """Status, 99 for an exception, and what went to stderr."""
    told, root = io.StringIO(), logging.getLogger()
    handlers, level = root.handlers[:], root.level
    multirun._sweeps.clear()
    multirun._unwritten.clear()
    sys.argv = ["robustbench_lab", *command]
    with redirect_stdout(io.StringIO()), redirect_stderr(told):
        try:
            main()
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            status = 99
            told.write(traceback.format_exc())
        finally:
            root.handlers[:], root.level = handlers, level
            HydraConfig.instance().cfg = None
    return status, told.getvalue()


def tried(verb: str, count: int, first: int) -> int:
    """How many kinds of commands ended otherwise than they should."""
    found: set[str] = set()
    statuses: Counter[int] = Counter()

    @seed(first)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(fuzz.commands(verb))
    def go(command: tuple[str, ...]) -> None:
        status, told = ended(*command)
        statuses[status] += 1
        if problem := fuzz.wrong(status, told):
            place = next((line.strip() for line in reversed(told.splitlines()) if line.strip().startswith("File ")), told[-80:])
            if place not in found:
                found.add(place)
                print(f"{' '.join(command)}\n    {problem}: {told.strip().splitlines()[-1][:200]}\n    {place}", flush=True)

    assert not fuzz.wrong(*ended(verb, *fuzz.USUAL[verb]))
    go()
    print(f"{verb}: {sum(statuses.values())} commands, by status {dict(sorted(statuses.items()))}, {len(found)} kinds of fault", flush=True)
    return len(found)


if __name__ == "__main__":
    count, verbs = int(sys.argv[1]), sys.argv[2:] or list(fuzz.USUAL)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ROBUSTBENCH_LAB_OUTPUTS": f"{folder}/outputs", "ROBUSTBENCH_LAB_DATA": f"{folder}/data"}
        Path(folder, "elsewhere").mkdir()
        os.chdir(Path(folder, "elsewhere"))
        ended("train", *fuzz.POINTS)
        raise SystemExit(sum(tried(verb, count, first) for first, verb in enumerate(verbs)) > 0)
