"""LabelMe: one JSON file per image, with shapes.

polygon, circle, oriented_rectangle, mask -> mask; rectangle -> box; point -> keypoint. Shapes that
share group_id and label are one object. Points belong to the object of their group, and their
label names the keypoint. The flag "occluded" marks a hidden keypoint, the flag "ignore" a region to
ignore.

labels.txt beside the files gives the order of the categories and, indented, of their keypoints;
LabelMe itself ignores the indentation. X-AnyLabeling's rectangles with four corners are boxes, or
masks if they are rotated. An image that is missing is taken from imageData.

LabelMe's coordinates are continuous: the center of pixel 7 is 7.5.
Source: github.com/wkentaro/labelme, labelme/utils/shape.py.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Hashable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from ..annotations import rle as coco_rle
from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.coco_types import RLE, CocoAnnotation, CocoCategory, CocoImage, Json, JsonObject
from ..annotations.contours import ellipse
from ..annotations.images_option import images_option
from ..annotations.json_file import read_json
from ..annotations.problems import DataError
from ..annotations.shown_values import shown
from ..images.image_files import images_in
from ..runtime.counted import counted
from .annotation_source import AnnotationSource
from .bounded_files import part_of, read_text
from .embedded_images import extract, folder_of_extracted
from .format import Format
from .reading import Annotated, AnnotatedObject, DatasetBuilder, image_folder, relative, tracked
from .writing import (
    ConversionTarget,
    Unrepresentable,
    categories_by_id,
    drawable,
    ignored,
    keypoints_of,
    label_of,
    number,
    numbers,
    own_box,
    rle_of,
    size_of,
)

_AREAS = ("polygon", "rectangle", "oriented_rectangle", "circle", "mask")
_ROTATED = ("oriented_rectangle", "rotation")  # with four points; the second is X-AnyLabeling's
_FLAGS = ("ignore", "occluded")  # the flags with a meaning here
_MOST_MASK = 100_000_000  # pixels of a mask shape
_LABELS = "labels.txt"
_BROKEN = (ValueError, TypeError, KeyError, AttributeError, OverflowError)
Objects = dict[Hashable, AnnotatedObject]
"""(label, group_id) -> object of a group; (index,) for a shape without a group."""


class LabelmeShape(TypedDict):
    """One shape of an image."""

    label: str
    points: list[list[float]]
    group_id: int | None
    description: str
    shape_type: str
    flags: dict[str, bool]
    mask: str | None
    """PNG in base64."""
    score: NotRequired[float]


class _LabelmeKeys(TypedDict, total=False):
    """What every shape of an object has in common, beside its points."""

    description: str
    flags: dict[str, bool]
    mask: str
    score: float


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or one of the first files of the folder, is LabelMe's."""
    files = [source.path] if source.path.is_file() else list(islice(source.path.rglob("*.json"), 5))
    return any(_load(path) for path in files if path.suffix.lower() == ".json")


def splits(source: AnnotationSource) -> list[str]:
    """None: a folder is not divided."""
    return []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads all files; images without a file are not annotated, and are left out."""
    files = [source.path] if source.path.is_file() else sorted(source.path.rglob("*.json"))
    contents = {path: _load(path) for path in tracked(files, "reading LabelMe files")}
    with_image = {path for path, content in contents.items() if content and _drop_image(content)}
    image_paths = {
        path: _image(path, content["imagePath"], source.folder)
        for path, content in contents.items()
        if content
    }
    paths = list(image_paths.values())
    candidates = [source.folder, source.folder.parent, source.folder / "images"]
    builder = DatasetBuilder(source.name, image_folder(images, candidates, paths))

    extracted = folder_of_extracted(source.path)
    none_exists = not any(((builder.folder or source.folder) / p).is_file() for p in paths)
    if none_exists and with_image:
        builder.folder = extracted

    # A folder given by the user may hold the images under their bare names.
    by_name = images is not None and not any((Path(images) / p).is_file() for p in paths)
    existing = images_in(source.folder, deep=source.path.is_dir())
    spelled = {p.with_suffix(""): p.name for p in existing}
    keypoints: set[str] = set()
    for path, content in contents.items():
        if content is None:
            builder.problem(
                "no LabelMe file",
                path.name,
                "expected JSON with shapes and imagePath",
                "save it again in LabelMe, or move it elsewhere",
            )
            continue

        image_path = Path(image_paths[path]).name if by_name else image_paths[path]
        if path in with_image and not ((builder.folder or Path()) / image_path).is_file():
            own = extracted / path.relative_to(source.folder).parent / _name_of(image_path, path)
            if not _extract(builder, path, own):
                continue
            image_path = relative(own, builder.folder or Path())
        other = spelled.get(path.parent / Path(image_path).stem)
        if images is None and other and not ((builder.folder or Path()) / image_path).is_file():
            builder.problem(
                "image name differs",
                path.name,
                f'its imagePath is "{image_path}", the image beside it is "{other}"',
                "rename the image, or correct imagePath",
            )
            continue

        try:
            size = _size(content)
            for flag in _true_flags(content):
                builder.unused(f'image flag "{flag}"', path.name)
        except ValueError as error:
            suggestion = "correct the file, or save it again in LabelMe"
            builder.problem("broken file", path.name, str(error), suggestion)
            continue
        image_id = builder.image(image_path, size, path.name)
        if image_id is not None:
            keypoints |= _Shapes(builder, image_id, path.name).add_all(content["shapes"])

    _declare(builder, source.folder / _LABELS, keypoints)
    missing = len(existing) - len(files)
    if source.path.is_dir() and missing > 0:
        builder.problem(
            "image without annotations",
            source.name,
            f"{counted(missing, 'image')} without a JSON file",
            "they are left out",
            False,
        )
    return builder.build()


def _load(path: Path) -> dict[str, Json] | None:
    """The content of a LabelMe file; None for any other file, or an unreadable one."""
    try:
        content = read_json(path)
    except DataError:
        return None
    is_labelme = (
        isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and content.get("imagePath")
    )
    return content if is_labelme else None


def _drop_image(content: dict[str, Json]) -> bool:
    """Removes the pixels of a file, which fill the memory; returns whether it had any."""
    return bool(content.pop("imageData", None))


def _extract(builder: DatasetBuilder, path: Path, image_path: Path) -> bool:
    """Writes the pixels of a file as an image; False, with a problem added, if they are broken."""
    try:
        extract(str((_load(path) or {})["imageData"]), image_path)
    except ValueError as error:
        suggestion = f"pass the folder of the images: {images_option()}"
        builder.problem("broken imageData", path.name, f"imageData {error}", suggestion)
        return False
    builder.problem(
        "image taken from imageData",
        path.name,
        "its image file was not found",
        f"it is written to {image_path.parent}",
        False,
    )
    return True


def _name_of(image_path: str, path: Path) -> str:
    """The bare name of an image; that of its JSON file where it has none."""
    name = Path(image_path).name
    return f"{path.stem}.png" if name in ("", "..") else name


def _size(content: JsonObject) -> tuple[int, int] | None:
    """(height, width) if the file has both.

    Raises:
        ValueError: they are not whole numbers.
    """
    sides: list[Json] = [content.get("imageHeight"), content.get("imageWidth")]
    if not all(sides):
        return None
    try:
        height, width = (float(side) for side in sides)
    except (TypeError, ValueError, OverflowError):
        height = width = 0.5
    if not (height.is_integer() and width.is_integer()):
        raise ValueError(
            f"expected imageHeight and imageWidth as whole numbers, "
            f"got {sides[0]!r:.20} and {sides[1]!r:.20}"
        )
    return int(height), int(width)


def _true_flags(content: JsonObject) -> list[str]:
    """The flags of an image or a shape that are set."""
    flags = content.get("flags") or {}
    if not isinstance(flags, dict):
        raise ValueError(f'expected flags as {{"name": true}}, got {flags!r:.40}')
    return [str(name) for name, is_set in flags.items() if is_set]


def _image(path: Path, image_path: Json, folder: Path) -> str:
    """The path of a file's image, relative to the folder.

    The image is where imagePath says; else beside the file, because imagePath can be a path of
    another machine.
    """
    given = path.parent / str(image_path).replace("\\", "/")
    beside = path.parent / given.name
    return relative(beside if beside.is_file() and not given.is_file() else given, folder)


@dataclass
class _Shapes:
    """Turns the shapes of one image into objects."""

    builder: DatasetBuilder
    image_id: int
    file: str

    def add_all(self, shapes: list[Json]) -> set[str]:
        """Adds the objects of the image; returns the labels of its points."""
        objects: Objects = {}
        points: list[tuple[JsonObject, str]] = []
        for index, shape in enumerate(shapes):
            where = f"{self.file}, shapes[{index}]"
            try:
                _group(shape)
                if _label(shape) and _kind(shape) == "point":
                    points.append((shape, where))
                else:
                    self._add_area(objects, shape, index, where)
            except _BROKEN as error:
                detail = str(error) or type(error).__name__
                self.builder.problem("broken shape", where, detail, "draw it again")

        # Points come last: the object that they belong to may follow them in the file.
        for shape, where in points:
            self._add_point(objects, shape, where)
        for key, instance in objects.items():
            if instance.boxes or instance.polygons or instance.rles or instance.keypoints:
                group = key[-1] if isinstance(key, tuple) else key
                self.builder.add_group(self.image_id, instance, f"group_id {group}")
        return {_label(shape) for shape, _ in points}

    def _add_area(self, objects: Objects, shape: JsonObject, index: int, where: str) -> None:
        """Adds a shape to the object of its group, or as an object of its own."""
        label = _label(shape)
        kind = _kind(shape)
        if not label:
            self.builder.problem(
                "object without category", where, "has no label", "add one in LabelMe"
            )
            return
        if kind not in (*_AREAS, *_ROTATED):
            self.builder.problem(
                "shape without area",
                where,
                f"shape_type is {kind!r}",
                f"draw it as {', '.join(_AREAS)} or point",
            )
            return

        group = _group(shape)
        key = (index,) if group is None else (label, group)
        instance = objects.setdefault(key, AnnotatedObject(label, where))
        flags = _true_flags(shape)
        instance.ignore |= "ignore" in flags
        for flag in flags:
            if flag not in _FLAGS:
                self.builder.unused(f'flag "{flag}"', where)
        if shape.get("difficult"):
            self.builder.unused("difficult", where)
        for attribute in part_of(shape, "attributes"):  # of X-AnyLabeling
            self.builder.unused(f'attribute "{attribute}"', where)
        if isinstance(shape.get("score"), int | float):
            instance.score = shape["score"]
        _read_area(instance, shape, kind, self.builder.size(self.image_id))

    def _add_point(self, objects: Objects, shape: JsonObject, where: str) -> None:
        """Adds a keypoint to the object of its group.

        In a group of points alone, the description names the category.
        """
        group = _group(shape)
        candidates: list[AnnotatedObject] = []
        if group is not None:
            candidates = [
                instance
                for key, instance in objects.items()
                if isinstance(key, tuple) and len(key) == 2 and key[1] == group
            ]
            if not candidates and shape.get("description"):
                alone = AnnotatedObject(str(shape["description"]), where)
                candidates = [objects.setdefault((None, group), alone)]

        if len(candidates) != 1:
            detail = f"is in group {group}, which has {counted(len(candidates), 'object')}"
            if group is None:
                detail = "has no group_id"
            self.builder.problem(
                "point without object",
                where,
                f'point "{shape.get("label")}" {detail}',
                "give it the group_id of one polygon or rectangle, "
                "or write the category as its description",
            )
            return

        try:
            ((x, y),) = shape["points"]
            visibility = 1 if "occluded" in _true_flags(shape) else 2
            candidates[0].keypoints[_label(shape)] = (
                float(x) - KEYPOINT_OFFSET,
                float(y) - KEYPOINT_OFFSET,
                visibility,
            )
        except _BROKEN:
            self.builder.problem(
                "broken shape",
                where,
                f"expected one point, got {shape.get('points')!r:.60}",
                "write [[x, y]]",
            )


def _group(shape: Json) -> Hashable:
    """The group of a shape, None without one."""
    group = shape.get("group_id") if isinstance(shape, dict) else None
    if isinstance(group, list | dict):
        raise ValueError(f"expected group_id as a number or null, got {group!r:.40}")
    return group


def _label(shape: Json) -> str:
    if not isinstance(shape, dict):
        raise ValueError(f"expected an object with label and points, got {shape!r:.40}")
    label = shape.get("label")
    if not isinstance(label, str | int | float | None):
        raise ValueError(f"expected label as text, got {shown(label, 40)}")
    return "" if label is None else str(label).strip()


def _kind(shape: JsonObject) -> Json:
    return shape.get("shape_type") or "polygon"


def _read_area(
    instance: AnnotatedObject, shape: JsonObject, kind: str, size: tuple[int, int]
) -> None:
    """Adds a shape to an object.

    Raises:
        ValueError: the shape is broken.
    """
    points = np.array(shape.get("points") or (), dtype=np.float64).reshape(-1, 2)
    if not len(points):
        raise ValueError("has no points")
    low = points.min(axis=0)
    high = points.max(axis=0)

    # X-AnyLabeling: a rectangle by its corners, which may be rotated.
    if kind in _ROTATED:
        kind = "polygon"
    elif kind == "rectangle" and len(points) == 4:
        if bool(((points == low) | (points == high)).all()):
            points = np.stack([low, high])
        else:
            kind = "polygon"

    if kind == "polygon":
        instance.polygons.append(points)
        return
    if len(points) != 2:
        raise ValueError(f"{kind}: expected 2 points, got {len(points)}")
    if kind == "circle":  # its center, and a point on the circle
        radius = float(np.hypot(*(points[1] - points[0])))
        instance.polygons.append(ellipse((points[0, 0], points[0, 1]), (radius, radius)))
    elif kind == "rectangle":
        instance.boxes.append((float(low[0]), float(low[1]), float(high[0]), float(high[1])))
    else:
        instance.add_crop(*_read_mask(shape, low, high), size)


def _read_mask(shape: JsonObject, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, int, int]:
    """The mask of a mask shape, its left and its top; `high` is the last pixel, both are rounded.

    The size of the PNG is compared with the points before its pixels are decoded.
    """
    if not shape.get("mask"):
        raise ValueError("has no mask")
    height, width = (high - low + 1)[::-1].tolist()
    try:
        image = Image.open(io.BytesIO(base64.b64decode(shape["mask"])))
        if abs(image.height - height) >= 1 or abs(image.width - width) >= 1:
            raise ValueError(
                f"expected height, width ({height:g}, {width:g}) from its points, "
                f"got ({image.height}, {image.width})"
            )
        if image.height * image.width > _MOST_MASK:
            raise ValueError(f"more than {_MOST_MASK:,} pixels")
        values = np.asarray(image)
    # Pillow's decoders raise whatever the broken bytes lead to.
    except Exception as error:
        raise ValueError(f"mask: {error or type(error).__name__}") from None

    crop = (values if values.ndim == 2 else values.max(axis=2)) > 0
    x0, y0 = np.floor(low + 0.5).astype(int).tolist()
    return crop, x0, y0


def _declare(builder: DatasetBuilder, labels: Path, keypoints: set[str]) -> None:
    """Declares the categories of labels.txt, in its order, with the keypoints indented below."""
    lines = read_text(labels).splitlines() if labels.is_file() else []
    category = ""
    listed: dict[str, list[str]] = {}
    for line in (line.rstrip() for line in lines if line.strip()):
        if line[0].isspace() and category:
            listed[category].append(line.strip())
        elif line not in keypoints and line not in ("__ignore__", "_background_"):
            category = line.strip()
            listed[category] = []
    for name, names in listed.items():
        builder.category(name, names)


def write(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes one file per image, and labels.txt."""
    categories = categories_by_id(annotated.content)
    for image, raws in target.each():
        path = target.folder / target.name(image).with_suffix(".json")
        shapes: list[LabelmeShape] = []
        for group, raw in enumerate(raws, start=1):
            shapes += _write_object(
                raw, image, categories[raw["category_id"]], group, target.tolerance, lost
            )
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": target.refer(image, path.parent),
            "imageData": None,
            "imageHeight": image["height"],
            "imageWidth": image["width"],
        }
        target.write(path, json.dumps(content, indent=1))

    lines: list[str] = []
    listed: set[str] = set()  # LabelMe rejects a label that is listed twice
    for category in categories.values():
        names = [("", category["name"])]
        names += [("  ", keypoint) for keypoint in category.get("keypoints") or ()]
        for indent, name in names:
            if name not in listed:
                lines.append(indent + name.strip())
                listed.add(name)
        if category.get("skeleton"):
            lost.add_category("limbs of skeletons", category["name"])
    target.write(target.folder / _LABELS, "\n".join(lines) + "\n")


def _write_object(
    raw: CocoAnnotation,
    image: CocoImage,
    category: CocoCategory,
    group: int,
    tolerance: float,
    lost: Unrepresentable,
) -> list[LabelmeShape]:
    """The shapes of one object; several get the group as their group_id."""
    size = size_of(image)
    shapes: list[LabelmeShape] = []

    def add(
        kind: str, points: ArrayLike, more: _LabelmeKeys, label: str = category["name"]
    ) -> None:
        shape: LabelmeShape = {
            "label": label,
            "points": numbers(np.reshape(points, (-1, 2))),
            "group_id": None,
            "description": "",
            "shape_type": kind,
            "flags": {},
            "mask": None,
        }
        shapes.append({**shape, **more})

    more: _LabelmeKeys = {}
    if ignored(raw):
        more["flags"] = {"ignore": True}
    if "score" in raw:
        more["score"] = number(raw["score"])

    polygons = drawable(raw, tolerance)
    for polygon in polygons:
        add("polygon", polygon, more)
    if not polygons and (rle := rle_of(raw, size)) is not None and coco_rle.area(rle):
        corners, mask = _write_mask(rle)
        add("mask", corners, {**more, "mask": mask})
    if (box := own_box(raw, size)) is not None:
        add("rectangle", box, more)

    # Keypoints without any other shape carry the category in their description.
    alone: _LabelmeKeys = {} if shapes else {"description": category["name"]}
    for name, x, y, visibility in keypoints_of(raw, category):
        of_point: _LabelmeKeys = {**alone}
        if visibility == 1:
            of_point["flags"] = {"occluded": True}
        add("point", (x + KEYPOINT_OFFSET, y + KEYPOINT_OFFSET), of_point, name)

    if not shapes:
        lost.add("objects without box, mask and keypoints, left out", label_of(raw, image))
    if len(shapes) > 1 or alone:
        for shape in shapes:
            shape["group_id"] = group
    return shapes


def _write_mask(rle: RLE) -> tuple[tuple[int, int, int, int], str]:
    """The first and last pixel of a mask, and its pixels as a PNG in base64."""
    crop, x0, y0 = coco_rle.decode_crop(rle)
    corners = (x0, y0, x0 + crop.shape[1] - 1, y0 + crop.shape[0] - 1)
    buffer = io.BytesIO()
    Image.fromarray(crop.astype(np.uint8)).save(buffer, "PNG", compress_level=1)
    return corners, base64.b64encode(buffer.getvalue()).decode()


LABELME = Format(
    name="labelme",
    description="LabelMe: JSON files with shapes and imagePath, one per image",
    written_as=("labelme",),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write,
    sides_from_names=True,
)
