"""The log of a run as files: metrics.csv and TensorBoard events, both callbacks.

In: one row of numbers per step, by column. Out: `metrics.csv` with a line per step; validation
columns are filled where there was an evaluation. Its size in bytes goes into each checkpoint, and a
resumed run truncates the rows that it will write again.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ..runtime.atomic_files import writing
from .callback import ActiveRun, Callback

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class MetricsFile(Callback):
    """Writes metrics.csv.

    Args:
        resume_at: its bytes at the checkpoint that the run continues from; None = a new run.
    """

    def __init__(self, resume_at: int | None = None) -> None:
        self.resume_at = resume_at
        self._path = Path()
        self._columns: Sequence[str] = ()
        self._file: TextIO | None = None

    def on_start(self, run: ActiveRun) -> None:
        """Opens the file, and truncates the rows that a resumed run writes again."""
        self._path = run.out / "metrics.csv"
        self._columns = run.columns
        with writing(self._path):
            self._file = _open_rows(self._path, run.columns, self.resume_at)

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Writes a row."""
        assert self._file is not None
        with writing(self._path):
            csv.writer(self._file).writerow([_text(row.get(name)) for name in self._columns])
            self._file.flush()

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Closes the file."""
        if self._file is not None:
            with suppress(OSError):  # the rest of a row that a full disk has refused already
                self._file.close()

    def num_bytes(self) -> int:
        """Size of metrics.csv after writing it to the disk; checkpoints store it (`resume_at`)."""
        if self._file is None:
            return 0
        with writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()


class TensorBoardLog(Callback):
    """Writes the same numbers as TensorBoard events."""

    def __init__(self) -> None:
        self._events: SummaryWriter | None = None

    def on_start(self, run: ActiveRun) -> None:
        """Opens the folder, and hides the events that a resumed run writes again."""
        from torch.utils.tensorboard import SummaryWriter

        purge = run.step + 1 if run.resumed else None
        self._events = SummaryWriter(str(run.out / "tensorboard"), purge_step=purge)

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Writes the numbers of a step."""
        assert self._events is not None
        for name, value in row.items():
            if name != "step":
                self._events.add_scalar(tag(name), value, run.step)

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Closes the events."""
        if self._events is not None:
            self._events.close()


def tag(name: str) -> str:
    """The name of a column in a tracker, where `loss` cannot stand beside `loss/box`."""
    return name if "/" in name else f"run/{name}"


def read_rows(path: Path) -> list[dict[str, float]]:
    """Reads the rows of a metrics.csv; empty columns are left out."""
    with path.open(newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


def _open_rows(path: Path, columns: Sequence[str], resume_at: int | None) -> TextIO:
    if resume_at is not None and path.is_file():
        file = path.open("r+", newline="")
        file.truncate(min(resume_at, path.stat().st_size))
        file.seek(0, os.SEEK_END)
    else:
        file = path.open("w", newline="")

    if file.tell() == 0:
        csv.writer(file).writerow(columns)
        file.flush()
    return file


def _text(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
