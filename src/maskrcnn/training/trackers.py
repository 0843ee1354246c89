"""Experiment trackers as callbacks: MLflow, Weights & Biases, trackio.

In: the rows of a run. Out: the same numbers and the settings in the tracker, whose package is
optional. Each tracker's own environment variables and files decide where it stores them.

A resumed run continues the tracked run: its id is kept in the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.atomic_files import replace_text
from ..runtime.interruption import Interrupted
from ..runtime.optional_packages import check_packages
from ..runtime.plain_data import PlainData
from .callback import ActiveRun, Callback
from .log import tag

if TYPE_CHECKING:
    from collections.abc import Iterator

LOGGED_EVERY = 10  # steps: a tracker on another machine takes longer for a row than a small step


class _Tracker(Callback):
    """What the trackers share: which rows they get, and the id of the tracked run.

    Args:
        project: the project, or MLflow's experiment, that the run belongs to.
        name: of the run; None = the name of its folder.

    Raises:
        ImportError: the tracker's package is not installed.
    """

    package = ""
    """The package that is imported."""

    def __init__(self, project: str = "maskrcnn", name: str | None = None) -> None:
        check_packages(type(self).__name__, [self.package], self.package)
        self.project = project
        self.name = name

    def on_step(self, run: ActiveRun, row: Mapping[str, float]) -> None:
        """Sends every tenth step, the last one, and those with an evaluation."""
        is_last = run.step == run.total
        if run.step % LOGGED_EVERY == 0 or is_last or "val_loss" in row:
            self._log({tag(name): row[name] for name in row if name != "step"}, run.step)

    def _log(self, row: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def _id_file(self, run: ActiveRun) -> Path:
        return run.out / f"{self.package}_run.txt"

    def _earlier_id(self, run: ActiveRun) -> str | None:
        """The id of the tracked run that a resumed run continues."""
        file = self._id_file(run)
        return file.read_text().strip() if run.resumed and file.is_file() else None


class MLflowLog(_Tracker):
    """Sends the numbers of a run to MLflow, every tenth step and every evaluation.

    MLFLOW_TRACKING_URI says where MLflow stores them. A resumed run continues its MLflow run.

    Args:
        project: MLflow's experiment.
        name: name of the run; None = the name of the run folder.

    Raises:
        ImportError: MLflow is not installed; mlflow-skinny suffices.
    """

    package = "mlflow"

    def on_start(self, run: ActiveRun) -> None:
        """Starts or continues the MLflow run, with the settings as its parameters."""
        self._mlflow = import_module("mlflow")
        earlier = self._earlier_id(run)
        self._mlflow.set_experiment(self.project)
        name = None if earlier else self.name or run.out.name
        tracked = self._mlflow.start_run(run_id=earlier, run_name=name)
        replace_text(self._id_file(run), tracked.info.run_id)
        if not earlier:
            # MLflow takes 100 parameters at a time, of at most 6,000 characters.
            values = [(key, f"{value}"[:500]) for key, value in _flat(run.settings)]
            for first in range(0, len(values), 100):
                self._mlflow.log_params(dict(values[first : first + 100]))

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Ends the MLflow run as finished, killed or failed."""
        status = "FINISHED"
        if error is not None:
            status = "KILLED" if isinstance(error, Interrupted) else "FAILED"
        self._mlflow.end_run(status)

    def _log(self, row: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(row, step=step)


class WandbLog(_Tracker):
    """Sends the numbers of a run to Weights & Biases, every tenth step and every evaluation.

    WANDB_MODE=offline stores them in the run folder. A resumed run continues its tracked run.

    Args:
        project: the project.
        name: name of the run; None = the name of the run folder.

    Raises:
        ImportError: wandb is not installed.
    """

    package = "wandb"

    def on_start(self, run: ActiveRun) -> None:
        """Starts or continues the tracked run, with the settings as its configuration."""
        self._run: Any = import_module("wandb").init(
            project=self.project,
            name=self.name or run.out.name,
            id=self._earlier_id(run),
            resume="allow",
            dir=str(run.out),
            config=dict(run.settings),
        )
        # A resumed run logs some steps again, which wandb's own step counter would refuse.
        self._run.define_metric("*", step_metric="step")
        replace_text(self._id_file(run), self._run.id)

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Ends the tracked run."""
        self._run.finish(exit_code=0 if error is None else 1)

    def _log(self, row: dict[str, float], step: int) -> None:
        self._run.log({"step": step, **row})


class TrackioLog(_Tracker):
    """Sends the numbers of a run to trackio, every tenth step and every evaluation.

    trackio stores them on this machine; `trackio show` displays them.

    Args:
        project: the project.
        name: name of the run; None = the name of the run folder.

    Raises:
        ImportError: trackio is not installed.
    """

    package = "trackio"

    def on_start(self, run: ActiveRun) -> None:
        """Starts or continues the tracked run, with the settings as its configuration."""
        self._trackio = import_module("trackio")
        name = self._earlier_id(run) or self.name or run.out.name
        self._trackio.init(
            project=self.project, name=name, resume="allow", config=dict(_flat(run.settings))
        )
        replace_text(self._id_file(run), name)

    def on_end(self, run: ActiveRun, error: BaseException | None) -> None:
        """Ends the tracked run."""
        self._trackio.finish()

    def _log(self, row: dict[str, float], step: int) -> None:
        self._trackio.log(row, step=step)


_TRACKERS = {tracker.package: tracker for tracker in (MLflowLog, WandbLog, TrackioLog)}


def tracker_named(name: str) -> Callback:
    """A tracker by the name of its package, with the default project.

    Raises:
        ImportError: the package is not installed.
        ValueError: an unknown name.
    """
    if name not in _TRACKERS:
        raise ValueError(f'unknown tracker "{name}": expected one of {", ".join(_TRACKERS)}')
    return _TRACKERS[name]()


def _flat(values: PlainData, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
