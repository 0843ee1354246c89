"""Fair timing: runs compared functions in turns and records the machine.

In: functions without arguments. Out: `Times`, the seconds of each round, with medians, ranges and
    ratios of runs of the same round.
"""

from __future__ import annotations

import gc
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of each function in each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, slow: str, fast: str) -> list[float]:
        """Time of `slow` divided by the time of `fast`, for each round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]

    def rows(self, reference: str | None = None) -> list[dict[str, Any]]:
        """A row per function: its seconds and its speed-up over the reference in the same round,
        each as [median, minimum, maximum].
        """
        rows = []
        for name, seconds in self.seconds.items():
            row: dict[str, Any] = {"what": name, "s": spread(seconds)}
            if reference:
                row["times as fast"] = spread(self.ratios(reference, name))
            rows.append(row)
        return rows


def spread(values: Sequence[float]) -> list[float]:
    """Median, minimum and maximum."""
    return [statistics.median(values), min(values), max(values)]


def in_turns(
    work: Mapping[str, Work],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Runs A B C, A B C, ... and times each run; warm-up rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(-warm_up, rounds):
        for name, function in work.items():
            start = clock()
            function()
            if number >= 0:
                seconds[name].append(clock() - start)
    return Times(seconds)


def machine() -> dict[str, Any]:
    """The machine and the versions that the results were measured with."""
    import torch
    import torchvision

    info = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "commit": _commit(),
    }
    return info | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def in_new_process(*words: object) -> str:
    """The last line printed by `python words...`, for peak memory and first calls, which need a new
    process.

    Python may write bytecode files, because an installed package has them too.
    """
    command = [sys.executable, *map(str, words)]
    environment = {
        name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"
    }
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env=environment,
        check=False,
    )

    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
    return (done.stdout.strip().splitlines() or [""])[-1]


class PeakMemory:
    """After `with PeakMemory() as peak: ...`, `peak.bytes` is the peak memory of the process inside
    the block minus its memory before.

    Exact on Linux. Elsewhere it is the increase of the highest peak since the process started.
    Reused memory that was freed before does not count, so measure in a new process.
    """

    bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if sys.platform == "linux":
            # Resets the peak to the current level.
            Path("/proc/self/clear_refs").write_text("5")
        self._before = self._highest()
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = self._highest() - self._before

    @staticmethod
    def _highest() -> int:
        if sys.platform == "linux":
            return next(
                int(line.split()[1]) * 1024
                for line in Path("/proc/self/status").read_text().splitlines()
                if line.startswith("VmHWM")
            )
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [
            line.split(":", 1)[1].strip()
            for line in info.read_text().splitlines()
            if line.startswith("model name")
        ]
        if info.exists()
        else []
    )
    return names[0] if names else platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
        check=False,
    )
    return done.stdout.strip()
