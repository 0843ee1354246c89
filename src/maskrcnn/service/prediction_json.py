"""The response of `/predict`: Instances as a COCO file with names, polygons and keypoints by name.

In:  the predictions for the images of a request.
Out: {"images", "categories", "annotations"} as JSON text. With masks as RLE it is a valid COCO
     annotation file.

Boxes, polygons and keypoints by name are continuous pixels (pixel i covers i to i + 1);
"keypoints" are in COCO's convention, as in COCO's files.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Literal, NotRequired, TypedDict

import numpy as np
from PIL import Image

from ..annotations.categories import category_to_coco
from ..annotations.coco_types import RLE, CocoCategory
from ..annotations.contours import holes_by_part, simplify, trace
from ..annotations.rle import encode_crop
from ..config import Category
from ..draw.overlay import KEYPOINT_SCORE
from ..draw.style import PALETTE
from ..instances import Instances
from ..ops.paste_masks import Crop

MaskForm = Literal["rle", "polygons", "none"]
"""How masks are written."""


class PolygonJson(TypedDict):
    """One connected part of a mask."""

    exterior: list[list[float]]
    """Points x, y."""
    holes: list[list[list[float]]]


class KeypointJson(TypedDict):
    """A keypoint, in continuous pixels."""

    x: float
    y: float
    score: float


class ImageJson(TypedDict):
    """An image of the request."""

    id: int
    """Its position in the request, from 1."""
    file_name: str
    width: int
    height: int
    notes: list[str]
    """What was read differently than one may expect."""
    overlay: NotRequired[str]
    """A PNG with the objects drawn on the image, as base64."""
    preview: NotRequired[str]
    """A PNG of the image as it was read, 8 bits, upright, as base64."""


class ObjectIds(TypedDict):
    """The numbers of an object in a response."""

    id: int
    """From 1, best first within each image."""
    image_id: int


class ObjectContent(TypedDict):
    """What is predicted about an object."""

    category_id: int
    category_name: str
    bbox: list[float]
    """x, y, width, height in pixels."""
    score: float
    area: float
    """Pixels of the mask; of the box for a model without masks."""
    iscrowd: int
    segmentation: NotRequired[RLE]
    polygons: NotRequired[list[PolygonJson]]
    keypoints: NotRequired[list[float]]
    """x, y, visibility of each keypoint of the category: 2, or 0, 0, 0 below a score of 0.05."""
    num_keypoints: NotRequired[int]
    keypoints_by_name: NotRequired[dict[str, KeypointJson]]


class ObjectJson(ObjectIds, ObjectContent):
    """A predicted object."""


class PredictionJson(TypedDict):
    """The response of `/predict`."""

    images: list[ImageJson]
    categories: list[CocoCategory]
    annotations: list[ObjectJson]


class ShownCategory(TypedDict):
    """A category of `/info`."""

    id: int
    name: str
    color: str
    """As "#rrggbb"."""
    keypoints: NotRequired[list[str]]
    skeleton: NotRequired[list[list[int]]]
    """Limbs as pairs of indices into `keypoints`, counted from 1."""


@dataclass(frozen=True)
class ResponseOptions:
    """What a response contains."""

    min_score: float
    masks: MaskForm = "rle"
    simplify: float = 0.0
    """Tolerance of polygons in pixels; 0 = exact."""
    overlay: bool = False
    preview: bool = False
    """Whether to add the image itself, for programs that cannot decode it."""


@dataclass(frozen=True)
class ImageResponse:
    """The part of a response that is about one image."""

    image: ImageJson
    objects: list[bytes]
    """Each as JSON text, an `ObjectContent`: as Python objects, polygons take ten times as much."""
    overlay: bytes | None
    """A PNG."""
    preview: bytes | None
    """A PNG."""

    @property
    def num_bytes(self) -> int:
        """Approximate memory that it takes; about three times as much while it becomes JSON."""
        return sum(map(len, (*self.objects, self.overlay or b"", self.preview or b"")))


def describe(
    instances: Instances, name: str, notes: Sequence[str], options: ResponseOptions
) -> ImageResponse:
    """Describes the objects in one image. Ids are those of a request with this image alone.

    Args:
        instances: the prediction, with the image if there is to be an overlay or a preview.
        name: of the image.
        notes: about the image.
        options: what the response contains.
    """
    kept = instances.filter(min_score=options.min_score)
    image: ImageJson = {
        "id": 1,
        "file_name": name,
        "width": kept.size[1],
        "height": kept.size[0],
        "notes": list(notes),
    }
    crops = repeat(None) if kept.mask_grids is None else kept.masks
    objects = [
        _text(_object(kept, n, crop, options))
        for n, crop in zip(range(len(kept)), crops, strict=False)
    ]

    overlay = _png(kept.plot()) if options.overlay else None
    preview = _png(Image.fromarray(kept.image)) if options.preview else None
    return ImageResponse(image, objects, overlay, preview)


def prediction_json(parts: Sequence[ImageResponse], categories: Sequence[Category]) -> bytes:
    """The response for several images, a `PredictionJson`, as JSON text.

    It is written piece by piece, since PNGs can be large.
    """
    file = io.BytesIO()
    file.write(b'{"images":[')
    for image_id, part in enumerate(parts, start=1):
        image: ImageJson = {**part.image, "id": image_id}
        file.write(b"," if image_id > 1 else b"")
        file.write(_text(image)[:-1])
        for name, png in (("overlay", part.overlay), ("preview", part.preview)):
            if png is not None:
                file.write(f',"{name}":"'.encode())
                file.write(base64.b64encode(png))
                file.write(b'"')
        file.write(b"}")

    file.write(b'],"categories":')
    file.write(_text([category_to_coco(category) for category in categories]))
    file.write(b',"annotations":[')
    objects = ((image_id, text) for image_id, p in enumerate(parts, start=1) for text in p.objects)
    for number, (image_id, text) in enumerate(objects, start=1):
        file.write(b"," if number > 1 else b"")
        file.write(f'{{"id":{number},"image_id":{image_id},'.encode())
        file.write(memoryview(text)[1:])
    file.write(b"]}")
    return file.getvalue()


def shown_categories(categories: Sequence[Category]) -> list[ShownCategory]:
    """The categories with a color each, which is that of the first object in overlays."""
    shown: list[ShownCategory] = []
    for n, category in enumerate(categories):
        red, green, blue = PALETTE[n % len(PALETTE)]
        entry: ShownCategory = {
            "id": category.id,
            "name": category.name,
            "color": f"#{red:02x}{green:02x}{blue:02x}",
        }
        if category.keypoints:
            entry["keypoints"] = list(category.keypoints)
            entry["skeleton"] = [[a + 1, b + 1] for a, b in category.skeleton]
        shown.append(entry)
    return shown


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _text(content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()


def _object(
    instances: Instances, n: int, crop: Crop | None, options: ResponseOptions
) -> ObjectContent:
    category = instances.categories[int(instances.labels[n])]
    x0, y0, x1, y1 = instances.boxes[n].double().tolist()
    entry: ObjectContent = {
        "category_id": category.id,
        "category_name": category.name,
        "bbox": [round(value, 4) for value in (x0, y0, x1 - x0, y1 - y0)],
        "score": round(float(instances.scores[n]), 6),
        "area": round((x1 - x0) * (y1 - y0), 4),
        "iscrowd": 0,
    }
    if crop is not None:
        _add_mask(entry, crop, instances.size, options)

    if instances.keypoints is not None:
        _add_keypoints(entry, instances, n)
    return entry


def _add_mask(
    entry: ObjectContent, crop: Crop, size: tuple[int, int], options: ResponseOptions
) -> None:
    entry["area"] = int(crop.mask.sum())
    if options.masks == "rle":
        entry["segmentation"] = encode_crop(crop.mask, crop.x0, crop.y0, size)
    elif options.masks == "polygons":
        shift = np.array([crop.x0, crop.y0])
        entry["polygons"] = [
            {
                "exterior": _points(exterior + shift, options.simplify),
                "holes": [_points(hole + shift, options.simplify) for hole in holes],
            }
            for exterior, holes in holes_by_part(trace(crop.mask))
        ]


def _points(contour: np.ndarray, tolerance: float) -> list[list[float]]:
    return (simplify(contour, tolerance) if tolerance else contour).tolist()


def _add_keypoints(entry: ObjectContent, instances: Instances, n: int) -> None:
    names = instances.categories[int(instances.labels[n])].keypoints
    assert instances.keypoints is not None
    values = instances.keypoints[n, : len(names)].double().tolist()
    if not names:
        return

    flat: list[float] = []
    for x, y, score in values:
        is_visible = score >= KEYPOINT_SCORE
        position = [round(value - instances.coco_offset, 4) for value in (x, y)]
        flat += [*position, 2] if is_visible else [0, 0, 0]
    entry["keypoints"] = flat
    entry["num_keypoints"] = flat[2::3].count(2)
    entry["keypoints_by_name"] = {
        name: {"x": round(x, 4), "y": round(y, 4), "score": round(score, 6)}
        for name, (x, y, score) in zip(names, values, strict=True)
    }
