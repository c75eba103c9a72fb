"""The error that a failed job leaves: whatever the error is, telling it does not fail in turn."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

from robustbench_lab.errors import said
from robustbench_lab.storage.files import SCHEMA, write_json


def write_error(path: Path, error: Exception, **more: Any) -> bool:
    """Whether the error, with `more` about its job, could be written to the file."""
    try:
        trace = "".join(traceback.format_exception(error))
    except Exception:
        trace = None
    try:
        write_json(path, {"schema": SCHEMA, **more, "error": said(error), "traceback": trace})
    except Exception:  # a full disk, or a job whose words are no JSON
        return False
    return True
