"""Two minutes of training on drawn scenes on a GPU, and the AP that they reach: does training work
there?

`python -m benchmarks.gpu_training OUT.json [SECONDS]`: draws scenes, trains the demo's joint model
in bfloat16 from scratch for SECONDS (default 100), evaluates it on scenes that it has not seen, and
writes steps, images a second and AP to OUT.json. Without a GPU it trains for 10 seconds, to show
that it runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.demo.demo_plan import demo_model, demo_training
from maskrcnn.evaluation.evaluate import evaluate
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.training.fit import train
from maskrcnn.training.log import read_rows

from .timing import machine


def main(out: Path, seconds: float | None) -> None:
    """Trains and writes the report."""
    on_gpu = torch.cuda.is_available()
    if seconds is None:
        seconds = 100.0 if on_gpu else 10.0
    num_train, num_val = (600, 100) if on_gpu else (24, 8)

    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        parts = []
        for name, count, seed in (("train", num_train, 0), ("val", num_val, 1)):
            scenes = Path(folder) / name
            parts.append(CocoDataset(write_scenes(scenes, count, seed), scenes / "images"))
        drawn = time.perf_counter()

        config = replace(
            demo_training(), max_time=seconds, batch_size=16, workers=8 if on_gpu else 0
        )
        device = "cuda" if on_gpu else "cpu"
        run = train(demo_model(), parts[0], config=config, out=Path(folder) / "run", device=device)
        trained = time.perf_counter()

        evaluation = evaluate(run.model, parts[1])
        rows = read_rows(Path(folder) / "run" / "metrics.csv")

    steps = int(rows[-1]["step"])
    report = {
        "machine": machine(),
        "device": device,
        "scenes": num_train,
        "seconds": {"drawing": drawn - start, "training": trained - drawn},
        "steps": steps,
        "images a second": steps * config.batch_size / (trained - drawn),
        "first loss": rows[0]["loss"],
        "last loss": rows[-1]["loss"],
        "evaluation": evaluation.to_dict(),
    }
    out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(evaluation)
    print(f"{steps} steps in {trained - drawn:.0f} s, loss {rows[0]['loss']} -> {rows[-1]['loss']}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else None)
