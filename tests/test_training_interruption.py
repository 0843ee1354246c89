"""Ctrl-C and SIGTERM during a run: what is saved, what is printed, and where the run continues."""

from __future__ import annotations

import os
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import training_run
from training_run import tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.runtime.interruption import StopSignals
from maskrcnn.training import run_files, trainer
from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows


@pytest.fixture(autouse=True)
def signals_arrive() -> Iterator[None]:
    """A shell starts background jobs with Ctrl-C ignored, and a run leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> mr.CocoDataset:
    return mr.CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


@pytest.fixture(scope="module")
def whole(data: mr.CocoDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of six steps with two evaluations."""
    out = tmp_path_factory.mktemp("whole") / "run"
    go(data, out)
    return out


def go(data: mr.CocoDataset, out: Path, workers: int = 0, resume: bool = False) -> mr.Run:
    config = tiny_config(steps=6, checkpoint_every=1e9, evaluate_every=1.5, workers=workers)
    model = tiny_model(data)
    return train(model, data, val=data, config=config, out=out, device="cpu", resume=resume)


def signal_in(
    monkeypatch: pytest.MonkeyPatch, method: str, at_step: int, *numbers: signal.Signals
) -> None:
    """Sends signals to this process within a method of the trainer, at a step."""
    plain = getattr(trainer.Trainer, method)

    def signaled(running: trainer.Trainer, *arguments: Any) -> Any:
        if running.state.step == at_step:
            for number in numbers:
                os.kill(os.getpid(), number)
        return plain(running, *arguments)

    monkeypatch.setattr(trainer.Trainer, method, signaled)


def state_of(out: Path) -> dict[str, Any]:
    return read_checkpoint(out / "checkpoint.safetensors")[1]["state"]


def assert_equal_runs(one: Path, other: Path) -> None:
    for name in ("checkpoint.safetensors", "last.safetensors", "best.safetensors"):
        hashes = [training_run.weights_of(out / name) for out in (one, other)]
        assert hashes[0] == hashes[1], name
    rows = [[row["loss"] for row in read_rows(out / "metrics.csv")] for out in (one, other)]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_signal_saves_the_step_in_progress_and_the_run_continues_from_it(
    data: mr.CocoDataset,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    workers: int,
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        signal_in(patch, "step", 1, number)
        with pytest.raises(
            mr.Interrupted, match=r"stopped after step 2; the checkpoint in .*run h"
        ):
            go(data, tmp_path / "run", workers)
    assert (
        "Stopping after this step, with a checkpoint. Ctrl-C again ends" in capfd.readouterr().err
    )
    assert signal.getsignal(number) is before
    assert state_of(tmp_path / "run")["step"] == 2
    go(data, tmp_path / "run", resume=True)
    assert "resumed after step 2" in capfd.readouterr().out
    assert_equal_runs(tmp_path / "run", whole)


@pytest.mark.parametrize(("method", "step"), [("evaluate", 3), ("save_before_evaluation", 3)])
def test_a_run_stopped_between_its_checkpoint_and_its_evaluation_evaluates_when_resumed(
    data: mr.CocoDataset,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    step: int,
) -> None:
    with monkeypatch.context() as patch:
        signal_in(patch, method, step, signal.SIGTERM)
        with pytest.raises(mr.Interrupted) as raised:
            go(data, tmp_path / "run")
    assert raised.value.exit_status == 143
    state = state_of(tmp_path / "run")
    assert state["step"] == state["pending"]["step"] == 3
    assert not (tmp_path / "run/best.safetensors").exists()
    assert len(read_rows(tmp_path / "run/metrics.csv")) == 2, "the row of step 3 waits"
    run = go(data, tmp_path / "run", resume=True)
    assert [row["step"] for row in run.history] == [3, 6]
    assert_equal_runs(tmp_path / "run", whole)


def test_a_second_signal_ends_at_once_and_the_last_checkpoint_stays(
    data: mr.CocoDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        signal_in(patch, "step", 4, signal.SIGINT, signal.SIGINT)
        message = r"stopped after step 4; the checkpoint in .* holds step 3"
        with pytest.raises(mr.Interrupted, match=message) as raised:
            go(data, tmp_path / "run")
    assert raised.value.exit_status == 130
    assert raised.value.resumable
    go(data, tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "run", whole)


def test_a_second_signal_within_a_save_leaves_the_old_checkpoint_whole(
    data: mr.CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = run_files.write_checkpoint

    def interrupted(*arguments: Any) -> None:
        if arguments[2]["state"]["step"] == 6:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        write(*arguments)

    monkeypatch.setattr(run_files, "write_checkpoint", interrupted)
    with pytest.raises(mr.Interrupted, match=r"holds step 3"):
        go(data, tmp_path / "run")
    assert state_of(tmp_path / "run")["step"] == 3
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_in_another_thread_leaves_signals_alone(data: mr.CocoDataset, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    done: list[mr.Run] = []
    thread = threading.Thread(target=lambda: done.append(go(data, tmp_path / "run")))
    thread.start()
    thread.join()
    assert done
    assert signal.getsignal(signal.SIGINT) is before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGINT)
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_that_is_printed_continues_from_the_interrupted_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    status: int,
) -> None:
    from maskrcnn.cli import run

    annotations = training_run.draw(tmp_path / "data", 4)
    words = ["train", "--data", str(annotations), "--out", str(tmp_path / "my run"), "--no-val"]
    words += ["--no-recipe", "--model", "maskrcnn_r18_small", "--device", "cpu"]
    words += ["steps=2", "batch_size=2", "tensorboard=false", "model.trunk.res2_channels=8"]
    with monkeypatch.context() as patch:
        signal_in(patch, "step", 0, number)
        assert run(words) == status
    printed = capfd.readouterr().err
    assert "Interrupted: stopped after step 1; the checkpoint in" in printed
    (command,) = [line.strip() for line in printed.splitlines() if "--resume" in line]
    assert run(shlex.split(command)[1:]) == 0
    assert "resumed after step 1" in capfd.readouterr().out


def test_a_run_stopped_before_its_first_step_says_that_nothing_is_saved(
    data: mr.CocoDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = r"after step 0; .*run holds no checkpoint yet, so resume=True .* from the beginning"
    with monkeypatch.context() as patch:
        signal_in(patch, "_draw_examples", 0, signal.SIGINT)
        with pytest.raises(mr.Interrupted, match=message):
            go(data, tmp_path / "run")
    go(data, tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "run", whole)


def test_a_command_stopped_while_it_reads_the_data_is_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from maskrcnn.cli import run

    def interrupted(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("maskrcnn.training.plan.plan_training", interrupted)
    assert run(["train", "--data", "a.json", "--out", "run"]) == 143
    printed = capsys.readouterr().err
    assert "Start again with:\n  maskrcnn train --data a.json --out run\n" in printed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork processes")
def test_a_signal_to_one_of_several_processes_stops_all_after_the_same_step(
    data: mr.CocoDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def child(rank: int) -> int:
        if rank == 1:
            signal_in(monkeypatch, "step", 1, signal.SIGTERM)
        try:
            go(data, tmp_path / "run")
        except mr.Interrupted as stop:
            return stop.exit_status if "after step 2" in str(stop) else 1
        return 0

    children = training_run.start_ranks(2, child)
    assert training_run.statuses(children) == [143, 143]
    assert state_of(tmp_path / "run")["step"] == 2
