"""Images for the report: annotated samples, and close-ups of problems with a red box.

In: a data set and problems. Out: JPEG images as data URLs, for a page in one file.
"""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image, ImageDraw

from ..annotations.annotation import BoxXYXY, is_number
from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import Json
from ..draw.overlay import draw_instances
from ..draw.points import draw_points
from ..images.read import ImageError, read_image
from ..truth_instances import truth_instances

SIDE = 420
"""Pixels of the longer side of a drawn image."""
_GRID = 64  # cells per side of a drawn mask
_AROUND = 3.0  # a close-up shows this multiple of the object's longer side ...
_LEAST = 96.0  # ... and at least this many pixels of the original image
_MARGIN = 3  # pixels between an object and its red box
_RED = (255, 40, 60)
_BLACK = (0, 0, 0)


def drawn_image(data: CocoDataset, index: int) -> str | None:
    """An image of the data set with all its annotations; None if it cannot be read."""
    drawn = _draw(data, index)
    return None if drawn is None else _data_url(drawn[0])


def close_up(data: CocoDataset, index: int, box: BoxXYXY | None) -> str | None:
    """The annotations around a box, which is drawn in red.

    Args:
        data: a data set with images.
        index: of the image.
        box: xyxy in image pixels; None, or a box outside the image, shows the whole image.
    """
    drawn = _draw(data, index, boxes=box is None)
    if drawn is None:
        return None
    image, factor = drawn
    height, width = data.size(index)
    limits = (width, height, width, height)
    x0, y0, x1, y1 = (
        float(np.clip(value, 0, limit))
        for value, limit in zip(box or (0, 0, 0, 0), limits, strict=True)
    )
    if x0 >= x1 and y0 >= y1:
        return _data_url(image)

    # Cut out the surroundings and scale them to the size of a sample.
    half = max(_AROUND * max(x1 - x0, y1 - y0), _LEAST) / 2
    left = max(0.0, (x0 + x1) / 2 - half)
    top = max(0.0, (y0 + y1) / 2 - half)
    right = min(width, left + 2 * half)
    bottom = min(height, top + 2 * half)
    edges = [round(edge * factor) for edge in (left, top, right, bottom)]
    part = image.crop((edges[0], edges[1], edges[2], edges[3]))
    scale = SIDE / max(part.size)
    part_size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    part = part.resize(part_size, Image.Resampling.BICUBIC)

    to_part = factor * scale
    corners = (
        (x0 - left) * to_part - _MARGIN,
        (y0 - top) * to_part - _MARGIN,
        (x1 - left) * to_part + _MARGIN,
        (y1 - top) * to_part + _MARGIN,
    )
    _draw_red_box(part, corners)
    return _data_url(part)


def raw_box(raw: Json) -> BoxXYXY | None:
    """The annotated box (xyxy) of an entry that may be broken; None without four numbers."""
    box = raw.get("bbox") if isinstance(raw, dict) else None
    if not isinstance(box, list | tuple) or len(box) != 4 or not all(map(is_number, box)):
        return None
    x0, x1 = sorted((box[0], box[0] + box[2]))
    y0, y1 = sorted((box[1], box[1] + box[3]))
    return float(x0), float(y0), float(x1), float(y1)


def _draw(data: CocoDataset, index: int, boxes: bool = True) -> tuple[Image.Image, float] | None:
    """The image with its truth, and the scale it is drawn at; without boxes also without names."""
    record = data[index]
    try:
        pixels = read_image(record.path, data.intensity_range())
    except ImageError:
        return None

    size = (record.height, record.width)
    truth = truth_instances(record.annotations, data.categories, size, _GRID)
    names = boxes and len(data.categories) > 1
    image = draw_instances(truth, pixels, boxes=boxes, names=names, scores=False, enlarge=True)

    factor = image.width / record.width
    for annotation in record.annotations:
        if annotation.points is not None and not annotation.ignore:
            labeled = annotation.points.tolist()
            draw_points(image, ((x * factor, y * factor, on > 0) for x, y, on in labeled))
    return image, factor


def _draw_red_box(image: Image.Image, corners: BoxXYXY) -> None:
    """Draws a red box with a black edge, visible on any background."""
    pen = ImageDraw.Draw(image)
    x0, y0, x1, y1 = corners
    pen.rectangle([x0 - 1, y0 - 1, x1 + 1, y1 + 1], None, _BLACK, 4)
    pen.rectangle([x0, y0, x1, y1], None, _RED, 3)


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
