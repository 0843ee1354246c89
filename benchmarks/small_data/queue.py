"""A queue of trainings: locks, lines of results, and several processes that take turns.

In: jobs, the most important first. Out: lines of JSON in a results file. Every process goes through
the same list and takes the first job that is neither finished nor locked, so processes may come and
go at any time.
"""

from __future__ import annotations

import fcntl
import json
import math
import multiprocessing
import os
import signal
import subprocess
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

HERE = Path(__file__).resolve().parents[1]
DATA = HERE.parents[1] / "shared" / "data"
CAP = 500  # detections per image counted in AP, for every recipe
NUMBERS = ("AP", "AP50", "AP75")
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Setup:
    """Where and how jobs run."""

    data: Path
    """The folder of the data sets, or for `recipe_parts` that of the nuclei."""
    out: Path
    """The folder of the runs."""
    results: Path
    device: str = "cpu"
    stop_at: float = math.inf
    """The time (of `time.time`) after which no step begins."""

    @property
    def seconds_left(self) -> float:
        return self.stop_at - time.time()


class Job(Protocol):
    """One training, or several that depend on each other."""

    @property
    def name(self) -> str:
        """Names the run's folder; unique."""

    def is_finished(self, setup: Setup) -> bool: ...

    def expected_seconds(self, setup: Setup) -> float:
        """About how long the job takes, from finished ones of its kind; 0 = unknown."""
        ...

    def run(self, setup: Setup) -> None:
        """Runs or continues the job, and appends its lines to the results."""


def work_together(jobs: Sequence[Job], setup: Setup, workers: int) -> None:
    """Runs the unfinished jobs in several processes, until all are done or the time is over."""
    if workers == 1:
        work(jobs, setup)
        return
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=work, args=(jobs, setup, None, number)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def work(
    jobs: Sequence[Job], setup: Setup, runs: int | None = None, core: int | None = None
) -> None:
    """Runs the unfinished jobs that no other process is running.

    Args:
        jobs: the most important first.
        setup: where and how they run.
        runs: how many at most; None = all.
        core: the CPU core of this process, on a machine that trains on its CPU.
    """
    import torch

    from maskrcnn.runtime.interruption import Interrupted

    _end_with_parent()
    torch.set_num_threads(1)
    if core is not None and setup.device == "cpu":
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[core % len(cores)]})

    left = math.inf if runs is None else runs
    for job in jobs:
        if left <= 0 or setup.seconds_left <= 0:
            break
        if job.expected_seconds(setup) > setup.seconds_left:
            continue  # a shorter one may still fit
        with locked(setup.out / f"{job.name}.lock") as mine:
            if not mine or job.is_finished(setup):
                continue
            done = sum(other.is_finished(setup) for other in jobs)
            print(f"{job.name}: {done} of {len(jobs)} done", flush=True)
            left -= 1
            try:
                job.run(setup)
            except Interrupted as stop:
                print(f"{job.name}: {stop}", flush=True)
                if setup.seconds_left > 0:
                    raise  # by a person
                break
            except Exception:
                # One failure must not end the other runs of a machine that is lent for minutes.
                print(f"{job.name}: failed\n{traceback.format_exc()}", flush=True)


def _end_with_parent() -> None:
    """Ends this process, by SIGTERM, when the process that started it has ended.

    Otherwise it would go on training beside the next call. The run keeps its checkpoint.
    """

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=wait, daemon=True).start()


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Yields whether this process got the lock; the operating system releases it when the process
    ends, even by a crash.

    Args:
        path: the lock file.
        wait: wait until it is free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; none if it does not exist."""
    texts = path.read_text().splitlines() if path.exists() else []
    return [json.loads(text) for text in texts if text]


def append(path: Path, line: Line) -> None:
    """Appends a line under a lock, so that lines of concurrent writers do not mix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


def groups(lines: Sequence[Line], **wanted: Any) -> list[Line]:
    """The lines with these values."""
    return [line for line in lines if wanted.items() <= line.items()]


def commit() -> str:
    """The commit of the working tree; empty outside a repository."""
    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
