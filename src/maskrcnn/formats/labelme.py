"""LabelMe: a JSON file for each image, with shapes.

polygon, circle, mask -> mask; rectangle -> box; point -> keypoint. Shapes of one group_id and label are one object; points belong to the object of
their group, their label is the keypoint's name. The flag "occluded" makes a keypoint hidden, the flag "ignore" an object a region to ignore. labels.txt
beside the files gives the order of the categories and, indented, of their keypoints (LabelMe itself ignores the indentation). X-AnyLabeling's
rectangles of 4 corners are boxes, or masks where they are turned.

LabelMe's coordinates are continuous: the middle of pixel 7 is 7.5. Source: github.com/wkentaro/labelme, labelme/utils/shape.py.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..annotations import rle as coco_rle
from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.contours import ellipse
from ..annotations.problems import DataError
from ..images.files import images_in
from .reading import Annotated, Builder, Drawn, image_folder, relative, tracked
from .source import Source, read_json, read_text
from .writing import (
    Losses,
    Target,
    drawable,
    ignored,
    keypoints_of,
    label_of,
    names_of,
    number,
    numbers,
    own_box,
    rle_of,
    size_of,
)

NAME = "labelme"
LOOKS_LIKE = "LabelMe's JSON files, with shapes and imagePath, one for each image"
_AREAS = ("polygon", "rectangle", "circle", "mask")
_TURNED = "rotation"  # X-AnyLabeling's name of a rectangle of 4 points
_LABELS = "labels.txt"


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether it is LabelMe's."""
    files = [source.path] if source.path.is_file() else list(islice(source.path.rglob("*.json"), 5))
    return any(_load(path) for path in files if path.suffix.lower() == ".json")


def splits(source: Source) -> list[str]:
    """None: a folder is one split."""
    return []


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads all files; images without one are not annotated, and left out."""
    files = [source.path] if source.path.is_file() else sorted(source.path.rglob("*.json"))
    contents = {path: _load(path) for path in tracked(files, "reading LabelMe files")}
    image_paths = {
        path: _image(path, content["imagePath"], source.folder)
        for path, content in contents.items()
        if content
    }
    paths = list(image_paths.values())
    by_name = images is not None and not any((Path(images) / p).is_file() for p in paths)
    builder = Builder(
        source.name,
        image_folder(
            images, [source.folder, source.folder.parent, source.folder / "images"], paths
        ),
    )
    there = images_in(source.folder, deep=source.path.is_dir())
    spelled = {p.with_suffix(""): p.name for p in there}
    keypoints: set[str] = set()
    for path, content in contents.items():
        if content is None:
            builder.problem(
                "no LabelMe file",
                path.name,
                "is no JSON with shapes and imagePath",
                "save it again in LabelMe, or move it elsewhere",
            )
            continue
        image_path = Path(image_paths[path]).name if by_name else image_paths[path]
        other = spelled.get(path.parent / Path(image_path).stem)
        if images is None and other and not ((builder.folder or Path()) / image_path).is_file():
            detail = f'its imagePath is "{image_path}", beside it is "{other}"'
            builder.problem(
                "image of another name", path.name, detail, "rename the image, or correct imagePath"
            )
            continue
        size = (content.get("imageHeight"), content.get("imageWidth"))
        image = builder.image(image_path, size if all(size) else None, path.name)  # ty: ignore[invalid-argument-type]
        if image is not None:
            keypoints |= _shapes(builder, image, path.name, content["shapes"])
    _declare(builder, source.folder / _LABELS, keypoints)
    if source.path.is_dir() and (left := len(there) - len(files)) > 0:
        builder.problem(
            "image without annotations",
            source.name,
            f"{left} images have no JSON file",
            "they are left out",
            False,
        )
    return builder.done()


def _load(path: Path) -> dict[str, Any] | None:
    """The content of LabelMe's file; None of any other, or of one that cannot be read."""
    try:
        content = read_json(path)
    except DataError:
        return None
    return (
        content
        if isinstance(content, dict)
        and isinstance(content.get("shapes"), list)
        and content.get("imagePath")
        else None
    )


def _image(path: Path, given: Any, folder: Path) -> str:
    """A file's image as seen from the folder: where imagePath says, or beside the file, as imagePath can be of another machine."""
    said = path.parent / str(given).replace("\\", "/")
    beside = path.parent / said.name
    return relative(beside if beside.is_file() and not said.is_file() else said, folder)


def _shapes(builder: Builder, image: int, file: str, shapes: list[Any]) -> set[str]:
    """Adds the objects of an image; gives the labels of points."""
    objects: dict[Any, Drawn] = {}
    points: list[tuple[dict[str, Any], str]] = []
    for place, shape in enumerate(shapes):
        where = f"{file}, shapes[{place}]"
        try:
            label, kind = _label(shape), shape.get("shape_type") or "polygon"
            if not label:
                builder.problem(
                    "object without category", where, "has no label", "give it one in LabelMe"
                )
            elif kind == "point":
                points.append((shape, where))
            elif kind not in (*_AREAS, _TURNED):
                builder.problem(
                    "shape without area",
                    where,
                    f"shape_type is {kind!r}",
                    f"draw it as {', '.join(_AREAS)} or point",
                )
            else:
                group = shape.get("group_id")
                drawn = objects.setdefault(
                    (place,) if group is None else (label, group), Drawn(label, where)
                )
                drawn.ignore |= bool((shape.get("flags") or {}).get("ignore"))
                drawn.extra |= (
                    {"score": shape["score"]} if isinstance(shape.get("score"), int | float) else {}
                )
                _area(drawn, shape, kind, builder.size(image))
        except (ValueError, TypeError, KeyError, AttributeError, OSError, binascii.Error) as error:
            builder.problem(
                "broken shape", where, str(error) or type(error).__name__, "draw it again"
            )
    for shape, where in points:
        _point(builder, objects, shape, where)
    for drawn in objects.values():
        if drawn.boxes or drawn.polygons or drawn.rles or drawn.keypoints:
            builder.add(image, drawn)
    return {_label(shape) for shape, _ in points}


def _label(shape: Any) -> str:
    if not isinstance(shape, dict):
        raise ValueError(f"is {shape!r:.40}, must be an object with label and points")
    return "" if shape.get("label") is None else str(shape["label"]).strip()


def _area(drawn: Drawn, shape: Mapping[str, Any], kind: str, size: tuple[int, int]) -> None:
    points = np.array(shape.get("points") or (), dtype=np.float64).reshape(-1, 2)
    if not len(points):
        raise ValueError("has no points")
    (x0, y0), (x1, y1) = low, high = points.min(axis=0), points.max(axis=0)
    if (
        kind == "rectangle"
        and len(points) == 4
        and bool(((points == low) | (points == high)).all())
    ):
        points = np.stack([low, high])
    elif kind == _TURNED or (kind == "rectangle" and len(points) == 4):
        kind = "polygon"
    if kind != "polygon" and len(points) != 2:
        raise ValueError(f"a {kind} has 2 points, got {len(points)}")
    if kind == "polygon":
        drawn.polygons.append(points)
    elif kind == "circle":  # its middle, and a point of the circle
        radius = float(np.hypot(*(points[1] - points[0])))
        drawn.polygons.append(ellipse((points[0, 0], points[0, 1]), (radius, radius)))
    elif kind == "rectangle":
        drawn.boxes.append((float(x0), float(y0), float(x1), float(y1)))
    elif not shape.get("mask"):
        raise ValueError("has no mask")
    else:  # the second point is the last pixel inside
        crop = np.asarray(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))))
        crop = (crop if crop.ndim == 2 else crop.max(axis=2)) > 0
        wanted = (int(y1) - int(y0) + 1, int(x1) - int(x0) + 1)
        if crop.shape != wanted:
            raise ValueError(f"mask has height, width {crop.shape}, its points say {wanted}")
        drawn.rles.append(coco_rle.encode_crop(crop, int(x0), int(y0), size))


def _point(
    builder: Builder, objects: dict[Any, Drawn], shape: Mapping[str, Any], where: str
) -> None:
    """Gives a keypoint to the object of its group; of a group of points alone, the description names the category."""
    group = shape.get("group_id")
    found = (
        [drawn for key, drawn in objects.items() if len(key) == 2 and key[1] == group]
        if group is not None
        else []
    )
    if not found and group is not None and shape.get("description"):
        found = [objects.setdefault((None, group), Drawn(str(shape["description"]), where))]
    if len(found) != 1:
        detail = (
            "without group_id"
            if group is None
            else f"its group {group} has {len(found) or 'no'} objects"
        )
        suggestion = "give it the group_id of one polygon or rectangle, or write the category as its description"
        builder.problem(
            "point of no object", where, f'point "{shape.get("label")}" {detail}', suggestion
        )
        return
    try:
        ((x, y),) = shape["points"]
        visibility = 1 if (shape.get("flags") or {}).get("occluded") else 2
        found[0].keypoints[_label(shape)] = (
            float(x) - KEYPOINT_OFFSET,
            float(y) - KEYPOINT_OFFSET,
            visibility,
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        builder.problem(
            "broken shape",
            where,
            f"points of a point: {shape.get('points')!r:.60}",
            "write [[x, y]]",
        )


def _declare(builder: Builder, labels: Path, keypoints: set[str]) -> None:
    """Declares what labels.txt lists, in its order."""
    lines = read_text(labels).splitlines() if labels.is_file() else []
    category, listed = "", {}
    for line in (line.rstrip() for line in lines if line.strip()):
        if line[0].isspace() and category:
            listed[category].append(line.strip())
        elif line not in keypoints and line not in ("__ignore__", "_background_"):
            category = line.strip()
            listed[category] = []
    for name, names in listed.items():
        builder.category(name, names)


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes a file for each image, and labels.txt."""
    categories = names_of(annotated.content)
    for image, raws in target.each():
        path = target.folder / target.name(image).with_suffix(".json")
        shapes: list[dict[str, Any]] = []
        for group, raw in enumerate(raws, start=1):
            shapes += _written(raw, image, categories[raw["category_id"]], group, target, losses)
        content = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": target.refer(image, path.parent),
            "imageData": None,
        }
        target.write(
            path,
            json.dumps(
                content | {"imageHeight": image["height"], "imageWidth": image["width"]}, indent=1
            ),
        )
    lines, seen = [], set()
    for category in categories.values():
        for indent, name in (
            ("", category["name"]),
            *(("  ", keypoint) for keypoint in category.get("keypoints") or ()),
        ):
            if name not in seen:  # LabelMe refuses a label listed twice
                lines.append(indent + name.strip())
                seen.add(name)
        if category.get("skeleton"):
            losses.add("limbs of skeletons", category["name"])
    target.write(target.folder / _LABELS, "\n".join(lines) + "\n")


def _written(
    raw: dict, image: dict, category: dict, group: int, target: Target, losses: Losses
) -> list[dict[str, Any]]:
    shapes: list[dict[str, Any]] = []
    size = size_of(image)

    def add(kind: str, points: Any, more: dict[str, Any], label: str = category["name"]) -> None:
        shape = {
            "label": label,
            "points": numbers(np.reshape(points, (-1, 2))),
            "group_id": None,
            "description": "",
            "shape_type": kind,
            "flags": {},
            "mask": None,
        }
        shapes.append(shape | more)

    more = ({"flags": {"ignore": True}} if ignored(raw) else {}) | (
        {"score": number(raw["score"])} if "score" in raw else {}
    )
    polygons = drawable(raw, target.tolerance)
    for polygon in polygons:
        add("polygon", polygon, more)
    if not polygons and (rle := rle_of(raw, size)) is not None and coco_rle.area(rle):
        crop, x0, y0 = coco_rle.decode_crop(rle)
        buffer = io.BytesIO()
        Image.fromarray(crop.astype(np.uint8)).save(buffer, "PNG", compress_level=1)
        corners = (x0, y0, x0 + crop.shape[1] - 1, y0 + crop.shape[0] - 1)
        add("mask", corners, more | {"mask": base64.b64encode(buffer.getvalue()).decode()})
    if (box := own_box(raw, size)) is not None:
        add("rectangle", box, more)
    alone = {} if shapes else {"description": category["name"]}
    for name, x, y, visibility in keypoints_of(raw, category):
        hidden = {"flags": {"occluded": True}} if visibility == 1 else {}
        add("point", (x + KEYPOINT_OFFSET, y + KEYPOINT_OFFSET), alone | hidden, name)
    if not shapes:
        losses.add("objects without box, mask and keypoints, left out", label_of(raw, image))
    return [shape | {"group_id": group} for shape in shapes] if len(shapes) > 1 or alone else shapes
