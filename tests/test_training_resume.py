"""A run that is killed and resumed ends with the weights of one that was left alone, whenever it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import training_run

from maskrcnn.training.checkpoint import read_checkpoint

KILLS = 6
FILES = ("checkpoint.safetensors", "last.safetensors", "best.safetensors")


class Server:
    """A process that forks trainings on demand (see `training_run.serve`)."""

    def __init__(self) -> None:
        source = Path(training_run.__file__)
        environment = os.environ | {"PYTHONPATH": str(source.parents[1] / "src"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen([sys.executable, source, "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def run(self, settings: dict[str, Any], kill_after: float | None = None) -> int:
        """Trains, and kills after so many seconds; the status of the process."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(settings), file=self.process.stdin, flush=True)
        pid = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # the id stays ours until the server has waited for it; a finished training is not harmed
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.process.communicate()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path, float]:
    """An uninterrupted run: its settings, its folder, its seconds."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {"data": str(training_run.draw(folder / "data", 7)), "validation": str(training_run.draw(folder / "val", 3, seed=1))}
    start = time.monotonic()
    assert server.run(settings | {"out": str(folder / "run")}) == 0
    return settings, folder / "run", time.monotonic() - start


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(server: Server, whole: Any, tmp_path: Path, workers: int) -> None:
    settings, expected, seconds = whole
    settings = settings | {"out": str(tmp_path / "run"), "resume": True, "train": {"workers": workers}}
    moments, reached = random.Random(workers), []
    for _ in range(KILLS):
        status = server.run(settings, kill_after=moments.uniform(0.1, 0.7) * seconds)
        checkpoint = tmp_path / "run/checkpoint.safetensors"
        if checkpoint.exists():
            reached.append(read_checkpoint(checkpoint)[1]["state"]["step"])
        if os.WIFEXITED(status):
            break
    assert server.run(settings) == 0
    assert any(0 < step < 16 for step in reached), f"no kill hit a run in the middle: {reached}"
    for name in FILES:
        assert training_run.weights_of(tmp_path / "run" / name) == training_run.weights_of(expected / name), name
    columns = [[row.split(",")[c] for c in (0, 1, 3, 4)] for row in (tmp_path / "run/metrics.csv").read_text().splitlines()]
    assert columns == [[row.split(",")[c] for c in (0, 1, 3, 4)] for row in (expected / "metrics.csv").read_text().splitlines()]
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], "what was half written is cleared away"
