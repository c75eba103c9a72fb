"""Progress bars that stay out of the way: nothing for short steps, few lines where the output is a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from tqdm import tqdm

_unseen = ContextVar("unseen", default=False)


def progress(**options: Any) -> tqdm:
    """A tqdm bar that appears after two seconds; redrawn twice a second on a terminal, every 15 s elsewhere."""
    interactive = sys.stderr.isatty()
    return tqdm(delay=2, mininterval=0.5 if interactive else 15, dynamic_ncols=interactive, disable=_unseen.get(), **options)


@contextmanager
def unseen() -> Iterator[None]:
    """No bar is shown within."""
    before = _unseen.set(True)
    try:
        yield
    finally:
        _unseen.reset(before)
