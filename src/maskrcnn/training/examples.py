"""The first augmented training images with their truth drawn on them: `draw_examples(data, model,
config)`.

In: annotated images, a model's configuration, a `TrainConfig`. Out: a PIL image, which every run
folder also has as examples.png.

Look at it before training for hours. It shows what no check can detect: shifted masks, left
and right exchanged, objects too small to learn, augmentation that is too strong. Ignore regions are
crossed out in gray.
"""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..config import ModelConfig, TrainConfig
from ..draw.overlay import draw_instances
from ..draw.points import draw_points
from ..instances import Instances
from .sampler import training_plan

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset
    from ..augmentation.own_augmentation import Augmentation
    from ..augmentation.training_set import Example

TILE, GAP = 384, 4  # pixels
_GRAY = (190, 190, 190)


def draw_examples(
    data: CocoDataset,
    model: ModelConfig,
    config: TrainConfig = TrainConfig(),  # noqa: B008 (frozen)
    count: int = 8,
    *,
    augmentation: Augmentation | None = None,
) -> Image.Image:
    """Draws the first augmented training images with the boxes, masks and keypoints of their truth.

    Args:
        data: annotated training images.
        model: gives the resize rule and the heads.
        config: settings of the training. A single-process run with it starts with exactly these
            images.
        count: number of images, in rows of four.
        augmentation: random changes of your own, as for `train`.

    Returns:
        A sheet of tiles whose longer side has 384 px.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> data = mr.load_dataset(write_scenes("scenes", 4, size=64))
        >>> mr.draw_examples(data, mr.maskrcnn_r18_small(data.categories), count=4).mode
        'RGB'
    """
    from ..augmentation.training_set import TrainingSet

    images = TrainingSet(data, model, config.augment, augmentation=augmentation)
    batches = training_plan(data, config).batches(stop=-(-count // config.batch_size))
    chosen = list(chain.from_iterable(batches))[:count]

    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    size = (columns * (TILE + GAP) - GAP, rows * (TILE + GAP) - GAP)
    sheet = Image.new("RGB", size, (255, 255, 255))
    for position, (index, seed) in enumerate(chosen):
        tile = draw_example(images.example(index, seed), model)
        row, column = divmod(position, columns)
        sheet.paste(tile, (column * (TILE + GAP), row * (TILE + GAP)))
    return sheet


def draw_example(example: Example, model: ModelConfig) -> Image.Image:
    """Draws one image with its truth, both resized to a tile first, so that lines stay thin."""
    from ..model.point_losses import has_points

    truth = example.truth
    pixels = example.image.permute(1, 2, 0).clamp(0, 255).to(torch.uint8).numpy()
    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = TILE / max(image.size)
    width, height = (max(1, round(side * factor)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)

    keypoints = None
    if model.keypoint is not None:
        keypoints = _own_keypoints(truth.keypoints[0], truth.labels[0], model)
        keypoints[..., :2] *= factor
    objects = torch.nonzero(~truth.ignore[0]).flatten()
    instances = Instances(
        size=(height, width),
        boxes=truth.boxes[0] * factor,
        scores=torch.ones(len(truth.boxes[0])),
        labels=truth.labels[0],
        categories=model.categories,
        mask_grids=None if model.mask is None else truth.masks[0].float() / 255,
        keypoints=keypoints,
    )[objects]
    drawn = draw_instances(instances, image, names=False)

    if truth.points is not None:
        points = truth.points[0][has_points(truth)[0]].flatten(0, 1)
        labeled = points[points[:, 2] > 0].tolist()
        draw_points(drawn, ((x * factor, y * factor, label > 1.5) for x, y, label in labeled))

    # Ignore regions are crossed out.
    pen = ImageDraw.Draw(drawn)
    for x0, y0, x1, y1 in (truth.boxes[0][truth.ignore[0]] * factor).round().tolist():
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), None, _GRAY)
        pen.line([(x0, y0), (x1 - 1, y1 - 1)], fill=_GRAY)
        pen.line([(x0, y1 - 1), (x1 - 1, y0)], fill=_GRAY)
    return drawn


def _own_keypoints(channels: Tensor, labels: Tensor, model: ModelConfig) -> Tensor:
    """Keypoints [n, J, 3] at their heat-map channels, moved so that each object's own come first.

    The last number becomes 1 for labeled keypoints, else 0.
    """
    keypoints = torch.zeros_like(channels)
    for row, (points, label) in enumerate(zip(channels, labels.tolist(), strict=True)):
        start, count = model.keypoint_slices[label]
        keypoints[row, :count] = points[start : start + count]
    return torch.cat([keypoints[..., :2], (keypoints[..., 2:] > 0).to(keypoints.dtype)], dim=-1)
