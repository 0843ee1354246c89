"""Fair times: things that are compared run in turns, and the machine is written down beside them.

In: functions without arguments. Out: `Times`, the seconds of each round; medians, spread, and
    ratios of the runs of the same round.
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
    """Seconds of each thing in each round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def ratios(self, slow: str, fast: str) -> list[float]:
        """How many times as long `slow` took as `fast`, round by round."""
        return [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]

    def rows(self, reference: str | None = None) -> list[dict[str, Any]]:
        """A row for each thing: its seconds and, round by round, how many times as fast as the
        reference it was; each as [median, least, most].
        """
        rows = []
        for name, seconds in self.seconds.items():
            row: dict[str, Any] = {"what": name, "s": spread(seconds)}
            if reference:
                row["times as fast"] = spread(self.ratios(reference, name))
            rows.append(row)
        return rows


def spread(values: Sequence[float]) -> list[float]:
    """Median, least and most."""
    return [statistics.median(values), min(values), max(values)]


def in_turns(
    work: Mapping[str, Work],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> Times:
    """Runs A B C, A B C, ... and times each run; the rounds of the warm-up do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(-warm_up, rounds):
        for name, function in work.items():
            start = clock()
            function()
            if number >= 0:
                seconds[name].append(clock() - start)
    return Times(seconds)


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
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
    """The last line that `python words..` prints; for peak memory and first calls, which need a
    fresh process.

    Python may keep what it compiles, as an installed package has it.
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
    """`with PeakMemory() as peak: ..`: then `peak.bytes` is the most memory that the process held
    inside, above what it held before.

    Exact on Linux; elsewhere only what exceeds the highest level that the process has ever had.
    Memory that was freed before and is used again does not count, so measure in a fresh process.
    """

    bytes = 0

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if sys.platform == "linux":
            Path("/proc/self/clear_refs").write_text(
                "5"
            )  # the highest level becomes the present one
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
