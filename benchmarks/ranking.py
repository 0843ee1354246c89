"""Does `rank` put unfamiliar objects first? `python -m benchmarks.ranking` (half a minute).

Trains a tiny model on red rectangles, then ranks 30 images, half of which show an ellipse in
another color instead. Prints the ranks of these; with random ranks, half of the first 15 images
would show ellipses.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from maskrcnn.active_learning.rank import rank_images
from maskrcnn.annotations.coco_dataset import CocoDataset
from maskrcnn.config import ModelConfig, TrainConfig
from maskrcnn.presets import maskrcnn_r18_small
from maskrcnn.training.fit import train

SIDE = 64


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        data = draw(folder / "data", 16, 3 * given.seed, strange=False)
        draw(folder / "pool", 15, 3 * given.seed + 1, strange=False)
        draw(folder / "pool", 15, 3 * given.seed + 2, strange=True)
        config = TrainConfig(
            steps=given.steps,
            learning_rate=3e-3,
            warmup=4,
            ema=0.9,
            tensorboard=False,
            seed=given.seed,
        )
        model = train(tiny(data), data, config=config, out=folder / "run", device="cpu").model
        ranks = sorted(
            one.rank
            for one in rank_images(model, folder / "pool")
            if one.file_name.startswith("strange")
        )
    print(
        f"ranks of the unfamiliar kind: {ranks}; {sum(rank <= 15 for rank in ranks)} of the first 15"
    )


def draw(folder: Path, count: int, seed: int, *, strange: bool) -> CocoDataset:
    """Images of one object each: a red rectangle, or an ellipse in another color."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    images = []
    annotations = []

    for i in range(count):
        image = Image.fromarray(
            (90 + random.normal(0, 8, (SIDE, SIDE, 3))).clip(0, 255).astype(np.uint8)
        )
        (w, h), (x, y) = (
            (int(v) for v in random.integers(14, 24, 2)),
            (int(v) for v in random.integers(2, 38, 2)),
        )
        corners = [x, y, x + w - 1, y + h - 1]
        pen = ImageDraw.Draw(image)
        pen.ellipse(corners, fill=(200, 140, 130)) if strange else pen.rectangle(
            corners, fill=(220, 90, 60)
        )

        name = f"{'strange' if strange else 'known'}{i}.png"
        image.save(folder / name)
        images.append({"id": i + 1, "file_name": name, "height": SIDE, "width": SIDE})
        polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
        annotations.append(
            {
                "id": i + 1,
                "image_id": i + 1,
                "category_id": 1,
                "bbox": [x, y, w, h],
                "area": w * h,
                "segmentation": [polygon],
            }
        )

    return CocoDataset(
        {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "card"}]},
        folder,
    )


def tiny(data: CocoDataset) -> ModelConfig:
    """Config of a network with few channels."""
    config = maskrcnn_r18_small(data.categories)
    assert config.mask is not None
    few = {"pre_nms_train": 60, "post_nms_train": 30, "post_nms_test": 20, "samples": 32}
    return replace(
        config,
        trunk=replace(config.trunk, stem_channels=8, res2_channels=8),
        neck=replace(config.neck, channels=16),
        rpn=replace(config.rpn, sizes=((8,), (16,), (32,), (64,), (128,)), convs=(16,), **few),
        box=replace(config.box, fcs=(32,), samples=16, max_detections=10),
        mask=replace(config.mask, convs=(8,), upsample=(8,), max_positives=4, truth_size=28),
    )


if __name__ == "__main__":
    main()
