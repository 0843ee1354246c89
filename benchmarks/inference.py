"""Latency: one 800 x 1066 image, 1000 proposals, 100 detections, masks in the image; the
same weights in torchvision's model and ours.

torchvision is called as its users call it: `model([image])` without gradients, which pastes its
masks. Ours is `mr.predict` and its dense masks, from the array of pixels; the RLE output is
timed as well. "limit s" is what the operations of the whole network take at the machine's best
rate.

The bfloat16 predictions are not compared here: 1000 random proposals of a random network are ordered by
differences smaller than bfloat16's rounding. What bfloat16 costs is measured on a trained model, as
average precision (docs/performance.md).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import box_iou

import maskrcnn as mr
from maskrcnn.model.optimize import computes_bfloat16

from .limits import Rates, rates
from .models import as_theirs, ours_of, random_image, torchvision_model
from .parts import Parts, of_ours, of_torchvision, watched
from .timing import in_turns

SIZE = (800, 1066)


def run(quick: bool) -> dict[str, Any]:
    theirs = torchvision_model()
    model = ours_of(theirs)
    image = random_image(*SIZE, seed=1)

    def by_torchvision() -> dict[str, torch.Tensor]:
        with torch.no_grad():
            return theirs([as_theirs(image)])[0]

    forms = {"ours float32": mr.optimize_for_inference(model)}
    if computes_bfloat16(torch.device("cpu")):
        forms["ours bfloat16"] = mr.optimize_for_inference(model, dtype="bfloat16")
    work: dict[str, Callable[[], Any]] = {"torchvision": by_torchvision}
    work |= {
        name: lambda form=form: mr.predict(form, image).masks().dense()
        for name, form in forms.items()
    }
    parts = {"torchvision": of_torchvision(theirs)} | {
        name: of_ours(form) for name, form in forms.items()
    }
    encoded = {
        f"{name}, masks as RLE": lambda form=form: mr.predict(form, image).masks().rle()
        for name, form in forms.items()
    }

    before = rates()
    times = in_turns(work | encoded, rounds=1 if quick else 9)
    limit = {name: max(rate, before[name]) for name, rate in rates().items()}
    by_part, operations = part_times(work, parts, limit, model, image, rounds=1 if quick else 5)
    rows = times.rows("torchvision")
    for row in rows:
        row["limit s"] = operations / limit[rate_of(row["what"])] / 1e9
    return {
        "rows": rows,
        "seconds by part": by_part,
        "our float32 predictions beside torchvision's": [
            agreement(mr.predict(forms["ours float32"], image), by_torchvision())
        ],
        "operations of the network, GFLOP": operations / 1e9,
        "best rates of this machine": limit,
        "seconds": times.seconds,
    }


def rate_of(what: str) -> str:
    return f"{'bfloat16' if 'bfloat16' in what else 'float32'} GFLOP/s"


def part_times(
    work: dict[str, Callable[[], Any]],
    parts: dict[str, Parts],
    limit: Rates,
    model: mr.MaskRCNN,
    image: np.ndarray,
    rounds: int,
) -> tuple[list[dict[str, Any]], float]:
    """A row for each part with its seconds on every side and the limit of ours; and the operations
    of the whole.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in work}
    moved: dict[str, dict[str, int]] = {}
    for _ in range(rounds):
        for name, function in work.items():
            with watched(parts[name]) as (spent, moved[name]):
                start = time.perf_counter()
                function()
                seconds[name].append({**spent, "whole": time.perf_counter() - start})
    operations, whole = count_operations(model, image)
    rows = []
    for part in (*parts["torchvision"], "whole"):
        row: dict[str, Any] = {"part": part}
        for name, rounds_of_it in seconds.items():
            row[name] = statistics.median(each.get(part, 0.0) for each in rounds_of_it)
            if name != "torchvision" and part != "whole":
                bound = (
                    max(
                        operations.get(part, 0.0) / limit[rate_of(name)],
                        moved[name][part] / limit["copy GB/s"],
                    )
                    / 1e9
                )
                row[f"its limit, {name.split()[-1]}"] = bound
        rows.append(row)
    return rows, whole


def count_operations(model: mr.MaskRCNN, image: np.ndarray) -> tuple[dict[str, float], float]:
    """Floating-point operations of each part, and of all, by way of PyTorch's plain operations,
    which its counter knows.
    """
    batch = mr.Batch.collate([torch.from_numpy(image).permute(2, 0, 1)])
    with (
        patch("maskrcnn.kernels.onednn.available", lambda: False),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        with watched(of_ours(model), lambda: float(counter.get_total_flops())) as (spent, _):
            model(batch)
        return dict(spent), float(counter.get_total_flops())


def agreement(ours: mr.Instances, theirs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Each of their detections beside ours of the same class that covers it best: order counts for
    nothing, for neighbors' scores may be equal.

    torchvision rounds boxes to whole pixels before it draws masks: a thousandth of a pixel may move
    a polygon by one.
    """
    iou = box_iou(theirs["boxes"], ours.boxes) * (theirs["labels"][:, None] == ours.labels + 1)
    best, partner = iou.max(dim=1)
    found = best > 0.9
    partner = partner[found]
    drawn = ours.masks().dense()[partner]
    differing = drawn ^ (theirs["masks"][found, 0] > 0.5)
    return {
        "detections": f"{len(ours)} and {len(iou)}",
        "found again": int(found.sum()),
        "largest box difference, px": (ours.boxes[partner] - theirs["boxes"][found])
        .abs()
        .max()
        .item(),
        "largest score difference": (ours.scores[partner] - theirs["scores"][found])
        .abs()
        .max()
        .item(),
        "mask pixels that differ, of a million": 1e6 * differing.sum().item() / drawn.sum().item(),
    }
