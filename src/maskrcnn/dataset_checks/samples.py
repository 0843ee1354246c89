"""Images for the report: annotated ones as they are, and what is wrong with some, drawn in red.

In: a data set and problems. Out: JPEG images as data URLs, for a page in one file.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..annotations.annotation import Annotation, is_number, mask_bounds
from ..annotations.coco_dataset import CocoDataset
from ..augmentation.moved_masks import mask_of
from ..config import Category
from ..draw import draw_instances
from ..images.read import ImageError, read_image
from ..instances import Instances

SIDE = 420
"""Pixels of the longer side of a drawn image."""
_GRID = 64  # cells a side of a mask, as it is drawn
_AROUND, _LEAST = (
    3.0,
    96.0,
)  # a close-up shows this many times the object, and at least so many pixels
_RED = (255, 40, 60)


def truth_of(
    annotations: Sequence[Annotation], categories: tuple[Category, ...], size: tuple[int, int]
) -> Instances:
    """Annotated objects in the form of an answer with certainty 1, so that they are drawn alike; objects of keypoints alone get the box around these."""
    shown = [(a, _box(a)) for a in annotations if not a.ignore]
    num_keypoints = max((len(c.keypoints) for c in categories), default=0)
    keypoints = np.zeros((len(shown), num_keypoints, 3), np.float32)
    grids = np.zeros((len(shown), _GRID, _GRID), np.float32)
    for n, (a, box) in enumerate(shown):
        if a.keypoints is not None:
            keypoints[n, : len(a.keypoints)] = a.keypoints * (1, 1, 0.5)
        mask = mask_of(a)
        if mask is not None and box[2] > box[0] and box[3] > box[1]:
            grids[n] = mask.coverage(np.eye(3), box, _GRID) / 255
    return Instances(
        size=size,
        boxes=torch.tensor([box for _, box in shown], dtype=torch.float32).reshape(-1, 4),
        scores=torch.ones(len(shown)),
        labels=torch.tensor([a.label for a, _ in shown], dtype=torch.int64),
        categories=categories,
        mask_grids=torch.from_numpy(grids) if any(a.polygons or a.rle for a, _ in shown) else None,
        keypoints=torch.from_numpy(keypoints) if num_keypoints else None,
    )


def drawn_image(data: CocoDataset, index: int) -> str | None:
    """An image of the data set with all that is annotated; None if it cannot be read."""
    drawn = _drawn(data, index)
    return None if drawn is None else _data_url(drawn[0])


def close_up(
    data: CocoDataset, index: int, box: tuple[float, float, float, float] | None
) -> str | None:
    """What is annotated around a box (xyxy), the box in red; the whole image without one."""
    found = _drawn(data, index, boxes=box is None)
    if found is None:
        return None
    image, factor = found
    height, width = data.size(index)
    x0, y0, x1, y1 = (
        float(np.clip(v, 0, limit))
        for v, limit in zip(box or (0, 0, 0, 0), (width, height) * 2, strict=True)
    )
    if x0 >= x1 and y0 >= y1:  # none, or outside
        return _data_url(image)
    half = max(_AROUND * max(x1 - x0, y1 - y0), _LEAST) / 2
    left, top = max(0.0, (x0 + x1) / 2 - half), max(0.0, (y0 + y1) / 2 - half)
    right, bottom = min(width, left + 2 * half), min(height, top + 2 * half)
    part = image.crop(
        (round(left * factor), round(top * factor), round(right * factor), round(bottom * factor))
    )
    scale = SIDE / max(part.size)
    part = part.resize(
        (max(1, round(part.width * scale)), max(1, round(part.height * scale))),
        Image.Resampling.BICUBIC,
    )
    pen, to_part = ImageDraw.Draw(part), factor * scale
    corners = [
        (x0 - left) * to_part - 3,
        (y0 - top) * to_part - 3,
        (x1 - left) * to_part + 3,
        (y1 - top) * to_part + 3,
    ]
    for grow, ink in ((1, (0, 0, 0)), (0, _RED)):
        pen.rectangle(
            [corners[0] - grow, corners[1] - grow, corners[2] + grow, corners[3] + grow],
            outline=ink,
            width=3 + grow,
        )
    return _data_url(part)


def raw_box(raw: Any) -> tuple[float, float, float, float] | None:
    """The annotated box (xyxy) of an entry that may be broken; None without four numbers."""
    box = raw.get("bbox") if isinstance(raw, dict) else None
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return None
    x0, x1 = sorted((box[0], box[0] + box[2]))
    y0, y1 = sorted((box[1], box[1] + box[3]))
    return float(x0), float(y0), float(x1), float(y1)


def _drawn(data: CocoDataset, index: int, boxes: bool = True) -> tuple[Image.Image, float] | None:
    """The image with its truth, and how much it was enlarged; without boxes also without names."""
    record = data[index]
    try:
        pixels = read_image(record.path, data.intensity_range())
    except ImageError:
        return None
    truth = truth_of(record.annotations, data.categories, (record.height, record.width))
    image = draw_instances(
        truth, pixels, boxes=boxes, names=boxes and len(data.categories) > 1, scores=False
    )
    return image, image.width / record.width


def _box(a: Annotation) -> tuple[float, float, float, float]:
    box = a.box or mask_bounds(a)
    if box is None and a.keypoints is not None:
        seen = a.keypoints[a.keypoints[:, 2] > 0, :2]
        box = (*seen.min(axis=0).tolist(), *seen.max(axis=0).tolist())
    return box or (0.0, 0.0, 0.0, 0.0)


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
