"""What a command says reaches whom it can, and stops nothing where it cannot."""

import io
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import pytest

from robustbench_lab.errors import LabError, said
from robustbench_lab.output import command_line, one_line, telling


def no_reader() -> TextIO:
    reading, writing = os.pipe()
    os.close(reading)
    return open(writing, "w", buffering=1)


def full_disk() -> TextIO:
    return open("/dev/full", "w", buffering=1)


def closed() -> TextIO:
    with Path(os.devnull).open("w") as stream:
        return stream


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("broken", [no_reader, full_disk, closed, lambda: None], ids=["no reader", "full disk", "closed", "none"])
def test_what_cannot_be_said_stops_nothing(broken: Callable[[], TextIO | None], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other, stream = io.StringIO(), broken()
    monkeypatch.setattr(sys, "stdout", other)
    monkeypatch.setattr(sys, "stderr", other)
    monkeypatch.setattr(sys, name, stream)
    with telling():
        for _ in range(3):
            print("told", file=getattr(sys, name), flush=True)
        assert getattr(sys, name).isatty() is False
    assert getattr(sys, name) is stream
    assert ("cannot be written" in other.getvalue()) == (name == "stdout" and broken in (full_disk, closed)), "a reader who leaves knows"


def test_what_an_encoding_lacks_is_said_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also the bytes of a name that is not UTF-8; what the encoding has stays."""
    found = {}
    for encoding in ("ascii", "latin-1", "utf-8"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding)
        monkeypatch.setattr(sys, "stdout", stream)
        with telling():
            print("80.03 \u00b1 0.15, \u2212 1, \u03b5, caf\udce9", end="")
        found[encoding] = stream.buffer.getvalue().decode(encoding)
    assert found["ascii"] == r"80.03 +- 0.15, - 1, \u03b5, caf\udce9"
    assert found["latin-1"] == "80.03 \u00b1 0.15, - 1, \\u03b5, caf\\udce9"
    assert found["utf-8"] == "80.03 \u00b1 0.15, \u2212 1, \u03b5, caf\\udce9"


def test_within_itself_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    with telling():
        streams = sys.stdout, sys.stderr
        with telling():
            assert (sys.stdout, sys.stderr) == streams


def test_one_line() -> None:
    assert one_line(" two\nlines,\r\n\ta tab\x1b[2J and\u2028more\x00\n") == "two lines, a tab [2J and more"


@pytest.mark.parametrize("word", ["plain=1", "title=a b", "a=[1,2]", "b='it''s'", 'c="x y"', "d=$HOME;`ls`", "e=", "f=\\=", "g=a\nb", "*"])
def test_a_command_can_be_pasted(word: str, tmp_path: Path) -> None:
    told = command_line("train", ["seed=1", word])
    assert shlex.split(told) == ["python", "-m", "robustbench_lab", "train", "seed=1", word]
    assert command_line("tables", []) == "python -m robustbench_lab tables"


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("nothing to say")


def test_what_an_error_says_can_always_be_told() -> None:
    assert said(LabError("seed: wrong")) == "seed: wrong"
    assert said(KeyError("seed")) == "KeyError: 'seed'"
    assert said(Speechless()) == "Speechless, whose message cannot be shown"
