"""Event files for TensorBoard beside a run's metrics."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robustbench_lab.errors import LabError
from robustbench_lab.storage.files import storing
from robustbench_lab.storage.records import METRICS_FILE

EVENTS_FOLDER = "tensorboard"

Row = dict[str, Any]  # of a training's history: the numbers of one epoch


def _write_events(folder: Path) -> None:
    """A finished run's event files, from its metrics. Raises LabError where these cannot be read."""
    path = folder / METRICS_FILE
    try:
        history = [json.loads(line) for line in path.read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read ({error}); train with force=true, or leave out tensorboard=true") from error
    with _events(folder, history):
        pass


def _summary_writer() -> Any:
    """TensorBoard's writer, a class. Raises LabError, with the install command, where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise LabError(f"tensorboard=true needs a package ({error}); install it: python -m pip install tensorboard") from error
    return SummaryWriter


@contextmanager
def _events(folder: Path, history: Sequence[Row]) -> Iterator[Callable[[Row], None]]:
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
        writer = _summary_writer()(str(path), purge_step=1)  # an open TensorBoard forgets what it has read

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
