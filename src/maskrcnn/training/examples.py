"""What a training sees: `draw_examples(data, model, config)`, a sheet of its first images with the truth drawn on them.

In: annotated images, a model's configuration, a `TrainConfig`. Out: a PIL image, also written as examples.png into every run folder.

A look at it before the first hour of training finds what no check can: masks that are shifted, left and right exchanged, objects too small to be
learnt, an augmentation that is too strong. Regions to ignore are crossed out in gray.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..config import ModelConfig, TrainConfig
from ..draw import draw_instances
from ..instances import Instances
from .sampler import training_plan

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.training_set import Example

TILE, GAP = 384, 4  # pixels
_GRAY = (190, 190, 190)


def draw_examples(
    data: CocoDataset,
    model: ModelConfig,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    count: int = 8,
) -> Image.Image:
    """The first images of a training as the model sees them, augmented, with boxes, masks and keypoints of the truth.

    Args:
        data: images to learn from.
        model: says how images are seen.
        config: of the training; a training of one process with it begins with these very images.
        count: images on the sheet, in rows of four.
    """
    from ..augmentation.training_set import TrainingSet

    images = TrainingSet(data, model, config.augment)
    plan = training_plan(data, config)
    seen = list(chain.from_iterable(plan.batches(stop=-(-count // config.batch_size))))[:count]
    columns = min(4, len(seen))
    rows = -(-len(seen) // columns)
    sheet = Image.new(
        "RGB", (columns * (TILE + GAP) - GAP, rows * (TILE + GAP) - GAP), (255, 255, 255)
    )
    for place, (index, seed) in enumerate(seen):
        tile = draw_example(images.example(index, seed), model)
        tile.thumbnail((TILE, TILE))
        row, column = divmod(place, columns)
        sheet.paste(tile, (column * (TILE + GAP), row * (TILE + GAP)))
    return sheet


def draw_example(example: Example, model: ModelConfig) -> Image.Image:
    """One image with its truth."""
    truth = example.truth
    pixels = np.ascontiguousarray(
        example.image.permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
    )
    objects = torch.nonzero(~truth.ignore[0]).flatten()
    instances = Instances(
        size=(pixels.shape[0], pixels.shape[1]),
        boxes=truth.boxes[0],
        scores=torch.ones(len(truth.boxes[0])),
        labels=truth.labels[0],
        categories=model.categories,
        mask_grids=None if model.mask is None else truth.masks[0].float() / 255,
        keypoints=None
        if model.keypoint is None
        else _own_keypoints(truth.keypoints[0], truth.labels[0], model),
    )[objects]
    drawn = draw_instances(instances, pixels, names=False)
    factor, pen = drawn.width / pixels.shape[1], ImageDraw.Draw(drawn)
    for x0, y0, x1, y1 in (truth.boxes[0][truth.ignore[0]] * factor).round().tolist():
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_GRAY)
        pen.line([(x0, y0), (x1 - 1, y1 - 1)], fill=_GRAY)
        pen.line([(x0, y1 - 1), (x1 - 1, y0)], fill=_GRAY)
    return drawn


def _own_keypoints(channels: Tensor, labels: Tensor, model: ModelConfig) -> Tensor:
    """[n, J, 3] at the heat-map channels as each object's own keypoints first, with 1 for those that are labeled."""
    keypoints = torch.zeros_like(channels)
    for row, (seen, label) in enumerate(zip(channels, labels.tolist(), strict=True)):
        start, count = model.keypoint_slices[label]
        keypoints[row, :count] = seen[start : start + count]
    return torch.cat([keypoints[..., :2], (keypoints[..., 2:] > 0).to(keypoints.dtype)], dim=-1)
