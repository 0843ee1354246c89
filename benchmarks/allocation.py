"""What keeping memory is worth (`runtime.keep_memory`, as the commands do): predictions and training
steps as they are, and with memory kept.

It changes a whole process, so each measurement is a process of its own, in turns; a round is one of
each.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .timing import PeakMemory, Times, in_new_process, spread

# What is computed: preset, side of the image or of the batch's four crops, precision.
PREDICTIONS = (
    ("maskrcnn_r50_fpn", 800, "float32"),
    ("maskrcnn_r50_fpn", 800, "bfloat16"),
    ("maskrcnn_r18_small", 256, "float32"),
)
STEPS = (("maskrcnn_r18_small", 256, "float32"), ("maskrcnn_r18_small", 256, "bfloat16"))


def run(quick: bool) -> dict[str, Any]:
    cases = [("prediction", *case) for case in PREDICTIONS] + [
        ("training step", *case) for case in STEPS
    ]
    rows = [compared(case, 2 if quick else 3) for case in cases[-3 if quick else 0 :]]
    return {"rows": rows}


def compared(case: tuple[str, str, int, str], rounds: int) -> dict[str, Any]:
    """A row: medians of a process's repetitions, as it is and with memory kept."""
    found: dict[str, list[dict[str, float]]] = {"as it is": [], "kept": []}
    for _ in range(rounds):
        for how, results in found.items():
            results.append(json.loads(in_new_process("-m", __name__, how, *case)))
    times = Times({how: [one["s"] for one in results] for how, results in found.items()})
    peaks = {how: statistics.median(one["MB"] for one in results) for how, results in found.items()}
    what, preset, side, precision = case
    return {
        "what": f"{what}, {preset}, {side} px, {precision}",
        "as it is, s": spread(times.seconds["as it is"]),
        "kept, s": spread(times.seconds["kept"]),
        "times as fast": spread(times.ratios("as it is", "kept")),
        "peak MB": f"{peaks['as it is']:.0f}, kept {peaks['kept']:.0f}",
    }


def prediction(preset: str, side: int, precision: str) -> Callable[[], object]:
    """Predicts the same image with random weights."""
    import maskrcnn as mr

    from .models import random_image

    model = mr.optimize_for_inference(mr.MaskRCNN.from_config(getattr(mr, preset)()), precision)  # ty: ignore[invalid-argument-type]
    image = random_image(side, side * 4 // 3)
    return lambda: mr.predict(model, image)


def training_step(preset: str, side: int, precision: str, folder: Path) -> Callable[[], object]:
    """Learns from a batch of four images again and again."""
    import maskrcnn as mr
    from maskrcnn.augmentation.training_set import TrainingSet, collate

    from .training import NAMES, RATES, mosaics, trainer

    data, model = (
        mosaics(folder / "images", side, 3, count=4),
        mr.MaskRCNN.from_config(getattr(mr, preset)(NAMES)),
    )
    images = TrainingSet(data, model.config, None)
    batch = collate([images.example(i, seed=i) for i in range(4)], model.config.input.size_divisor)
    training = trainer(model, data, replace(RATES, batch_size=4, dtype=precision), folder / "run")  # ty: ignore[invalid-argument-type]
    training.learner.batches = itertools.repeat(batch)
    return training.step


def _measure(how: str, what: str, preset: str, side: int, precision: str) -> None:
    """Prints the median time of repetitions, and the peak memory of all of them."""
    import torch

    from maskrcnn.runtime.keep_memory import keep_memory

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if how == "kept" and not keep_memory():
            raise SystemExit("memory cannot be kept here")
        work = (
            prediction(preset, side, precision)
            if what == "prediction"
            else training_step(preset, side, precision, Path(folder))
        )
        seconds = []
        with PeakMemory() as peak:
            for _ in range(10):
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
    print(json.dumps({"s": statistics.median(seconds[3:]), "MB": peak.bytes / 1e6}))


if __name__ == "__main__":
    _measure(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5])
