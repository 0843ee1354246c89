"""Latency of one 800 x 1066 image with 1000 proposals, 100 detections and full-size masks; the same
weights in torchvision's model and ours.

torchvision runs as its users call it: `model([image])` without gradients, which pastes the masks.
Ours runs `mr.predict` on the pixel array and returns dense masks; RLE output is timed as well.
"limit s" is the time that the operations of the network take at the machine's best rate. bfloat16
is left out where the processor emulates it.

The bfloat16 predictions are not compared here: the scores of 1000 proposals of a random network
differ by less than bfloat16's rounding. docs/performance.md gives the cost of bfloat16 as average
precision of a trained model.
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

from .limits import Rates, dtypes, left_out, rates
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

    forms = {f"ours {dtype}": mr.optimize_for_inference(model, dtype=dtype) for dtype in dtypes()}

    work: dict[str, Callable[[], Any]] = {"torchvision": by_torchvision}
    work |= {
        name: lambda form=form: mr.predict(form, image).masks.dense()
        for name, form in forms.items()
    }
    parts = {"torchvision": of_torchvision(theirs)} | {
        name: of_ours(form) for name, form in forms.items()
    }
    encoded = {
        f"{name}, masks as RLE": lambda form=form: mr.predict(form, image).masks.rle()
        for name, form in forms.items()
    }

    before = rates()
    times = in_turns(work | encoded, rounds=1 if quick else 9)
    limit = {name: max(rate, before[name]) for name, rate in rates().items()}
    by_part, operations = part_times(work, parts, limit, model, image, rounds=1 if quick else 5)

    rows = times.rows("torchvision")
    for row in rows:
        row["limit s"] = operations / limit[rate_of(row["what"])] / 1e9
        row["times its limit"] = times.median(row["what"]) / row["limit s"]
    return {
        "rows": rows,
        "seconds by part": by_part,
        "our float32 predictions compared with torchvision's": [
            agreement(mr.predict(forms["ours float32"], image), by_torchvision())
        ],
        "operations of the network, GFLOP": operations / 1e9,
        "best rates of this machine": limit,
        **left_out(),
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
    """Returns one row per part (seconds of every model, limits of ours), and the operations of the
    whole network.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in work}
    moved: dict[str, dict[str, int]] = {}
    for _ in range(rounds):
        for name, function in work.items():
            with watched(parts[name]) as (spent, moved[name]):
                start = time.perf_counter()
                function()
                seconds[name].append({**spent, "whole": time.perf_counter() - start})

    operations, total = count_operations(model, image)
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

    return rows, total


def count_operations(model: mr.MaskRCNN, image: np.ndarray) -> tuple[dict[str, float], float]:
    """Floating-point operations of each part and of the whole network.

    Disables the oneDNN kernels, because PyTorch's counter supports standard operations only.
    """
    batch = mr.Batch.collate([torch.from_numpy(image).permute(2, 0, 1)])
    with (
        patch("maskrcnn.kernels.onednn._is_candidate", lambda x: False),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        with watched(of_ours(model), lambda: float(counter.get_total_flops())) as (spent, _):
            model(batch)
        return dict(spent), float(counter.get_total_flops())


def agreement(ours: mr.Instances, theirs: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Compares each of their detections with our best-overlapping one of the same class.

    The order is ignored, because scores may be equal. torchvision rounds boxes to whole pixels
    before it pastes masks, so a difference of a thousandth of a pixel can move a mask by one pixel.
    """
    iou = box_iou(theirs["boxes"], ours.boxes) * (theirs["labels"][:, None] == ours.labels + 1)
    best, partner = iou.max(dim=1)
    matched = best > 0.9
    partner = partner[matched]
    masks = ours.masks.dense()[partner]
    differing = masks ^ (theirs["masks"][matched, 0] > 0.5)

    return {
        "detections": f"{len(ours)} and {len(iou)}",
        "found again": int(matched.sum()),
        "largest box difference, px": (ours.boxes[partner] - theirs["boxes"][matched])
        .abs()
        .max()
        .item(),
        "largest score difference": (ours.scores[partner] - theirs["scores"][matched])
        .abs()
        .max()
        .item(),
        "mask pixels that differ, of a million": 1e6 * differing.sum().item() / masks.sum().item(),
    }
