"""Speed-up from `runtime.keep_memory`, which the commands use: predictions and training steps with
and without it.

The setting affects the whole process, so each measurement runs in a new process. A round runs one
process of each kind.

"limit s" is the time by default less the time that its new pages take: the system clears each page
before its first use, so the bytes of all new pages are written once more than needed. Nothing that
only keeps memory can gain more.
"""

from __future__ import annotations

import itertools
import json
import mmap
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from .limits import dtypes, left_out
from .timing import PeakMemory, Times, in_new_process, spread

# Cases: preset, side of the image or of the four crops of a batch, precision.
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
    cases = [case for case in cases[-3 if quick else 0 :] if case[-1] in dtypes()]
    page = json.loads(in_new_process("-m", __name__, "page"))
    rows = [compared(case, 2 if quick else 3, page) for case in cases]
    return {"rows": rows, "microseconds of a new page": page * 1e6, **left_out()}


def compared(case: tuple[str, str, int, str], rounds: int, page: float) -> dict[str, Any]:
    """Table row: median times of each process, by default and with memory kept.

    Args:
        case: what to run.
        rounds: processes of each kind.
        page: seconds that a new page takes.
    """
    measurements: dict[str, list[dict[str, float]]] = {"default": [], "kept": []}
    for _ in range(rounds):
        for mode, runs in measurements.items():
            runs.append(json.loads(in_new_process("-m", __name__, mode, *case)))

    times = Times({mode: [one["s"] for one in runs] for mode, runs in measurements.items()})
    peaks = {
        mode: statistics.median(one["MB"] for one in runs) for mode, runs in measurements.items()
    }
    pages = {
        mode: statistics.median(one["pages"] for one in runs) for mode, runs in measurements.items()
    }
    limit = without_new_pages(times.median("default"), pages["default"], page)
    what, preset, side, precision = case
    return {
        "what": f"{what}, {preset}, {side} px, {precision}",
        "default, s": spread(times.seconds["default"]),
        "kept, s": spread(times.seconds["kept"]),
        "times as fast": spread(times.ratios("default", "kept")),
        "new pages": f"{pages['default']:.0f}, kept {pages['kept']:.0f}",
        "limit s": limit,
        "times its limit": times.median("kept") / limit,
        "peak MB": f"{peaks['default']:.0f}, kept {peaks['kept']:.0f}",
    }


def without_new_pages(seconds: float, pages: float, page: float) -> float:
    """Seconds of the same work in memory that the process has already.

    At least a tenth: where pages cost nearly everything, their own time is not known better.
    """
    return max(seconds - pages * page, 0.1 * seconds)


def page_seconds(megabytes: int = 256) -> float:
    """Processor seconds that a page takes at its first use more than at its second, best of five."""
    best = float("inf")
    for _ in range(5):
        with mmap.mmap(-1, megabytes << 20) as memory:
            seconds = []
            for _ in range(2):
                start = time.process_time()
                for i in range(0, len(memory), mmap.PAGESIZE):
                    memory[i] = 1
                seconds.append(time.process_time() - start)
            best = min(best, (seconds[0] - seconds[1]) * mmap.PAGESIZE / len(memory))
    return max(best, 0.0)


def prediction(preset: str, side: int, precision: str) -> Callable[[], object]:
    """Returns a function that predicts one image with random weights."""
    import maskrcnn as mr

    from .models import random_image

    model = mr.optimize_for_inference(mr.MaskRCNN.from_config(getattr(mr, preset)()), precision)  # ty: ignore[invalid-argument-type]
    image = random_image(side, side * 4 // 3)
    return lambda: mr.predict(model, image)


def training_step(preset: str, side: int, precision: str, folder: Path) -> Callable[[], object]:
    """Returns a function that trains one step on a fixed batch of four images."""
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


def _measure(mode: str, what: str, preset: str, side: int, precision: str) -> None:
    """Prints the median time of the repetitions and the peak memory of all of them."""
    import torch

    from maskrcnn.runtime.keep_memory import keep_memory

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        if mode == "kept" and not keep_memory():
            raise SystemExit("keep_memory is not supported on this platform")
        work = (
            prediction(preset, side, precision)
            if what == "prediction"
            else training_step(preset, side, precision, Path(folder))
        )

        seconds = []
        pages = []
        with PeakMemory() as peak:
            for _ in range(10):
                before = _pages()
                start = time.perf_counter()
                work()
                seconds.append(time.perf_counter() - start)
                pages.append(_pages() - before)

    result = {
        "s": statistics.median(seconds[3:]),
        "MB": peak.bytes / 1e6,
        "pages": statistics.median(pages[3:]),
    }
    print(json.dumps(result))


def _pages() -> int:
    """How many pages this process has touched for the first time so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    if sys.argv[1] == "page":
        print(json.dumps(page_seconds()))
    else:
        _measure(*sys.argv[1:4], int(sys.argv[4]), sys.argv[5])
