"""Scaling of time and memory with the batch size, the image size and the number of objects.

Throughput of ours is that of `mr.predict` on pixel arrays with 100 objects, without pasting the
masks; torchvision's model runs as its users call it. The fastest round counts. Memory is the peak
of the process minus its memory after loading the model and the images, before any prediction; each
case runs in its own process and includes the masks in full size, ours as RLE.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torchvision.models import detection

import maskrcnn as mr

from .charts import save_charts
from .inference import count_operations
from .limits import dtypes, left_out, rates
from .models import as_theirs, ours_of, random_image, torchvision_model, with_detections
from .timing import PeakMemory, in_new_process, in_turns

BATCHES, OBJECTS = (1, 2, 4, 8), (1, 10, 100, 300)
# Side of a square image -> number of timed rounds. Large images take long and vary little.
SIDES = {256: 3, 512: 2, 800: 1, 1333: 1}
SIZE, HUGE = (800, 1066), (4000, 6000)
CHARTS = Path(__file__).parents[1] / "docs/images/scaling.svg"

Rows = list[dict[str, Any]]
Dtype = Literal["float32", "bfloat16"]


def run(quick: bool) -> dict[str, Any]:
    batches, sides, objects = ((1,), {256: 1}, (10,)) if quick else (BATCHES, SIDES, OBJECTS)
    theirs = torchvision_model(detections=max(objects))
    model = ours_of(theirs)

    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.safetensors"
        mr.save(model, saved)
        torch.save(theirs.state_dict(), saved.with_suffix(".pth"))
        speed = throughput(theirs, with_detections(model, 100), dtypes(), batches, sides)
        many = against_objects(theirs, model, objects, rounds=1 if quick else 2)

        side = max(s for s in sides if s <= 800)
        space = [
            memory(saved, form, side, batch, 100)
            for form in ("torchvision", *dtypes())
            for batch in batches
        ]
        for row in many:
            row["peak MB"] = memory(saved, row["what"], SIZE, 1, row["objects"])["peak MB"]

        ours = [row for row in speed if "of the limit" in row]
        huge = memory(saved, "float32", HUGE, 1, 300)

    if not quick:
        draw(speed, many, space)
    return {
        "rows": pivot(speed, "images per second, by batch"),
        "peak memory above the model": space,
        "by the number of objects, full-size masks, 800 x 1066": many,
        f"300 objects on {HUGE[0]} x {HUGE[1]}, peak MB above the model": huge["peak MB"],
        "share of the machine's limit, by batch": pivot(ours, "share of the limit", "of the limit"),
        **left_out(),
        "measured": speed,
    }


def throughput(
    theirs: nn.Module,
    model: mr.MaskRCNN,
    dtypes: Sequence[Dtype],
    batches: Sequence[int],
    sides: Mapping[int, int],
) -> Rows:
    """Images per second by batch and side; torchvision only in cases that take seconds, not
    minutes.
    """
    forms = {dtype: mr.optimize_for_inference(model, dtype=dtype) for dtype in dtypes}
    theirs.roi_heads.detections_per_img = 100

    best = rates()
    rows = []
    for side, rounds in sides.items():
        theirs.transform.min_size, theirs.transform.max_size = (side,), 2 * side
        work: dict[tuple[str, int], Callable[[], object]] = {}
        for batch in batches:
            images = [random_image(side, side, seed) for seed in range(batch)]
            for name, form in forms.items():
                work[name, batch] = partial(predict_batch, _with_side(form, side), images)
            if batch == 1 or side <= 512:
                work["torchvision", batch] = partial(by_torchvision, theirs, images)

        times = in_turns(
            {f"{name} {batch}": function for (name, batch), function in work.items()},
            rounds,
            warm_up=side == min(sides),
        )
        _, operations = count_operations(model, random_image(side, side, 0))
        for name, batch in work:
            seconds = min(times.seconds[f"{name} {batch}"])
            rows.append(
                {
                    "what": name,
                    "side": side,
                    "batch": batch,
                    "images per second": batch / seconds,
                    "s per image": seconds / batch,
                }
            )
            if name in forms:
                limit = best[f"{name} GFLOP/s"] * 1e9 / operations  # images per second
                rows[-1]["of the limit"] = batch / seconds / limit
    return rows


def predict_batch(model: mr.MaskRCNN, images: list[np.ndarray]) -> None:
    for _ in mr.predict(model, images, batch_size=len(images)):
        pass


@torch.no_grad()
def by_torchvision(model: nn.Module, images: list[np.ndarray]) -> Any:
    return model([as_theirs(image) for image in images])


def against_objects(
    theirs: nn.Module, model: mr.MaskRCNN, objects: Sequence[int], rounds: int
) -> Rows:
    """Seconds by the number of objects, with masks in full size: dense from torchvision, RLE from
    ours.
    """
    image = random_image(*SIZE, seed=1)
    theirs.transform.min_size, theirs.transform.max_size = (SIZE[0],), 1333

    work: dict[tuple[str, int], Callable[[], object]] = {}
    for count in objects:
        ours = mr.optimize_for_inference(with_detections(model, count))
        work["torchvision", count] = partial(_limited, theirs, count, [image])
        work["float32", count] = partial(lambda form: mr.predict(form, image).masks.rle(), ours)

    times = in_turns(
        {f"{name} {count}": function for (name, count), function in work.items()}, rounds, warm_up=0
    )
    return [
        {"what": name, "objects": count, "s": min(times.seconds[f"{name} {count}"])}
        for name, count in work
    ]


def _limited(model: nn.Module, count: int, images: list[np.ndarray]) -> None:
    model.roi_heads.detections_per_img = count
    by_torchvision(model, images)


def pivot(rows: Rows, title: str, value: str = "images per second") -> Rows:
    """Table of a value with a row per model and side, and a column per batch size."""
    lines: dict[tuple[str, int], dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(
            (row["what"], row["side"]), {title: row["what"], "side": row["side"]}
        )
        line[str(row["batch"])] = row[value]
    return [lines[key] for key in sorted(lines, key=lambda key: (key[1], key[0]))]


def memory(
    saved: Path, form: str, size: int | tuple[int, int], batch: int, objects: int
) -> dict[str, Any]:
    """Peak memory above the model of one call, measured in a new process."""
    height, width = (size, size) if isinstance(size, int) else size
    peak = json.loads(in_new_process("-m", __name__, saved, form, height, width, batch, objects))
    return {"what": form, "side": height, "batch": batch, "objects": objects, "peak MB": peak}


def draw(speed: Rows, many: Rows, space: Rows) -> None:
    """Draws the charts of docs/performance.md."""

    def curves(rows: Rows, x: str, y: str, **fixed: int) -> dict[str, list[tuple[float, float]]]:
        chosen = [row for row in rows if all(row[k] == v for k, v in fixed.items())]
        return {
            name: [(r[x], r[y]) for r in chosen if r["what"] == name]
            for name in dict.fromkeys(row["what"] for row in chosen)
        }

    panels = {
        "images per second, by batch (256 x 256)": (
            "images in a batch",
            curves(speed, "batch", "images per second", side=256),
        ),
        "seconds per image, by side (batch 1)": (
            "side in pixels",
            curves(speed, "side", "s per image", batch=1),
        ),
        "peak MB above the model, by batch (800 x 800)": (
            "images in a batch",
            curves(space, "batch", "peak MB"),
        ),
        "seconds, by objects (800 x 1066)": (
            "objects, full-size masks",
            curves(many, "objects", "s"),
        ),
        "peak MB above the model, by objects (800 x 1066)": (
            "objects, full-size masks",
            curves(many, "objects", "peak MB"),
        ),
    }
    save_charts(CHARTS, panels)


def _with_side(model: mr.MaskRCNN, side: int) -> mr.MaskRCNN:
    """A copy of the model that resizes the shorter side of images to `side`."""
    other = copy.copy(model)
    other.config = replace(
        model.config, input=replace(model.config.input, min_size=side, max_size=2 * side)
    )
    return other


def _measure(saved: str, form: str, height: int, width: int, batch: int, objects: int) -> float:
    """Peak megabytes of one call in this process, including masks in full size."""
    images = [random_image(height, width, seed) for seed in range(batch)]
    if form == "torchvision":
        theirs = detection.maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, box_detections_per_img=objects
        ).eval()
        theirs.load_state_dict(torch.load(Path(saved).with_suffix(".pth")))
        with PeakMemory() as peak:
            by_torchvision(theirs, images)
    else:
        model = mr.optimize_for_inference(with_detections(mr.load(saved), objects), dtype=form)  # ty: ignore[invalid-argument-type]
        with PeakMemory() as peak:
            for instances in mr.predict(model, images, batch_size=batch):
                instances.masks.rle()

    return round(peak.bytes / 1e6)


if __name__ == "__main__":
    words = sys.argv[1:]
    print(_measure(words[0], words[1], *map(int, words[2:])))
