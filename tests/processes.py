"""Commands in processes of their own that can be killed, interrupted and stopped, forked from one that has everything imported already.

A real `python -m robustbench_lab` differs only by the seconds that its imports take; tests/cli has some of those too.
"""

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["robustbench_lab.__main__", "robustbench_lab.jobs.train", "sklearn.datasets", "torch._dynamo"])


@dataclass(frozen=True)
class Started:
    """A command that runs; what it says is in a file."""

    process: ForkServerProcess
    said: Path

    @property
    def running(self) -> bool:
        return self.process.is_alive()

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> tuple[int, str]:
        """Exit status, negative after a signal, and what went to stderr."""
        self.process.join(timeout=120)
        assert self.process.exitcode is not None, self.said.read_text()
        return self.process.exitcode, self.said.read_text()

    def wait_for(self, pattern: str, root: Path) -> Path:
        """A file of this pattern under `root`, as soon as it is there."""
        while not (found := list(root.glob(pattern))):
            assert self.running, self.said.read_text()
            time.sleep(0.005)
        return found[0]

    def wait_for_words(self, words: str) -> None:
        while words not in self.said.read_text():
            assert self.running, self.said.read_text()
            time.sleep(0.005)


def started(arguments: tuple[str, ...], outputs: Path, elsewhere: Path, said: Path) -> Started:
    process = CONTEXT.Process(target=_run, args=(arguments, outputs, elsewhere, said), daemon=True)
    process.start()
    said.touch()
    return Started(process, said)


def _run(arguments: tuple[str, ...], outputs: Path, elsewhere: Path, said: Path) -> None:
    import torch

    from robustbench_lab.__main__ import main

    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(elsewhere)
    os.environ["ROBUSTBENCH_LAB_OUTPUTS"] = str(outputs)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore interrupts, and what they start does too
    torch.set_num_threads(1)
    sys.argv = ["robustbench_lab", *arguments]
    main()
