"""The one exception that is printed without a traceback, and what any exception says."""

import re


class LabError(Exception):
    """Something its reader can put right: names the config key or file, what was expected, what came, what to do.

    Whatever a file is called, the message can be printed and written: bytes of a name that are no UTF-8 stand in it as \\xff.
    """

    def __init__(self, message: object) -> None:
        super().__init__(printable(str(message)))


class MissingFiles(LabError):
    """The files of a dataset are not where they were looked for; a test that needs them may be skipped."""


def printable(text: str) -> str:
    """A text that UTF-8 can write: bytes that Python keeps in names of files as lone surrogates (PEP 383) become \\xff, others \\ud800."""
    as_bytes = re.sub("[\udc80-\udcff]", lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)
    return as_bytes.encode("utf-8", "backslashreplace").decode()


def said(error: BaseException) -> str:
    """What an error says, after its kind where it is not ours; of one that cannot even say it, its kind."""
    kind = type(error).__name__
    try:
        return str(error) if isinstance(error, LabError) else f"{kind}: {error}"
    except Exception:
        return f"{kind}, whose message cannot be shown"
