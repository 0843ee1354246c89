"""Measures the gain from unlabeled images: `python -m benchmarks.unlabeled --labeled 30
--unlabeled 600 --steps 300`.

Trains a small box and mask model from scratch on synthetic scenes with one category, three times on
the same labeled scenes: on these only; on these only, for about as long as the third training
takes; with unlabeled scenes. Prints average precision on held-out scenes, and seconds.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import AugmentConfig, TrainConfig
from maskrcnn.demo.demo_plan import demo_model, demo_training
from maskrcnn.synthetic.scenes import write_scenes
from maskrcnn.training.fit import train

# Extra time of a step with unlabeled images, relative to a step without: from the log of the third training.
UNLABELED_COST = 1.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labeled", type=int, default=30)
    parser.add_argument("--unlabeled", type=int, default=600)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--size", type=int, default=160, help="side of the scenes in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep the runs in this folder")
    given = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        compare(given, given.out or Path(scratch))


def compare(given: argparse.Namespace, out: Path) -> None:
    counts = {"labeled": given.labeled, "unlabeled": given.unlabeled, "val": given.val}
    files = {
        name: write_things(out / name, count, 10 * given.seed + i, given.size)
        for i, (name, count) in enumerate(counts.items())
    }
    data, validation = (
        CocoDataset(files[name], out / name / "images") for name in ("labeled", "val")
    )

    config = replace(
        demo_training(given.seed),
        max_time=None,
        steps=given.steps,
        batch_size=4,
        reference_batch=4,
        learning_rate=1.2e-3,
        evaluate_every=math.inf,
    )
    config = replace(
        config,
        augment=AugmentConfig(
            scale=(0.8, 1.2), brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05
        ),
    )

    model = demo_model()
    model = replace(
        model, categories=data.categories, keypoint=None, input=replace(model.input, scale=1.0)
    )

    images = out / "unlabeled" / "images"
    longer = round(given.steps * (1 + UNLABELED_COST * (1 - config.unlabeled.burn_in)))
    for name, steps, unlabeled in (
        ("labeled", given.steps, None),
        ("labeled, longer", longer, None),
        ("with unlabeled", given.steps, images),
    ):
        report(
            name,
            model,
            data,
            validation,
            replace(config, steps=steps),
            out / name.replace(", ", "-").replace(" ", "-"),
            unlabeled,
        )


def write_things(folder: Path, count: int, seed: int, size: int) -> Path:
    """Writes scenes with the single category "thing", which a model can learn in minutes."""
    path = write_scenes(folder, count, seed, size)
    content = json.loads(path.read_text())
    content["categories"] = [{"id": 1, "name": "thing"}]
    content["annotations"] = [
        {k: v for k, v in a.items() if k not in ("keypoints", "num_keypoints")} | {"category_id": 1}
        for a in content["annotations"]
    ]
    path.write_text(json.dumps(content))
    return path


def report(
    name: str,
    model: Any,
    data: CocoDataset,
    validation: CocoDataset,
    config: TrainConfig,
    out: Path,
    unlabeled: Path | None,
) -> None:
    start = time.monotonic()
    run = train(
        model, data, val=validation, config=config, out=out, progress=False, unlabeled=unlabeled
    )
    (numbers,) = run.history
    parts = "  ".join(
        f"{key.removeprefix('val/')} {value:.3f}"
        for key, value in numbers.items()
        if key.startswith("val/")
    )
    print(f"{name:16} {config.steps} steps, {time.monotonic() - start:.0f} s  {parts}", flush=True)


if __name__ == "__main__":
    main()
