"""Several processes: a failure or a loss of one ends all with a message, and the run continues with fewer."""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_run
from training_run import start_ranks, statuses, tiny_config, tiny_model

import maskrcnn as mr
from maskrcnn.images.read import ImageError
from maskrcnn.ops import distributed
from maskrcnn.training import processes, run_files, trainer
from maskrcnn.training.checkpoint import EarlierSession, for_processes
from maskrcnn.training.log import read_rows
from maskrcnn.training.process_watch import ProcessWatch
from maskrcnn.training.trial import step_seconds

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork processes")


@pytest.mark.parametrize(("here", "elsewhere", "mean"), [(0, 0, 0.5), (0, 1, 0.5), (3, 2, 2.5)])
def test_losses_divided_by_a_mean_count_are_those_of_the_whole_batch(
    here: int, elsewhere: int, mean: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = SimpleNamespace(
        is_available=lambda: True,
        is_initialized=lambda: True,
        get_world_size=lambda: 2,
        all_reduce=lambda total: total.add_(elsewhere),
    )
    monkeypatch.setattr(distributed, "dist", group)
    assert distributed.mean_count(torch.tensor(here)) == mean


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> mr.CocoDataset:
    return mr.CocoDataset(training_run.draw(tmp_path_factory.mktemp("data"), 4))


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost process is noticed after seconds, not minutes; every step is saved."""
    monkeypatch.setattr(run_files, "MOST_TIME_SAVING", 1e9)
    monkeypatch.setattr(
        processes, "ProcessWatch", functools.partial(ProcessWatch, beat=0.05, lost_after=1.0)
    )


def go(data: mr.CocoDataset, out: Path, resume: bool = False, **changes: Any) -> mr.Run:
    config = tiny_config(**({"steps": 4, "checkpoint_every": 1e-9} | changes))
    return mr.train(
        tiny_model(data), data, config=config, out=out, device="cpu", resume=resume, progress=True
    )


def end_in_step(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """What happens to this process in its third step."""
    plain = trainer.Trainer.step

    def step(running: trainer.Trainer) -> dict[str, float]:
        if running.state.step < 2:
            return plain(running)
        if how in ("killed", "frozen"):
            os.kill(os.getpid(), signal.SIGKILL if how == "killed" else signal.SIGSTOP)
        raise ImageError("scan.png: truncated")

    monkeypatch.setattr(trainer.Trainer, "step", step)


@pytest.mark.parametrize(
    ("how", "lost", "message"),
    [
        ("fails and exits", 1, "process 1 of 2 on {host} stopped: ImageError: scan.png: truncated"),
        ("fails and stays", 1, "process 1 of 2 on {host} stopped: ImageError: scan.png: truncated"),
        ("killed", 1, "lost process 1 of 2 on {host}: killed, or its machine or network failed"),
        ("killed", 0, "lost process 0 of 2 on {host}: killed, or its machine or network failed"),
        ("frozen", 0, "lost process 0 of 2 on {host}: no sign of life for 1 s; it hangs, or its"),
    ],
)
def test_a_process_that_fails_or_is_lost_ends_the_other_with_its_name(
    data: mr.CocoDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    how: str,
    lost: int,
    message: str,
) -> None:
    def work(rank: int) -> int:
        if rank == lost:
            end_in_step(monkeypatch, how)
        try:
            go(data, tmp_path / "run")
        except (ImageError, ConnectionError) as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if rank == lost and how == "fails and stays":
                time.sleep(60)
            return 2
        return 0

    children = start_ranks(2, work)
    end_of_other = threading.Timer(30, os.kill, (children[1 - lost], signal.SIGKILL))
    end_of_other.start()
    status = statuses([children[1 - lost]])
    end_of_other.cancel()
    os.kill(children[lost], signal.SIGKILL)
    statuses([children[lost]])
    assert status == [2]

    host = os.uname().nodename
    (line,) = [
        line
        for line in capfd.readouterr().err.splitlines()
        if line.startswith(("ProcessLostError: ", "Error: "))
    ]
    assert message.format(host=host) in line
    assert "The checkpoint of step 2 in " in line
    assert "continue with resume=True (--resume)" in line

    if how == "killed":  # one process continues what two began, with as many images per step
        run = go(data, tmp_path / "run", resume=True, steps=5)
        said = capfd.readouterr().out
        assert (
            "resumed after step 2, with 1 process instead of 2: accumulate=2 instead of 1" in said
        )
        assert "keeps 4 images per step" in said
        rows = read_rows(run.out / "metrics.csv")
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]


def test_processes_that_cannot_share_a_step_evenly_are_refused(tmp_path: Path) -> None:
    earlier = EarlierSession({}, {}, {"processes": 2})
    config = tiny_config(accumulate=2)
    group = processes.Processes(0, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"the run began with 2, and .*: 1, 2, 4\. pretrained="):
        for_processes(config, earlier, tmp_path, group)
    changed, text = for_processes(config, earlier, tmp_path, replace(group, world=4))
    assert (changed.accumulate, "with 4 processes instead of 2" in text) == (1, True)


def test_a_process_with_other_data_is_refused_by_name(
    data: mr.CocoDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = mr.CocoDataset(training_run.draw(tmp_path / "other", 4, seed=1))

    def work(rank: int) -> int:
        try:
            go(other if rank else data, tmp_path / "run")
        except (ValueError, ConnectionError) as error:
            print(error, file=sys.stderr, flush=True)
            return 2
        return 0

    assert statuses(start_ranks(2, work)) == [2, 2]
    lines = capfd.readouterr().err
    assert "expected the same settings and data in all processes, got data.sha256: " in lines
    assert "stopped: ValueError: expected the same settings" in lines


def test_a_run_after_a_failed_one_of_the_same_processes_does_not_fail_with_its_message(
    data: mr.CocoDataset, tmp_path: Path
) -> None:
    other = mr.CocoDataset(training_run.draw(tmp_path / "other", 4, seed=1))

    def work(rank: int) -> int:
        with pytest.raises((ValueError, ConnectionError), match="expected the same settings"):
            go(other if rank else data, tmp_path / "1")
        return len(go(data, tmp_path / "2", steps=1).history)

    assert statuses(start_ranks(2, work)) == [0, 0]


def test_a_checkpoint_that_only_another_process_sees_is_not_ignored(
    data: mr.CocoDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    go(data, tmp_path / "1", steps=1)

    def work(rank: int) -> int:
        try:
            go(data, tmp_path / str(rank), resume=True)
        except ValueError as error:
            print(error, file=sys.stderr, flush=True)
            return 2
        return 0

    assert statuses(start_ranks(2, work)) == [2, 2]
    host = os.uname().nodename
    assert f"but only {host} has the checkpoint. Move the folder" in capfd.readouterr().err


def test_processes_measure_a_step_together(data: mr.CocoDataset) -> None:
    """One alone would wait for the others in the losses."""

    def work(_: int) -> int:
        group = processes.Processes.start("cpu")
        with group.together():
            seconds = step_seconds(tiny_model(data), data, tiny_config(), processes=group)
            return int(len(set(group.gather(seconds))) != 1)

    assert statuses(start_ranks(2, work)) == [0, 0]
