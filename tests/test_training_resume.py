"""A run that is killed at any point and resumed ends with the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import training_run

from maskrcnn.training.checkpoint import read_checkpoint
from maskrcnn.training.log import read_rows

KILLS = 5
FILES = ("checkpoint.safetensors", "last.safetensors", "best.safetensors")


class Server:
    """A process that forks trainings on demand (see `training_run.serve`)."""

    def __init__(self) -> None:
        source = Path(training_run.__file__)
        environment = os.environ | {"PYTHONPATH": str(source.parents[1] / "src")}
        self.process = subprocess.Popen(
            [sys.executable, source, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, settings: dict[str, Any]) -> int:
        """The status of the process that trained."""
        assert self.process.stdin
        assert self.process.stdout
        print(json.dumps(settings), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.process.communicate()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """An uninterrupted run: its settings and its folder."""
    folder = tmp_path_factory.mktemp("whole")
    settings = {
        "data": str(training_run.draw(folder / "data", 7)),
        "validation": str(training_run.draw(folder / "val", 3, seed=1)),
    }
    assert server.run(settings | {"out": str(folder / "run")}) == 0
    return settings, folder / "run"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_and_resumed_run_ends_with_the_same_weights(
    server: Server, whole: Any, tmp_path: Path, workers: int
) -> None:
    settings, expected = whole
    settings = settings | {
        "out": str(tmp_path / "run"),
        "resume": True,
        "train": {"workers": workers},
    }
    moments, resumed_at = random.Random(workers), []
    for step in sorted(moments.sample(range(15), KILLS)):
        status = server.run(settings | {"kill_at": step, "kill_after": moments.uniform(0, 0.1)})
        assert os.WIFSIGNALED(status)
        checkpoint = tmp_path / "run/checkpoint.safetensors"
        resumed_at.append(
            read_checkpoint(checkpoint)[1]["state"]["step"] if checkpoint.exists() else 0
        )
    assert server.run(settings) == 0
    assert len({step for step in resumed_at if 0 < step < 16}) >= 2, (
        f"the run was not resumed in the middle: {resumed_at}"
    )
    for name in FILES:
        assert training_run.weights_of(tmp_path / "run" / name) == training_run.weights_of(
            expected / name
        ), name
    killed, left_alone = (
        rows_of(folder / "metrics.csv") for folder in (tmp_path / "run", expected)
    )
    assert killed == left_alone
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], (
        "what was half written is cleared away"
    )


def rows_of(path: Path) -> list[dict[str, float]]:
    """Rows of metrics.csv without times."""
    return [
        {k: v for k, v in row.items() if not k.endswith(("time", "wait", "seconds", "second"))}
        for row in read_rows(path)
    ]
