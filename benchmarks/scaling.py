"""Item 2, how time and memory grow: with the batch, with the picture, with the number of objects.

Throughput is that of `mr.predict` on arrays of pixels, masks left as grids. Memory is what the process held at most above what it held with the
model loaded and nothing predicted yet, each case in a process of its own.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import maskrcnn as mr

from .charts import save_charts
from .models import as_theirs, ours_of, picture, torchvision_model, with_detections
from .timing import PeakMemory, in_new_process, in_turns

BATCHES, SIDES, OBJECTS = (1, 2, 4, 8), (256, 512, 800, 1333), (1, 10, 100, 300)
SIZE, HUGE = (800, 1066), (4000, 6000)
CHARTS = Path(__file__).parents[1] / "docs/images/scaling.svg"


def run(quick: bool) -> dict[str, Any]:
    batches, sides, objects, rounds = ((1, 2), (256, 512), (1, 10), 1) if quick else (BATCHES, SIDES, OBJECTS, 2)
    theirs = torchvision_model(detections=max(objects))
    model = ours_of(theirs)
    with tempfile.TemporaryDirectory() as folder:
        saved = Path(folder) / "model.safetensors"
        mr.save(model, saved)
        torch.save(theirs.state_dict(), saved.with_suffix(".pth"))
        rows = throughput(with_detections(model, 100), batches, sides, rounds) + against_objects(theirs, model, objects, rounds)
        cases = [(form, 800, batch, 100) for form in ("float32", "bfloat16") for batch in batches]
        cases += [("torchvision", 800, batch, 100) for batch in batches]
        cases += [(form, 800, 1, count) for form in ("float32", "torchvision") for count in objects if count != 100]
        rows += [memory(saved, *case) for case in cases]
        huge = json.loads(in_new_process("-m", __name__, saved, "float32", *HUGE, 1, 300))
    result = {"rows": rows, f"peak MB above the model, 300 objects on {HUGE[0]} x {HUGE[1]}": huge["MB"], "of it objects": huge["objects"]}
    if not quick:
        draw(rows)
    return result


def throughput(model: mr.MaskRCNN, batches: tuple[int, ...], sides: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Pictures a second by batch and side, float32 and bfloat16 in turns."""
    forms = {"float32": mr.optimize(model), "bfloat16": mr.optimize(model, dtype="bfloat16")}
    rows = []
    for side in sides:
        work = {}
        for batch in batches:
            images = [picture(side, side, seed) for seed in range(batch)]
            for name, form in forms.items():
                with_side = _with_side(form, side)
                work[f"{name} {batch}"] = partial(lambda m, i: list(mr.predict(m, i, batch_size=len(i))), with_side, images)
        times = in_turns(work, rounds)
        for what, seconds in times.seconds.items():
            name, batch = what.split()
            rows.append({"what": name, "side": side, "batch": int(batch), "objects": 100, "images/s": int(batch) / min(seconds), "s": min(seconds)})
    return rows


def against_objects(theirs: torch.nn.Module, model: mr.MaskRCNN, objects: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Seconds by the number of objects, masks drawn into the picture: dense by torchvision, as RLE by ours."""
    image = picture(*SIZE, seed=1)
    rows = []

    def by_torchvision(count: int) -> None:
        theirs.roi_heads.detections_per_img = count
        with torch.no_grad():
            theirs([as_theirs(image)])

    for count in objects:
        ours = mr.optimize(with_detections(model, count))
        work = {"torchvision": partial(by_torchvision, count), "float32": partial(lambda m: mr.predict(m, image).masks().rle(), ours)}
        for name, seconds in in_turns(work, rounds).seconds.items():
            rows.append({"what": name, "side": 800, "batch": 1, "objects": count, "s with masks": min(seconds)})
    return rows


def memory(saved: Path, form: str, side: int, batch: int, objects: int) -> dict[str, Any]:
    """Peak memory above the model of one call, in a process of its own."""
    found = json.loads(in_new_process("-m", __name__, saved, form, side, side, batch, objects))
    return {"what": form, "side": side, "batch": batch, "objects": objects, "peak MB": found["MB"]}


def draw(rows: list[dict[str, Any]]) -> None:
    """Draws the curves of the page on performance."""

    def curves(x: str, y: str, **fixed: Any) -> dict[str, list[tuple[float, float]]]:
        names = dict.fromkeys(row["what"] for row in rows)
        found = {n: [(r[x], r[y]) for r in rows if r["what"] == n and y in r and all(r[k] == v for k, v in fixed.items())] for n in names}
        return {name: sorted(set(points)) for name, points in found.items() if len(set(points)) > 1}

    panels = {
        "images a second, by batch (800 x 800)": ("batch", curves("batch", "images/s", side=800)),
        "seconds an image, by side (batch 1)": ("side", curves("side", "s", batch=1, objects=100)),
        "seconds, by objects (800 x 1066)": ("objects", curves("objects", "s with masks")),
        "peak MB above the model, by batch (800 x 800)": ("batch", curves("batch", "peak MB", side=800, objects=100)),
        "peak MB above the model, by objects": ("objects", curves("objects", "peak MB", batch=1)),
    }
    save_charts(CHARTS, panels)


def _with_side(model: mr.MaskRCNN, side: int) -> mr.MaskRCNN:
    """The same network that scales a picture's shorter side to `side`."""
    other = copy.copy(model)
    other.config = replace(model.config, input=replace(model.config.input, min_size=side, max_size=2 * side))
    return other


def _measure(saved: str, form: str, height: int, width: int, batch: int, objects: int) -> dict[str, Any]:
    """Memory of one call in this process."""
    images = [picture(height, width, seed) for seed in range(batch)]
    if form == "torchvision":
        from torchvision.models import detection

        theirs = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, box_detections_per_img=objects).eval()
        theirs.load_state_dict(torch.load(Path(saved).with_suffix(".pth")))
        with torch.no_grad(), PeakMemory() as peak:
            found = len(theirs([as_theirs(image) for image in images])[0]["boxes"])
    else:
        model = mr.optimize(with_detections(mr.load(saved), objects), dtype=form)  # ty: ignore[invalid-argument-type]
        with PeakMemory() as peak:
            answers = list(mr.predict(model, images, batch_size=batch))
            found = len(answers[0])
            for answer in answers:
                answer.masks().rle()
    return {"MB": peak.bytes / 1e6, "objects": found}


if __name__ == "__main__":
    words = sys.argv[1:]
    print(json.dumps(_measure(words[0], words[1], *map(int, words[2:]))))
