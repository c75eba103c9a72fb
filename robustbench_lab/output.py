"""What a command prints, for a reader that may leave before its end, such as `head`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO


class UntilItLeaves:
    """A stream whose reader may leave: what is written afterwards is dropped, and the work goes on to its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """What the stream still holds, and all that follows, goes nowhere; for processes that start later too."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def told_to_a_reader_that_may_leave(stream: TextIO) -> Iterator[None]:
    """Standard output is this stream, which nobody need read to the end."""
    told: Any = UntilItLeaves(stream)
    with redirect_stdout(told):
        try:
            yield
        finally:
            told.flush()
