"""Ctrl-C while libraries are imported, seconds in which nothing has begun, ends without a word. To be imported before any of them."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

STATUS = 130  # of a shell's commands that end by Ctrl-C


def _end(*_: Any) -> None:
    os._exit(STATUS)  # an exception could come out of a library as another one, or be lost in it


def begin() -> None:
    """Only where this command is the whole process, and Ctrl-C is not ignored or someone else's."""
    script = os.path.abspath(sys.argv[0])
    own = os.path.dirname(script) == os.path.dirname(__file__) or os.path.basename(script).startswith("robustbench-lab")
    if own and threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


def done() -> None:
    """Work begins: from here on Ctrl-C is a KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


begin()
