"""What the recipe is worth with few images: `python -m benchmarks.small_data [--core K] [--runs
N]`, then `--report`.

Trains on 10, 25 and 100 % of the nuclei, by the plain recipe and by ours, and at 10 % by ours
without each of its parts, with several seeds; every training has the same CPU time (of its process,
not of the clock on the wall, so that a busy machine is fair). Each finished run is a line of
results/small_data.jsonl; a call goes on with what is missing, and where a killed one was. Two
processes on two cores may work at once.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .charts import save_charts

HERE = Path(__file__).resolve().parent
NUCLEI = HERE.parents[1] / "shared" / "data" / "nuclei"
RESULTS, PAGE = HERE / "results" / "small_data.jsonl", HERE.parent / "docs" / "small_data.md"
SHARES = (10, 25, 100)  # per cent of the images
SEEDS = 3
CAP = 500  # detections an image at which AP is taken, for all
NAMES = {"plain": "plain", "ours": "ours", "taught": "ours, the others unlabeled"}
NUMBERS = ("AP", "AP50", "AP75")

# Ours, less one part: what the plain recipe has in its place.
WITHOUT: dict[str, dict[str, Any]] = {
    "copy-paste": {"augment.copy_paste": 0.0},
    "scale jitter": {"augment.scale": (1.0, 1.0)},
    "image scale": {"model.input.scale": 1.0},
    "fitted anchors": {
        "model.rpn.sizes": ((16.0,), (32.0,), (64.0,), (128.0,), (256.0,)),
        "model.rpn.ratios": (0.5, 1.0, 2.0),
    },
    "turns": {"augment.right_angles": False, "augment.flip_vertical": 0.0},
    "color": {
        "augment.brightness": 0.0,
        "augment.contrast": 0.0,
        "augment.saturation": 0.0,
        "augment.hue": 0.0,
    },
    "crops": {"augment.crop": None},
    "averaged weights": {"ema": 0.0},
    "learning rate": {"learning_rate": 5e-4},
}


@dataclass(frozen=True)
class Task:
    """One training."""

    recipe: str
    """plain, ours, or taught: ours, with the images left out as images without annotations."""
    share: int
    seed: int
    without: str = ""

    @property
    def name(self) -> str:
        return "-".join(
            filter(
                None,
                (
                    self.recipe,
                    str(self.share),
                    self.without and f"no {self.without}",
                    f"seed {self.seed}",
                ),
            )
        ).replace(" ", "_")

    @property
    def key(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "share": self.share,
            "without": self.without,
            "seed": self.seed,
        }


def tasks(seeds: int = SEEDS) -> Iterator[Task]:
    """All trainings, those of the first seed first."""
    for seed in range(seeds):
        for share in SHARES:
            yield from (Task(recipe, share, seed) for recipe in ("plain", "ours"))
        yield from (Task("ours", SHARES[0], seed, part) for part in WITHOUT)
        yield Task("taught", SHARES[0], seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.small_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=int, help="stop after so many")
    parser.add_argument("--core", type=int, help="stay on this core of the processor")
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        help="CPU time of each training; others are kept apart",
    )
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument(
        "--only", default="", help="of the runs, those whose name has this regular expression"
    )
    parser.add_argument(
        "--data",
        type=Path,
        default=NUCLEI,
        help="folder with images/ and annotations/{train,val}.json",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/small_data"), help="folder of the runs"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--list", action="store_true", help="what is done, what is missing")
    parser.add_argument(
        "--report",
        action="store_true",
        help="print the tables and write them into docs/small_data.md",
    )
    given = parser.parse_args()
    chosen = [task for task in tasks(given.seeds) if re.search(given.only, task.name)]
    if given.list:
        for task in chosen:
            print(
                f"{'done   ' if finished(task, given.minutes, given.results) else 'missing'}  {task.name}"
            )
    elif given.report:
        report(lines(given.results, given.minutes), write=given.results == RESULTS)
    else:
        if given.core is not None:
            os.sched_setaffinity(0, {given.core})
        work(chosen, given)


def work(chosen: Sequence[Task], given: argparse.Namespace) -> None:
    """Runs what is missing and what no other process is at."""
    import torch

    torch.set_num_threads(1)
    left = given.runs
    for task in chosen:
        if left == 0:
            break
        out = given.out / f"{given.minutes:g}min" / task.name
        with locked(out.with_suffix(".lock")) as mine:
            if not mine or finished(task, given.minutes, given.results):
                continue
            print(
                f"{task.name}: {sum(finished(t, given.minutes, given.results) for t in chosen)} of {len(chosen)} are done",
                flush=True,
            )
            append(
                given.results,
                {
                    **task.key,
                    "minutes": given.minutes,
                    **train(task, given.minutes, given.data, out),
                },
            )
            left = None if left is None else left - 1


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Whether this process has the lock; the system opens it when the process ends, however it
    ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def train(task: Task, minutes: float, folder: Path, out: Path) -> dict[str, Any]:
    """One training and what it reaches on the validation images."""
    import maskrcnn as mr

    data, validation = (
        mr.CocoDataset(folder / "annotations" / f"{part}.json", folder / "images")
        for part in ("train", "val")
    )
    chosen = chosen_images(len(data), task.share, task.seed)
    unlabeled = (
        linked(data, set(range(len(data))) - set(chosen), out.with_name(f"{out.name} unlabeled"))
        if task.recipe == "taught"
        else None
    )
    data = data.subset(chosen)
    model, config = (
        plain(data, task.seed)
        if task.recipe == "plain"
        else ours(data, task.seed, WITHOUT.get(task.without, {}))
    )
    config = replace(
        config, max_time=minutes * 60, evaluate_every=1e6, tensorboard=False, seed=task.seed
    )
    start = time.monotonic()
    fixed: dict[str, Any] = {"progress": False, "device": "cpu", "clock": time.process_time}
    run = mr.train(
        model, data, config=config, out=out, resume=out.exists(), unlabeled=unlabeled, **fixed
    )
    taken = time.monotonic() - start
    state = json.loads(last_line(out / "metrics.csv"))
    found = mr.evaluate(run.model, validation, max_detections=CAP, device="cpu")
    print(f"{task.name}: {found}", flush=True)
    numbers = {
        f"{name} {kind}": round(found.to_dict()[task_][kind], 4)
        for name, task_ in (("mask", "segm"), ("box", "bbox"))
        for kind in NUMBERS
    }
    return {
        **numbers,
        "images": len(data),
        **state,
        "wall seconds": round(taken),
        "commit": commit(),
    }


def chosen_images(count: int, share: int, seed: int) -> list[int]:
    """The first part of a random order that depends on the seed alone: smaller shares lie in larger
    ones.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[: max(1, round(count * share / 100))].tolist())


def linked(data: Any, which: Iterable[int], folder: Path) -> Path:
    """A folder of some of the images, without their annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (data[i].path for i in which):
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder


def plain(data: Any, seed: int) -> tuple[Any, Any]:
    """What somebody gets who takes the small preset as it is and trains as torchvision's reference
    script does.

    The same network, optimizer, batch and precision as ours; whole images at their own scale,
    mirrored half of the time and otherwise as they are; the preset's anchors and 300 detections;
    AdamW with 5e-4 and a cosine; the last weights.
    """
    import maskrcnn as mr

    augment = mr.AugmentConfig(flip_horizontal=0.5, scale=(1.0, 1.0))
    return mr.maskrcnn_r18_small(data.categories), mr.TrainConfig(
        ema=0.0, augment=augment, dtype=precision(), seed=seed
    )


def ours(data: Any, seed: int, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """What `maskrcnn train` chooses by itself, less a part."""
    import maskrcnn as mr

    fixed = {"seed": seed, "dtype": precision(), **settings}
    recipe = mr.choose_recipe(data, max_time=60.0, memory=8.0, device="cpu", settings=fixed)
    print(recipe, flush=True)
    return recipe.model, recipe.training


def precision() -> str:
    import torch

    from maskrcnn.model.optimize import computes_bfloat16

    return "bfloat16" if computes_bfloat16(torch.device("cpu")) else "float32"


def last_line(metrics: Path) -> str:
    """Steps and CPU seconds of a run, as JSON."""
    import csv

    with metrics.open() as file:
        row = list(csv.DictReader(file))[-1]
    return json.dumps(
        {
            "steps": int(float(row["step"])),
            "epochs": round(float(row["epoch"]), 1),
            "cpu seconds": round(float(row["time"]), 1),
        }
    )


def commit() -> str:
    import subprocess

    return subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()


# The lines


def lines(path: Path, minutes: float) -> list[dict[str, Any]]:
    """The finished runs of so many minutes."""
    texts = path.read_text().splitlines() if path.exists() else []
    return [line for line in map(json.loads, filter(None, texts)) if line["minutes"] == minutes]


def finished(task: Task, minutes: float, path: Path) -> bool:
    return any(task.key.items() <= line.items() for line in lines(path, minutes))


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, whole, whoever else writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(line) + "\n")


# The report


def report(found: Sequence[Mapping[str, Any]], write: bool) -> None:
    """Prints the tables; into the page between its marks, with the chart beside it."""
    if not found:
        raise SystemExit("no finished runs")
    text = "\n\n".join((table_of_shares(found), table_of_parts(found)))
    print(text)
    if write:
        chart = PAGE.parent / "images" / "small_data.svg"
        panels = {
            f"mask {kind}, mean of the seeds": (
                "per cent of the images",
                curves(found, f"mask {kind}"),
            )
            for kind in ("AP", "AP50")
        }
        save_charts(chart, panels)
        page = PAGE.read_text()
        PAGE.write_text(
            re.sub(
                r"(<!-- results -->\n).*?(<!-- end -->)",
                lambda m: f"{m[1]}\n{text}\n\n{m[2]}",
                page,
                flags=re.DOTALL,
            )
        )


def groups(found: Sequence[Mapping[str, Any]], **wanted: Any) -> list[Mapping[str, Any]]:
    return [line for line in found if wanted.items() <= line.items()]


def curves(found: Sequence[Mapping[str, Any]], number: str) -> dict[str, list[tuple[float, float]]]:
    def points(recipe: str) -> list[tuple[float, float]]:
        shares = [
            (share, groups(found, recipe=recipe, share=share, without="")) for share in SHARES
        ]
        return [
            (share, statistics.mean(line[number] for line in some))
            for share, some in shares
            if some
        ]

    return {recipe: curve for recipe in ("plain", "ours") if (curve := points(recipe))}


def table_of_shares(found: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| images | recipe | seeds | mask AP | AP50 | AP75 | box AP | steps | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for share in SHARES:
        for recipe in NAMES:
            if some := groups(found, recipe=recipe, share=share, without=""):
                numbers = [
                    spread(some, name) for name in ("mask AP", "mask AP50", "mask AP75", "box AP")
                ]
                other = [
                    f"{statistics.mean(line[name] for line in some):.0f}"
                    for name in ("steps", "cpu seconds")
                ]
                rows.append(
                    f"| {share} % ({some[0]['images']}) | {NAMES[recipe]} | {len(some)} | {' | '.join((*numbers, *other))} |"
                )
    return "\n".join(rows)


def table_of_parts(found: Sequence[Mapping[str, Any]]) -> str:
    """Ours at the smallest share without each part; differences are between runs of the same
    seed.
    """
    whole = {
        line["seed"]: line for line in groups(found, recipe="ours", share=SHARES[0], without="")
    }
    rows = [
        f"| ours at {SHARES[0]} % | seeds | mask AP | AP50 | change of AP | of AP50 |",
        "|---|---|---|---|---|---|",
    ]
    for part in ("", *WITHOUT):
        some = [
            line
            for line in groups(found, recipe="ours", share=SHARES[0], without=part)
            if line["seed"] in whole
        ]
        if some:
            changes = [
                statistics.mean(line[n] - whole[line["seed"]][n] for line in some)
                for n in ("mask AP", "mask AP50")
            ]
            said = " | ".join(f"{change:+.3f}" if part else "" for change in changes)
            name = f"without {part}" if part else "**whole**"
            rows.append(
                f"| {name} | {len(some)} | {spread(some, 'mask AP')} | {spread(some, 'mask AP50')} | {said} |"
            )
    return "\n".join(rows)


def spread(some: Sequence[Mapping[str, Any]], number: str) -> str:
    """Mean, and the least and the most of several."""
    values = [line[number] for line in some]
    return f"{statistics.mean(values):.3f}" + (
        f" ({min(values):.3f}..{max(values):.3f})" if len(values) > 1 else ""
    )


if __name__ == "__main__":
    main()
