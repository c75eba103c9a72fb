"""Train, attack and tabulate adversarially robust image classifiers.

As a library: `import robustbench_lab as lab`, then `lab.evaluate(model, x, y, norm="linf", eps=8 / 255)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_lab.errors import LabError
    from robustbench_lab.library.attacking import attack
    from robustbench_lab.library.evaluating import check, evaluate
    from robustbench_lab.library.result import Checked, Result
    from robustbench_lab.library.runs import load_images, load_run
    from robustbench_lab.threats import Budget

__version__ = "0.1.0"
__all__ = ["Budget", "Checked", "LabError", "Result", "attack", "check", "evaluate", "load_images", "load_run"]

_DOOR = {  # imported when it is asked for: the command line's help needs no torch
    "Budget": "threats",
    "Checked": "library.result",
    "LabError": "errors",
    "Result": "library.result",
    "attack": "library.attacking",
    "check": "library.evaluating",
    "evaluate": "library.evaluating",
    "load_images": "library.runs",
    "load_run": "library.runs",
}


def __getattr__(name: str) -> Any:
    if name not in _DOOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_DOOR[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
