"""Callbacks: which events they get, what happens when one fails or asks to stop, and the trackers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import training_run
from training_run import tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows
from maskrcnn.training.trackers import tracker_named


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> mr.CocoDataset:
    return mr.CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


class Recorder(mr.Callback):
    """Keeps every event with the step at which it came."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []
        self.rows: list[dict[str, float]] = []
        self.run: Any = None
        self.error: BaseException | None = None

    def on_start(self, run: mr.ActiveRun) -> None:
        self.run = run
        self.events.append(("start", run.step))

    def on_step(self, run: mr.ActiveRun, row: Mapping[str, float]) -> None:
        assert run.step == row["step"]
        self.events.append(("step", run.step))
        self.rows.append(dict(row))

    def on_evaluation(self, run: mr.ActiveRun, numbers: Mapping[str, float]) -> None:
        assert "val/AP" in numbers
        assert "step" not in numbers
        self.events.append(("evaluation", run.step))

    def on_checkpoint(self, run: mr.ActiveRun, path: Path) -> None:
        assert path == run.out / "checkpoint.safetensors"
        assert read_checkpoint(path)[1]["state"]["step"] == run.step
        self.events.append(("checkpoint", run.step))

    def on_end(self, run: mr.ActiveRun, error: BaseException | None) -> None:
        self.error = error
        self.events.append(("end", run.step))


class Broken(mr.Callback):
    def __init__(self, event: str) -> None:
        self.calls = 0
        setattr(self, event, self.fail)

    def fail(self, run: mr.ActiveRun, *_: Any) -> None:
        self.calls += 1
        raise ConnectionError("the tracker is away")


class StopAfter(mr.Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: mr.ActiveRun, row: Mapping[str, float]) -> None:
        if run.step == self.step:
            run.stop("enough")


def go(data: mr.CocoDataset, out: Path, *callbacks: mr.Callback, **changes: Any) -> mr.Run:
    val = data if changes.pop("validated", False) else None
    resume = changes.pop("resume", False)
    config = tiny_config(**{"steps": 4, "checkpoint_every": 1e9, **changes})
    return train(
        *(tiny_model(data), data),
        val=val,
        config=config,
        out=out,
        device="cpu",
        callbacks=callbacks,
        resume=resume,
    )


def test_a_callback_gets_every_event_in_order(data: mr.CocoDataset, tmp_path: Path) -> None:
    recorder = Recorder()
    run = go(data, tmp_path / "run", recorder, validated=True, evaluate_every=1.0)
    evaluation = ("checkpoint", "evaluation", "step", "checkpoint")
    assert recorder.events == [
        ("start", 0),
        ("step", 1),
        *((event, 2) for event in evaluation),
        ("step", 3),
        *((event, 4) for event in evaluation),
        ("end", 4),
    ]
    assert recorder.error is None
    written = read_rows(run.out / "metrics.csv")
    for row, of_file in zip(recorder.rows, written, strict=True):
        assert row == pytest.approx(of_file, rel=1e-5)
        assert set(row) <= set(recorder.run.columns)
    assert recorder.run.best == run.best
    assert recorder.run.settings["train"]["steps"] == 4


@pytest.mark.parametrize("event", ["on_start", "on_step", "on_evaluation", "on_end"])
def test_a_callback_that_fails_is_reported_once_and_the_run_goes_on(
    data: mr.CocoDataset, tmp_path: Path, event: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, recorder = Broken(event), Recorder()
    message = rf"callback Broken failed after step \d \({event}: ConnectionError: the tracker is"
    with pytest.warns(UserWarning, match=message) as warned:
        go(data, tmp_path / "run", broken, recorder, steps=2, validated=True)
    assert broken.calls == len(warned) == 1
    assert recorder.events[-1] == ("end", 2)
    told = re.findall(message, capsys.readouterr().out)
    assert len(told) == (event != "on_end"), "named again at the end of the run"


def test_a_callback_stops_a_run_with_a_checkpoint(
    data: mr.CocoDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = go(data, tmp_path / "run", StopAfter(2), steps=9)
    assert len(read_rows(run.out / "metrics.csv")) == 2
    assert read_checkpoint(run.out / "checkpoint.safetensors")[1]["state"]["stopped"]
    assert "stopped after step 2 by a callback: enough" in capsys.readouterr().out
    again = Recorder()
    go(data, tmp_path / "run", again, steps=9, resume=True)
    assert again.events == [("start", 2), ("end", 2)]


def test_an_object_that_is_no_callback_is_refused_before_the_run(
    data: mr.CocoDataset, tmp_path: Path
) -> None:
    wrong: Any = print
    with pytest.raises(TypeError, match=r"callbacks\[1\]: expected an object of a subclass of"):
        go(data, tmp_path / "run", Recorder(), wrong)
    assert not (tmp_path / "run").exists()


def test_a_callback_learns_what_ended_a_run_early(data: mr.CocoDataset, tmp_path: Path) -> None:
    recorder = Recorder()
    with pytest.raises(mr.NonFiniteLossError) as raised:
        go(data, tmp_path / "run", recorder, learning_rate=1e30, warmup=0, steps=9)
    assert recorder.error is raised.value


@pytest.mark.parametrize("name", ["mlflow", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_named_with_its_command(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskrcnn.runtime.optional_packages.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=rf"pip install 'maskrcnn\[{name}\]'"):
        tracker_named(name)


def tracked(data: mr.CocoDataset, out: Path, tracker: type[mr.Callback]) -> str:
    """The id of the run that a tracker made for a run of two sessions, with 12 steps each."""
    package = tracker.package  # ty: ignore[unresolved-attribute]
    go(data, out, tracker(), steps=12)
    first = (out / f"{package}_run.txt").read_text()
    go(data, out, tracker(), steps=24, resume=True)
    assert (out / f"{package}_run.txt").read_text() == first
    return first


def test_mlflow_gets_settings_and_numbers_and_continues_a_resumed_run(
    data: mr.CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    run_id = tracked(data, tmp_path / "run", mr.MLflowLog)
    run = mlflow.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.batch_size"] == "2"
    history = mlflow.MlflowClient().get_metric_history(run_id, "loss/box")
    rows = read_rows(tmp_path / "run/metrics.csv")
    assert [m.step for m in history] == [10, 12, 20, 24]
    assert [m.value for m in history] == pytest.approx(
        [rows[m.step - 1]["loss/box"] for m in history], rel=1e-5
    )


def test_wandb_keeps_a_run_offline(
    data: mr.CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracked(data, tmp_path / "run", mr.WandbLog)
    assert list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))


def test_trackio_keeps_a_run_on_this_machine(
    data: mr.CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="trackio is not installed")
    tracked(data, tmp_path / "run", mr.TrackioLog)
    assert list((tmp_path / "trackio").glob("*.db"))
