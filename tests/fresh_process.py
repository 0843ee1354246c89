"""Work that needs a process of its own, without paying for its imports each time.

One process imports PyTorch and the package, without the checks of shapes of conftest.py, and
computes nothing. Each call is a fork of it: `fresh_process.call("training_run:main", settings)`.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
PATH = [str(ROOT / "src"), str(ROOT), str(ROOT / "tests")]

MOST_SECONDS = 400
IMPORTED = (
    "hotcoco",
    "torch.distributed.launcher.api",
    "maskrcnn.augmentation.loader",
    "maskrcnn.evaluation.coco_results",
    "maskrcnn.evaluation.evaluate",
    "maskrcnn.training.fit",
    "maskrcnn.weights.load",
)


class Ended(NamedTuple):
    """How a call ended: the exit status, or minus the signal; what was printed."""

    status: int
    out: str
    err: str


class FreshProcess:
    """The process that forks. It runs one call at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(PATH)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # else `has_ended` would not see what has been read ahead
        )
        self._folder = tempfile.TemporaryDirectory()

    def start(self, function: str, *arguments: Any) -> int:
        """Starts `function`, such as "training_run:main", in a new process; its id."""
        self._child = int(self._ask([function, arguments, self._folder.name]))
        return self._child

    def has_ended(self, seconds: float) -> bool:
        """Whether the call ends within some seconds."""
        return bool(select.select([self._process.stdout], [], [], seconds)[0])

    def wait(self) -> Ended:
        """Waits for the end of the call; one that hangs is killed."""
        assert self._process.stdout
        if not self.has_ended(MOST_SECONDS):
            os.kill(self._child, signal.SIGKILL)
        status = int(self._process.stdout.readline())
        out, err = ((Path(self._folder.name) / name).read_text() for name in ("out", "err"))
        return Ended(os.waitstatus_to_exitcode(status), out, err)

    def call(self, function: str, *arguments: Any) -> Ended:
        """Runs a function in a new process."""
        self.start(function, *arguments)
        return self.wait()

    def close(self) -> None:
        self._process.communicate()
        self._folder.cleanup()

    def _ask(self, request: Any) -> bytes:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        return self._process.stdout.readline()


def run_source(source: str) -> None:
    """Runs Python code."""
    exec(compile(source, "source", "exec"), {"__name__": "__main__"})


def run_file(path: str, *arguments: str) -> None:
    """Runs a Python file as a program."""
    sys.argv = [path, *arguments]
    runpy.run_path(path, run_name="__main__")


def serve() -> None:
    """For each line of the input forks a process, and prints its id and then its status."""
    for name in IMPORTED:
        importlib.import_module(name)

    for line in sys.stdin:
        function, arguments, folder = json.loads(line)
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for stream, file in ((1, "out"), (2, "err")):
                    os.dup2(
                        os.open(f"{folder}/{file}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream
                    )
                call(*arguments)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)
    os._exit(0)  # what Python does at its end takes a second


if __name__ == "__main__":
    serve()
