"""Event files for TensorBoard beside a run's metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import storing
from robustbench_lab.storage.folders import RunFolder

EVENTS_FOLDER = "tensorboard"

Row = dict[str, Any]  # of a training's history: the numbers of one epoch


def need_tensorboard() -> Any:
    """TensorBoard's writer, a class. Raises LabError, with the install command, where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LabError(f"tensorboard=true needs a package ({error}); install it: python -m pip install tensorboard") from error
    return SummaryWriter


def write_events(folder: RunFolder) -> None:
    """A finished run's event files, from its metrics. Raises LabError where these cannot be read."""
    try:
        history = folder.epochs()
    except LabError as error:
        raise LabError(f"{error}, or leave out tensorboard=true") from error
    with events(folder.path, history):
        pass


@contextmanager
def events(folder: Path, history: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
    """The run's event files, begun anew with the epochs in `history`; what it yields adds one more, and they are on disk then.

    Each number of a row is a scalar at the step of its epoch, named loss/<player>, validation/accuracy or epoch/<number>.
    """
    path = folder / EVENTS_FOLDER
    with storing(path):
        for old in path.glob("events.*"):  # up to another epoch, or torn: after a kill, no epoch is missing or there twice
            if old.stat().st_size:
                old.write_bytes(b"")  # an open TensorBoard waits for more of a file that is deleted, and goes on to the next from this one
            else:
                old.unlink()
        writer = need_tensorboard()(str(path), purge_step=1)  # an open TensorBoard forgets what it has read

    def add(row: Row) -> None:
        with storing(path):
            for name, value in row.items():
                section, _, rest = name.partition("_")
                tag = f"{section}/{rest}" if section in ("loss", "validation") else f"epoch/{name}"
                if name != "epoch" and isinstance(value, int | float):
                    writer.add_scalar(tag, value, row["epoch"])
            writer.flush()

    try:
        for row in history:
            add(row)
        yield add
    finally:
        with storing(path):
            writer.close()
