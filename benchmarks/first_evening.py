"""The first evening: what `maskrcnn train --max-time` makes of two data sets in 5, 15 and 60 minutes.

Each run is one process on one core in float32: plants (all 58 images, validated on 26 others) and a
tenth of nuclei (56 images, validated on 99 others). The model that comes with the package has seen
the nuclei, so random weights are asked for, or with `--pretrained` those of a trunk.

Records what the plan announced, and what came: AP, the time of the whole command, and the memory at
the peak. A run that was interrupted is done again from the start; finished ones are kept.

    taskset -c 0 python -m benchmarks.first_evening            # continues with what is missing
    python -m benchmarks.first_evening --list
    python -m benchmarks.first_evening --report                # writes the table of docs/results.md
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .small_data.queue import CAP, HERE, append, commit
from .small_data.recipe_parts import chosen_images

DATA = HERE.parents[1] / "shared" / "data"
RESULTS = HERE / "results" / "first_evening.jsonl"
PAGE = HERE.parent / "docs" / "results.md"
SETS = ("plants", "nuclei")
MINUTES = (5, 15, 60)
RANDOM = "none"
STARTS = {RANDOM: "random", "efficientnet_lite0_imagenet": "EfficientNet-Lite0"}
GIB = 2**30
FINISHED = "finished.json"
# A time may differ from the announced one by this share or by so many seconds.
TIME_SHARE, TIME_SECONDS = 0.05, 30.0
MEMORY_SHARE = 0.2


@dataclass(frozen=True)
class Task:
    """One training."""

    name: str
    minutes: float
    pretrained: str = RANDOM

    @property
    def key(self) -> dict[str, Any]:
        return {"data": self.name, "minutes": self.minutes, "pretrained": self.pretrained}

    @property
    def folder(self) -> str:
        start = "" if self.pretrained == RANDOM else f"-{self.pretrained}"
        return f"{self.name}-{self.minutes:g}min{start}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_evening",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", default="", help="data set, such as plants")
    parser.add_argument("--minutes", type=float, nargs="+", default=MINUTES)
    parser.add_argument(
        "--pretrained", default=RANDOM, help="initial weights, such as efficientnet_lite0_imagenet"
    )
    parser.add_argument("--runs", type=int, help="stop after this many trainings")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with plants/ and nuclei/")
    parser.add_argument("--out", type=Path, default=Path("runs/first_evening"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="the budget is CPU time of the process, for a machine with other work",
    )
    parser.add_argument("--list", action="store_true", help="list finished and missing runs")
    parser.add_argument("--report", action="store_true", help="write the table of docs/results.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()

    if given.child:
        train(given)
        return
    # The short runs first.
    tasks = [
        Task(name, minutes, given.pretrained)
        for minutes in given.minutes
        for name in SETS
        if given.only in name
    ]
    if given.list:
        for task in tasks:
            state = "done   " if finished(task, given) else "missing"
            print(f"{state}  {task.folder}")
    elif given.report:
        report(lines(given.results), write=given.results == RESULTS)
    else:
        left = given.runs
        for task in tasks:
            if left == 0:
                break
            if not finished(task, given):
                run(task, given)
                left = None if left is None else left - 1


def run(task: Task, given: argparse.Namespace) -> None:
    """Trains in a process of its own, evaluates the result and appends a line to the results."""
    import maskrcnn as mr

    kind = "cpu" if given.cpu_time else "wall"
    out = given.out / f"{task.folder}-{kind}"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "benchmarks.first_evening", "--child", str(time.monotonic())]
    command += ["--only", task.name, "--minutes", str(task.minutes), "--out", str(out)]
    command += ["--pretrained", task.pretrained]
    command += ["--data", str(given.data), *(["--cpu-time"] if given.cpu_time else [])]

    print(f"{task.name}, {task.minutes:g} min ({kind} time)", flush=True)
    begin = time.monotonic()
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise SystemExit(f"{task.name}, {task.minutes:g} min: exit status {code}")

    _, validation = opened(task.name, given.data)
    model = mr.load(out / "run", device="cpu")
    evaluation = mr.evaluate(model, validation, max_detections=CAP).to_dict()
    line = {
        **task.key,
        "time": kind,
        **json.loads((out / FINISHED).read_text()),
        "seconds": round(usage.ru_utime + usage.ru_stime if given.cpu_time else seconds, 1),
        "box AP": round(evaluation["bbox"]["AP"], 4),
        "mask AP": round(evaluation["segm"]["AP"], 4),
        "commit": commit(),
    }
    append(given.results, line)
    print(json.dumps(line), flush=True)


def train(given: argparse.Namespace) -> None:
    """What `maskrcnn train --max-time` does, in this process, with what it announces."""
    import torch

    import maskrcnn as mr
    from maskrcnn.runtime.keep_memory import keep_memory

    torch.set_num_threads(1)
    keep_memory()
    clock: Callable[[], float] = time.process_time if given.cpu_time else time.monotonic
    started = 0.0 if given.cpu_time else float(given.child)
    data, validation = opened(given.only, given.data)
    plan = mr.plan_training(
        data,
        val=validation,
        pretrained=given.pretrained,
        settings={"max_time": given.minutes[0] * 60, "dtype": "float32", "tensorboard": False},
        out=given.out / "run",
        device="cpu",
        anyway=True,
        clock=clock,
        started=started,
    )
    print(plan, flush=True)
    result = plan.run()

    assert plan.forecast is not None
    assert plan.memory is not None
    announced = {
        "images": len(data),
        "recipe": plan.forecast.choice.candidate.name,
        "announced steps": plan.forecast.steps,
        "announced GiB": round(plan.memory / GIB, 2),
        "prepared": round(plan.forecast.prepared, 1),
        "steps": int(result.history[-1]["step"]),
        "peak GiB": round(peak_bytes() / GIB, 2),
    }
    (given.out / FINISHED).write_text(json.dumps(announced))


def peak_bytes() -> int:
    """The most resident bytes that this process has had.

    `getrusage` also counts what its parent had when it started this process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the peak of memory is known on Linux alone")


def opened(name: str, folder: Path) -> tuple[Any, Any]:
    """The images to train on and those to validate on."""
    import maskrcnn as mr

    data, validation = (
        mr.CocoDataset(folder / name / "annotations" / f"{part}.json", folder / name / "images")
        for part in ("train", "val")
    )
    if name == "nuclei":
        data = data.subset(chosen_images(len(data), 10, 0))
    return data, validation


def lines(path: Path) -> list[dict[str, Any]]:
    """The finished runs."""
    texts = path.read_text().splitlines() if path.exists() else []
    return [{"pretrained": RANDOM, **json.loads(text)} for text in texts if text]


def finished(task: Task, given: argparse.Namespace) -> bool:
    key = task.key | {"time": "cpu" if given.cpu_time else "wall"}
    return any(key.items() <= line.items() for line in lines(given.results))


def report(runs: Sequence[Mapping[str, Any]], write: bool) -> None:
    """Prints the table and what does not hold; with `write`, updates the page."""
    if not runs:
        raise SystemExit("no finished runs")
    rows = [
        "| data | start | minutes | steps (announced) | box AP | mask AP | took "
        "| peak GiB (announced) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ordered = sorted(
        runs, key=lambda r: (SETS.index(r["data"]), r["pretrained"] != RANDOM, r["minutes"])
    )
    for r in ordered:
        note = " CPU" if r["time"] == "cpu" else ""
        rows.append(
            f"| {r['data']} ({r['images']}) | {STARTS.get(r['pretrained'], r['pretrained'])} "
            f"| {r['minutes']:g}{note} "
            f"| {r['steps']} ({r['announced steps']}) | {r['box AP']:.3f} | {r['mask AP']:.3f} "
            f"| {r['seconds'] / 60:.1f} | {r['peak GiB']:.2f} ({r['announced GiB']:.2f}) |"
        )
    text = "\n".join(rows)
    print(text)
    for problem in broken_promises(ordered):
        print(problem)

    if write:
        page = PAGE.read_text()
        marks = r"(<!-- first evening -->\n).*?(<!-- end -->)"
        PAGE.write_text(re.sub(marks, lambda m: f"{m[1]}\n{text}\n\n{m[2]}", page, flags=re.DOTALL))


def broken_promises(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Runs whose time, memory or AP is not as promised, as text; runs in the table's order."""
    problems: list[str] = []
    for r in runs:
        name = f"{r['data']}, {r['minutes']:g} min"
        asked = 60 * r["minutes"]
        if abs(r["seconds"] - asked) > max(TIME_SHARE * asked, TIME_SECONDS):
            problems.append(f"{name}: expected {asked:.0f} s, got {r['seconds']:.0f} s")
        if abs(r["peak GiB"] / r["announced GiB"] - 1) > MEMORY_SHARE:
            problems.append(
                f"{name}: expected {r['announced GiB']} GiB at the peak, got {r['peak GiB']}"
            )
        if r["mask AP"] <= 0:
            problems.append(f"{name}: expected a mask AP above 0, got {r['mask AP']}")
    for before, after in itertools.pairwise(runs):
        is_same = all(before[key] == after[key] for key in ("data", "pretrained"))
        is_longer = is_same and before["minutes"] < after["minutes"]
        if is_longer and after["mask AP"] <= before["mask AP"]:
            problems.append(
                f"{after['data']}: expected a mask AP that rises with the time, "
                f"got {before['mask AP']} and {after['mask AP']}"
            )
    return problems


if __name__ == "__main__":
    main()
