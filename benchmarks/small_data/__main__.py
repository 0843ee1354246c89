"""Measures what helps when data are few: `python -m benchmarks.small_data`, then `--report`.

Two experiments. annotation: the same data with masks, points or boxes, from random and from
ImageNet weights, at equal steps. recipe: the recipe against a plain one and without each of its
parts, at equal CPU time. Every finished run, and every point at which one is measured, is a line of
JSON. A call runs the missing trainings and continues interrupted ones; several may run at once.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from . import arms, recipe_parts, report
from .queue import DATA, HERE, Job, Setup, work, work_together

RESULTS = HERE / "results" / "small_steps.jsonl"
STEP_COST = HERE / "results" / "small_steps_cost.json"


def main() -> None:
    given = arguments()
    annotation = given.experiment == "annotation"
    setup = Setup(
        data=given.data or (DATA if annotation else recipe_parts.NUCLEI),
        out=given.out,
        results=given.results or (RESULTS if annotation else recipe_parts.RESULTS),
        device=given.device,
        stop_at=math.inf if given.until is None else time.time() + given.until,
    )
    chosen = [job for job in jobs(given) if re.search(given.only, job.name)]

    if given.list:
        list_jobs(chosen, setup, given.workers)
    elif given.report and annotation:
        report.write(setup.results, STEP_COST)
    elif given.report:
        lines = recipe_parts.lines(setup.results, given.minutes)
        recipe_parts.report(lines, write=given.results is None)
    elif given.step_cost:
        measure_step_cost(chosen, setup)
    elif given.workers > 1:
        print(forecast(chosen, setup, given.workers), flush=True)
        work_together(chosen, setup, given.workers)
    else:
        print(forecast(chosen, setup, 1), flush=True)
        work(chosen, setup, given.runs, given.core)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--experiment", choices=("annotation", "recipe"), default="annotation")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
        help="processes that train at once, one thread each; default: one for each core",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for the annotation arms")
    parser.add_argument("--until", type=float, help="stop after so many seconds, with checkpoints")
    parser.add_argument("--runs", type=int, help="stop after this many trainings (--workers 1)")
    parser.add_argument("--core", type=int, help="pin the process to this CPU core (--workers 1)")
    parser.add_argument(
        "--steps", type=int, default=0, help="of every arm; default: depends on the data set"
    )
    parser.add_argument(
        "--minutes", type=float, default=recipe_parts.MINUTES, help="CPU time of a recipe run"
    )
    parser.add_argument("--seeds", type=int, default=arms.SEEDS)
    parser.add_argument(
        "--only", default="", help="select runs whose name matches this regular expression"
    )
    parser.add_argument(
        "--questions",
        default="",
        help="which runs, in this order, separated by commas: kinds, starts, plants, two_hours, "
        "rank, variants, front; default: all",
    )
    parser.add_argument("--variants", type=Path, help="file of runs with other settings")
    parser.add_argument(
        "--front", type=int, default=0, help="steps of the longer runs on real images; 0 = none"
    )
    parser.add_argument(
        "--front-seconds", type=float, default=0.0, help="end a longer run after this time"
    )
    parser.add_argument("--data", type=Path, help="folder of the data sets")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/small_data"), help="folder for the runs"
    )
    parser.add_argument("--results", type=Path, help="file for the lines")
    parser.add_argument("--list", action="store_true", help="list finished and missing runs")
    parser.add_argument(
        "--step-cost", action="store_true", help="measure the CPU time of a step of each arm"
    )
    parser.add_argument(
        "--report", action="store_true", help="write tables and charts into docs/small_data.md"
    )
    return parser.parse_args()


def jobs(given: argparse.Namespace) -> list[Job]:
    """All runs of the experiment, the most important first."""
    if given.experiment == "recipe":
        return list(recipe_parts.tasks(given.seeds, given.minutes))
    known = arms.questions(given.steps, given.seeds)
    if given.variants:
        known["variants"] = arms.variants(given.variants, given.steps, given.seeds)
    if given.front:
        known["front"] = arms.front(given.front, given.front_seconds)
    wanted = given.questions.split(",") if given.questions else sorted(known, key=_order)
    if unknown := set(wanted) - set(known):
        raise SystemExit(
            f"--questions: expected some of {', '.join(known)}, got {', '.join(unknown)}"
        )
    return list(dict.fromkeys(job for name in wanted for job in known[name]))


def _order(question: str) -> bool:
    """Whether a question comes after the longest runs, which have to begin first."""
    return question != "front"


def list_jobs(chosen: Sequence[Job], setup: Setup, workers: int) -> None:
    """Prints which runs are finished, and how long the others take."""
    for job in chosen:
        state = "done   " if job.is_finished(setup) else "missing"
        print(f"{state}  {job.name}")
    print(forecast(chosen, setup, workers))


def forecast(chosen: Sequence[Job], setup: Setup, workers: int) -> str:
    """How long the missing runs take, as text."""
    missing = [job for job in chosen if not job.is_finished(setup)]
    text = f"{len(chosen) - len(missing)} of {len(chosen)} runs done"
    seconds = [job.expected_seconds(setup) or cost_of(job) for job in missing]
    unknown = seconds.count(0.0)
    if missing:
        hours = sum(seconds) / 3600 / workers
        text += f"; the others take about {hours:.1f} h in {workers} processes"
    return text + (f", without {unknown} whose time is not known yet" if unknown else "")


def cost_of(job: Job) -> float:
    """Seconds of an arm on one core, from `--step-cost` of its kind or of masks; 0 = unknown."""
    costs = json.loads(STEP_COST.read_text())["seconds"] if STEP_COST.exists() else {}
    if not isinstance(job, arms.Arm):
        return 0.0
    like = costs.get(f"{job.data} masks {job.start}", 0.0)
    return job.count * costs.get(cost_name(job), like)


def cost_name(arm: arms.Arm) -> str:
    """What the cost of a step depends on."""
    return f"{arm.data} {arm.kind} {arm.start}"


def measure_step_cost(chosen: Sequence[Job], setup: Setup) -> None:
    """Writes the CPU seconds of a step for each data set, kind and start."""
    from ..timing import machine
    from .equal_steps import step_cost

    costs: dict[str, float] = {}
    for job in chosen:
        if isinstance(job, arms.Arm) and cost_name(job) not in costs and not job.variant:
            costs[cost_name(job)] = round(step_cost(job, setup), 3)
            print(f"{cost_name(job)}: {costs[cost_name(job)]:.3f} s", flush=True)
    STEP_COST.write_text(json.dumps({"machine": machine(), "seconds": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
