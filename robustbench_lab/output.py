"""What a command says: to a reader that may leave, with a disk that may be full, in an encoding that may lack letters."""

from __future__ import annotations

import codecs
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any, TextIO

LIKE = str.maketrans({"±": "+-", "−": "-", "–": "-", "—": "-", "×": "x", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"', "∞": "inf"})
UNSEEN = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # white space, ends of lines, and what steers a terminal


def _said_otherwise(error: UnicodeError) -> tuple[str, int]:
    """Of what an encoding lacks: what looks like it, or its number."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].translate(LIKE)
    return lacking.encode("ascii", "backslashreplace").decode("ascii"), error.end


OTHERWISE = "robustbench_lab.otherwise"
codecs.register_error(OTHERWISE, _said_otherwise)


class Told:
    """A stream that takes everything: what cannot be written is dropped, and so is what follows."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._closed = stream, name, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        encoding = self._stream.encoding or "utf-8"
        self._tried(lambda: self._stream.write(text.encode(encoding, OTHERWISE).decode(encoding)))
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def isatty(self) -> bool:
        return not self._stream.closed and self._stream.isatty()

    def _tried(self, say: Any) -> None:
        if self._closed:
            return
        try:
            say()
        except BrokenPipeError:  # who reads has read enough
            self._drop()
        except (OSError, ValueError) as error:  # ValueError: it was closed
            self._drop()
            print(f"{self._name} cannot be written ({error}): the rest is not told, the work goes on", file=sys.stderr)

    def _drop(self) -> None:
        """What the stream still holds, and all that follows, goes nowhere; for processes that start later too."""
        self._closed = True
        with suppress(OSError, ValueError):
            number, nowhere = self._stream.fileno(), os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


@contextmanager
def telling() -> Iterator[None]:
    """Standard output and standard error are streams that nobody need read, that need have no room, and that may be closed."""
    with redirect_stdout(_told(sys.stdout, "standard output")), redirect_stderr(_told(sys.stderr, "standard error")):
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()


def _told(stream: TextIO | None, name: str) -> Any:
    if isinstance(stream, Told):
        return stream
    return Told(open(os.devnull, "w") if stream is None else stream, name)  # None: it was closed when Python began


def one_line(text: str) -> str:
    """A text where one line is meant: each stretch of white space and of what cannot be seen is a space."""
    return UNSEEN.sub(" ", text).strip()


def command_line(verb: str, words: Sequence[str]) -> str:
    """The command as a shell takes it, whatever is in its words."""
    return f"python -m robustbench_lab {verb} {shlex.join(words)}".rstrip()
