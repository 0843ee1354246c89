"""The recipe on small data sets, at equal CPU time, and what each of its parts contributes.

Trains on 10, 25 and 100 % of the nuclei with the plain recipe and with ours, and at 10 % with ours
minus each of its parts, with several seeds. Every training gets the same CPU time of its process
(not wall time, so a busy machine does not distort the comparison). Each finished run is a line of
results/small_data.jsonl.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..charts import save_charts
from .queue import CAP, DATA, HERE, NUMBERS, Setup, append, commit, groups, read_lines

NUCLEI = DATA / "nuclei"
RESULTS = HERE / "results" / "small_data.jsonl"
PAGE = HERE.parent / "docs" / "small_data.md"
SHARES = (10, 25, 100)  # percent of the images
SEEDS = 3
MINUTES = 8.0
NAMES = {"plain": "plain", "ours": "ours", "unlabeled": "ours, the others unlabeled"}

# Ours without one part: the settings of the plain recipe for that part.
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
    """plain, ours, or unlabeled: ours, with all other training images as unlabeled images."""
    share: int
    seed: int
    without: str = ""
    minutes: float = MINUTES
    """CPU time of the training; results with other values are kept separate."""

    @property
    def name(self) -> str:
        return f"{self.minutes:g}min/" + "-".join(
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
            "minutes": self.minutes,
        }

    def is_finished(self, setup: Setup) -> bool:
        return bool(groups(read_lines(setup.results), **self.key))

    def expected_seconds(self, setup: Setup) -> float:
        return 60 * self.minutes

    def run(self, setup: Setup) -> None:
        numbers = train(self, self.minutes, setup.data, setup.out / self.name)
        append(setup.results, {**self.key, **numbers})


def tasks(seeds: int = SEEDS, minutes: float = MINUTES) -> Iterator[Task]:
    """All trainings, ordered by seed."""
    for seed in range(seeds):
        for share in SHARES:
            for recipe in ("plain", "ours"):
                yield Task(recipe, share, seed, minutes=minutes)
        yield from (Task("ours", SHARES[0], seed, part, minutes) for part in WITHOUT)
        yield Task("unlabeled", SHARES[0], seed, minutes=minutes)


def train(task: Task, minutes: float, folder: Path, out: Path) -> dict[str, Any]:
    """Runs one training and returns its metrics on the validation images."""
    import maskrcnn as mr

    data, validation = (
        mr.CocoDataset(folder / "annotations" / f"{part}.json", folder / "images")
        for part in ("train", "val")
    )
    chosen = chosen_images(len(data), task.share, task.seed)
    unlabeled = (
        linked(data, set(range(len(data))) - set(chosen), out.with_name(f"{out.name} unlabeled"))
        if task.recipe == "unlabeled"
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
    wall_seconds = time.monotonic() - start

    state = json.loads(last_line(out / "metrics.csv"))
    evaluation = mr.evaluate(run.model, validation, max_detections=CAP)
    print(f"{task.name}: {evaluation}", flush=True)

    numbers = {
        f"{name} {kind}": round(evaluation.to_dict()[task_][kind], 4)
        for name, task_ in (("mask", "segm"), ("box", "bbox"))
        for kind in NUMBERS
    }
    return {
        **numbers,
        "images": len(data),
        **state,
        "wall seconds": round(wall_seconds),
        "commit": commit(),
    }


def chosen_images(count: int, share: int, seed: int) -> list[int]:
    """The first images of a random order that depends on the seed only, so that smaller shares are
    subsets of larger ones.
    """
    import numpy as np

    order = np.random.default_rng(seed).permutation(count)
    return sorted(order[: max(1, round(count * share / 100))].tolist())


def linked(data: Any, indices: Iterable[int], folder: Path) -> Path:
    """A folder with links to the given images, without their annotations."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in (data[i].path for i in indices):
        if not (folder / path.name).exists():
            (folder / path.name).symlink_to(path.resolve())
    return folder


def plain(data: Any, seed: int) -> tuple[Any, Any]:
    """The small preset with default settings, trained like torchvision's reference script.

    Same network, optimizer, batch and precision as ours. Uncropped images at their original scale,
    with random horizontal flips as the only augmentation; the preset's anchors and 300 detections;
    AdamW with 5e-4 and cosine decay; the last weights.
    """
    import maskrcnn as mr

    augment = mr.AugmentConfig(flip_horizontal=0.5, scale=(1.0, 1.0))
    return mr.maskrcnn_r18_small(data.categories), mr.TrainConfig(
        ema=0.0, augment=augment, dtype=precision(), seed=seed
    )


def ours(data: Any, seed: int, settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The recipe that `maskrcnn train` chooses, with `settings` overriding one part."""
    import maskrcnn as mr

    fixed = {"seed": seed, "dtype": precision(), **settings}
    recipe = mr.choose_recipe(data, max_time=60.0, memory=8.0, device="cpu", settings=fixed)
    print(recipe, flush=True)
    return recipe.model, recipe.training


def precision() -> str:
    import torch

    from maskrcnn.kernels.precision import computes_bfloat16

    return "bfloat16" if computes_bfloat16(torch.device("cpu")) else "float32"


def last_line(metrics: Path) -> str:
    """Steps and CPU seconds of a run, as JSON."""
    with metrics.open() as file:
        row = list(csv.DictReader(file))[-1]
    return json.dumps(
        {
            "steps": int(float(row["step"])),
            "epochs": round(float(row["epoch"]), 1),
            "cpu seconds": round(float(row["time"]), 1),
        }
    )


def lines(path: Path, minutes: float) -> list[dict[str, Any]]:
    """The finished runs with this time budget."""
    return [line for line in read_lines(path) if line["minutes"] == minutes]


# The report


def report(runs: Sequence[Mapping[str, Any]], write: bool) -> None:
    """Prints the tables; with `write`, also updates the tables and the chart of the page."""
    if not runs:
        raise SystemExit("no finished runs")

    text = "\n\n".join((table_of_shares(runs), table_of_parts(runs)))
    print(text)

    if write:
        chart = PAGE.parent / "images" / "small_data.svg"
        panels = {
            f"mask {kind}, mean of the seeds": (
                "percent of the images",
                curves(runs, f"mask {kind}"),
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


def curves(runs: Sequence[Mapping[str, Any]], number: str) -> dict[str, list[tuple[float, float]]]:
    def points(recipe: str) -> list[tuple[float, float]]:
        shares = [(share, groups(runs, recipe=recipe, share=share, without="")) for share in SHARES]
        return [
            (share, statistics.mean(line[number] for line in selected))
            for share, selected in shares
            if selected
        ]

    return {recipe: curve for recipe in ("plain", "ours") if (curve := points(recipe))}


def table_of_shares(runs: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        "| images | recipe | seeds | mask AP | AP50 | AP75 | box AP | steps | CPU seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]

    for share in SHARES:
        for recipe in NAMES:
            if selected := groups(runs, recipe=recipe, share=share, without=""):
                numbers = [
                    spread(selected, name)
                    for name in ("mask AP", "mask AP50", "mask AP75", "box AP")
                ]
                other = [
                    f"{statistics.mean(line[name] for line in selected):.0f}"
                    for name in ("steps", "cpu seconds")
                ]
                rows.append(
                    f"| {share} % ({selected[0]['images']}) | {NAMES[recipe]} | {len(selected)} | {' | '.join((*numbers, *other))} |"
                )
    return "\n".join(rows)


def table_of_parts(runs: Sequence[Mapping[str, Any]]) -> str:
    """Ours at the smallest share without each part; changes are relative to the full recipe with
    the same seed.
    """
    whole = {
        line["seed"]: line for line in groups(runs, recipe="ours", share=SHARES[0], without="")
    }
    rows = [
        f"| ours at {SHARES[0]} % | seeds | mask AP | AP50 | change of AP | of AP50 |",
        "|---|---|---|---|---|---|",
    ]

    for part in ("", *WITHOUT):
        selected = [
            line
            for line in groups(runs, recipe="ours", share=SHARES[0], without=part)
            if line["seed"] in whole
        ]
        if selected:
            changes = [
                statistics.mean(line[n] - whole[line["seed"]][n] for line in selected)
                for n in ("mask AP", "mask AP50")
            ]
            cells = " | ".join(f"{change:+.3f}" if part else "" for change in changes)
            name = f"without {part}" if part else "**whole**"
            rows.append(
                f"| {name} | {len(selected)} | {spread(selected, 'mask AP')} | {spread(selected, 'mask AP50')} | {cells} |"
            )
    return "\n".join(rows)


def spread(runs: Sequence[Mapping[str, Any]], number: str) -> str:
    """Mean; with several values also minimum and maximum."""
    values = [line[number] for line in runs]
    return f"{statistics.mean(values):.3f}" + (
        f" ({min(values):.3f}..{max(values):.3f})" if len(values) > 1 else ""
    )
