"""CVAT: annotations.xml of "CVAT for images 1.1", and tracks of "CVAT for video 1.1".

polygon, ellipse, rotated box, mask (RLE row by row, in its own box) -> mask; box -> box;
skeleton -> keypoints with occluded and outside. Shapes that share group_id and label are one
object. A skeleton, or points named after a keypoint, belong to the one other object of their
group. The attribute "ignore" (or is_crowd) marks a region to ignore. In CVAT a label with a
skeleton has no other shapes, so a category with both is two labels, "NAME" and "NAME skeleton".

CVAT's coordinates are continuous: the center of pixel 7 is 7.5.
Source: docs.cvat.ai, "XML annotation format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.contours import ellipse
from ..runtime.counted import counted
from .annotation_source import AnnotationSource, with_slashes
from .cvat_tracks import frames_of_tracks
from .cvat_writing import SKELETON, write_cvat
from .format import Format
from .id_maps import MOST_MASK
from .reading import (
    Annotated,
    AnnotatedObject,
    DatasetBuilder,
    image_folder,
    tracked,
    written_size,
)

_AREAS = ("polygon", "box", "ellipse", "mask")
_IGNORE = ("ignore", "is_crowd", "iscrowd")
_MOST_FILES = 20  # a folder with more XML files has another format, one file per image
_HEAD_BYTES = 2000  # in which the root element of a file starts
Objects = dict[tuple[Any, ...], AnnotatedObject]
"""(label, group_id) -> object of a group; (index,) for a shape without a group."""


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or any file of the folder, is CVAT's."""
    return bool(_files(source))


def splits(source: AnnotationSource) -> list[str]:
    """Names of a folder's files if there are several, else the subsets of the one project."""
    files = _files(source)
    if len(files) > 1:
        return [path.stem for path in files]
    subsets = {image.get("subset", "") for image in _root(source, files[0]).iterfind("image")}
    return sorted(subsets - {""})


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one file, or one subset of it.

    Raises:
        DataError: the file has tracks whose frames cannot be assigned to images.
    """
    files = _files(source)
    path = next((p for p in files if p.stem == split), files[0])
    root = _root(source, path)
    is_subset = bool(split) and len(files) == 1
    entries = [
        image
        for image in root.iterfind("image")
        if not is_subset or image.get("subset", "") == split
    ]
    candidates = [
        base / part
        for base in (path.parent, path.parent.parent)
        for part in ("images", f"images/{split}", f"images/{split.lower()}", ".", "images/default")
    ]
    searched = candidates if images is None else [Path(images)]
    for entry in entries:
        entry.set("name", with_slashes(entry.get("name", ""), searched))

    name = f"{path.name}:{split}" if is_subset else path.name
    names = [entry.get("name", "") for entry in entries]
    builder = DatasetBuilder(name, image_folder(images, candidates, names))
    entries = frames_of_tracks(root, entries, searched, builder)

    labels = {
        name: label
        for label in root.iterfind("meta//labels/label")
        if (name := label.findtext("name")) and not label.findtext("parent")
    }
    keypoints = {points.get("label") for entry in entries for points in entry.iterfind("points")}
    _declare(builder, root, {n: label for n, label in labels.items() if n not in keypoints})

    adopted: dict[str, str] = {}
    for entry in tracked(entries, "reading CVAT shapes"):
        try:
            size = written_size(entry.get("width"), entry.get("height"))
        except ValueError as error:
            suggestion = "write the size of the image file"
            where = entry.get("name", "")
            builder.problem("size of the image is wrong", where, str(error), suggestion)
            continue
        image_id = builder.image(entry.get("name", ""), size)
        if image_id is not None:
            adopted |= _Shapes(builder, image_id, entry, labels).add_all()
    for skeleton, category in adopted.items():
        builder.adopt(category, skeleton)
    return builder.build()


def _files(source: AnnotationSource) -> list[Path]:
    """The file itself, or the CVAT files of a folder."""
    if source.path.is_file():
        return [source.path] if source.xml is not None and source.xml.tag == "annotations" else []
    files = sorted(source.path.glob("*.xml")) if source.path.is_dir() else []
    if len(files) > _MOST_FILES:
        return []
    return [path for path in files if b"<annotations" in path.read_bytes()[:_HEAD_BYTES]]


def _root(source: AnnotationSource, path: Path) -> Element:
    root = source.file(path).xml
    assert root is not None, path
    return root


def _category(label: str, labels: Mapping[str, Element]) -> str:
    """The category of a label: NAME for "NAME skeleton", if both exist."""
    base = label.removesuffix(SKELETON)
    both = base in labels and label in labels
    return base if both and labels[label].findtext("type") == "skeleton" else label


def _declare(builder: DatasetBuilder, root: Element, labels: Mapping[str, Element]) -> None:
    """Declares labels in their order, with the keypoints and limbs of skeletons."""
    for name, label in labels.items():
        keypoints = [
            str(other.findtext("name"))
            for other in root.iterfind("meta//labels/label")
            if other.findtext("parent") == name
        ]

        # Limbs are lines of a drawing, between circles that carry the keypoints' names.
        svg = label.findtext("svg") or ""
        node = {
            _attribute(tag, "data-node-id"): _attribute(tag, "data-label-name")
            for tag in re.findall(r"<circle[^>]*>", svg)
        }
        limbs = [
            [node.get(_attribute(tag, f"data-node-{end}")) for end in ("from", "to")]
            for tag in re.findall(r"<line[^>]*>", svg)
        ]
        skeleton = [[keypoints.index(j) + 1 for j in limb if j in keypoints] for limb in limbs]

        builder.category(
            _category(name, labels),
            keypoints,
            skeleton=[limb for limb in skeleton if len(limb) == 2],
        )


def _attribute(tag: str, name: str) -> str:
    match = re.search(rf'{name}="([^"]*)"', tag)
    return match[1] if match else ""


@dataclass
class _Shapes:
    """Turns the shapes of one image into objects."""

    builder: DatasetBuilder
    image_id: int
    entry: Element
    labels: Mapping[str, Element]

    def add_all(self) -> dict[str, str]:
        """Adds the objects of the image.

        Returns:
            Label of a skeleton -> category of the object of another label that it belongs to.
        """
        objects: Objects = {}
        with_keypoints: list[tuple[Element, str]] = []
        for index, shape in enumerate(self.entry):
            track = shape.get("track")
            label = f"{shape.tag} {index}" if track is None else f"track {track}"
            where = f"{self.entry.get('name')}, {label}"
            if shape.get("label") and shape.tag in ("skeleton", "points"):
                with_keypoints.append((shape, where))
            else:
                self._add_area(objects, shape, index, where)

        # Keypoints come last: the object that they belong to may follow them in the file.
        adopted: dict[str, str] = {}
        for index, (shape, where) in enumerate(with_keypoints, start=len(self.entry)):
            category = self._add_keypoints(objects, shape, where, index)
            label = _category(shape.get("label", ""), self.labels)
            if shape.tag == "skeleton" and category is not None and category != label:
                adopted[label] = category
        for instance in objects.values():
            if instance.boxes or instance.polygons or instance.rles or instance.keypoints:
                self.builder.add(self.image_id, instance)
        return {label: category for label, category in adopted.items() if label in self.labels}

    def _add_area(self, objects: Objects, shape: Element, index: int, where: str) -> None:
        """Adds a shape to the object of its group, or as an object of its own."""
        label = shape.get("label", "")
        if not label:
            self.builder.problem(
                "object without category", where, "has no label", "choose one in CVAT"
            )
            return
        if shape.tag == "tag":
            suggestion = "it is left out: only objects are read"
            self.builder.problem("tag of a whole image", where, f'"{label}"', suggestion, False)
            return
        if shape.tag not in _AREAS:
            suggestion = f"draw it as {', '.join(_AREAS)} or skeleton"
            self.builder.problem("shape without area", where, f"a {shape.tag}", suggestion)
            return

        new = AnnotatedObject(_category(label, self.labels), where)
        instance = objects.setdefault(_key(shape, index), new)
        _read_attributes(instance, shape, self.builder)
        try:
            _read_area(instance, shape, self.builder.size(self.image_id))
        except (ValueError, KeyError, OverflowError) as error:
            self.builder.problem(
                "broken shape", where, f"{shape.tag}: {error}", "draw it again in CVAT"
            )

    def _add_keypoints(
        self, objects: Objects, shape: Element, where: str, index: int
    ) -> str | None:
        """Adds a skeleton, or points named after a keypoint, to the one object of its group.

        A skeleton without such an object is an object of its own.

        Returns:
            The category of the object; None, with a problem added, if there is none.
        """
        group = _key(shape, index)
        candidates = [
            instance
            for key, instance in objects.items()
            if len(key) == len(group) == 2 and key[1] == group[1]
        ]
        if shape.tag == "skeleton":
            if len(candidates) == 1:
                instance = candidates[0]
            else:
                label = _category(shape.get("label", ""), self.labels)
                instance = objects.setdefault((index,), AnnotatedObject(label, where))
            _read_attributes(instance, shape, self.builder)
            parts = list(shape.iterfind("points"))
        elif len(candidates) == 1:
            instance = candidates[0]
            parts = [shape]
        else:
            self.builder.problem(
                "point without object",
                where,
                f'points "{shape.get("label")}" are in a group '
                f"with {counted(len(candidates), 'object')}",
                "draw a skeleton instead, or group each with the polygon or box of its object",
            )
            return None

        for part in parts:
            try:
                ((x, y),) = _points(part).tolist()
            except ValueError:
                self.builder.problem(
                    "broken shape",
                    where,
                    f'points of "{part.get("label")}": {part.get("points", "")!r:.40}',
                    "draw one point for each label",
                )
                continue
            if part.get("outside", "0") != "1":
                visibility = 1 if part.get("occluded") == "1" else 2
                instance.keypoints[part.get("label", "")] = (
                    x - KEYPOINT_OFFSET,
                    y - KEYPOINT_OFFSET,
                    visibility,
                )
        return instance.category


def _key(shape: Element, index: int) -> tuple[Any, ...]:
    group = shape.get("group_id") or "0"
    return (index,) if group == "0" else (shape.get("label"), group)


def _read_attributes(instance: AnnotatedObject, shape: Element, builder: DatasetBuilder) -> None:
    """Reads whether to ignore an object, and its score; counts the other attributes."""
    for attribute in shape.iterfind("attribute"):
        name = attribute.get("name") or ""
        text = (attribute.text or "").strip()
        if name in _IGNORE:
            instance.ignore |= text.lower() in ("1", "true")
        elif name == "score" and re.fullmatch(r"[01](\.\d+)?", text):
            if float(text):
                instance.score = float(text)
        elif text and text.lower() != "false":
            builder.unused(f'attribute "{name}"', instance.where)


def _read_area(instance: AnnotatedObject, shape: Element, size: tuple[int, int]) -> None:
    """Adds a shape to an object.

    Raises:
        ValueError: the shape is broken.
    """
    angle = math.radians(float(shape.get("rotation") or 0))

    if shape.tag == "polygon":
        instance.polygons.append(_points(shape))
    elif shape.tag == "ellipse":
        center = (_number(shape, "cx"), _number(shape, "cy"))
        radii = (_number(shape, "rx"), _number(shape, "ry"))
        instance.polygons.append(ellipse(center, radii, angle))
    elif shape.tag == "box":
        x0, y0 = _number(shape, "xtl"), _number(shape, "ytl")
        x1, y1 = _number(shape, "xbr"), _number(shape, "ybr")
        if angle:
            instance.polygons.append(_rotated((x0, y0, x1, y1), angle))
        else:
            instance.boxes.append((x0, y0, x1, y1))
    else:
        instance.add_crop(*_read_mask(shape, size), size)


def _number(shape: Element, name: str) -> float:
    if not shape.get(name):
        raise ValueError(f"has no {name}")
    return float(shape.get(name, ""))


def _rotated(box: tuple[float, float, float, float], angle: float) -> np.ndarray:
    """The corners of a box that is rotated about its center."""
    x0, y0, x1, y1 = box
    center = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
    corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    cosine = math.cos(angle)
    sine = math.sin(angle)
    return (corners - center) @ np.array([[cosine, sine], [-sine, cosine]]) + center


def _read_mask(shape: Element, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """The mask, left and top of a mask shape, whose runs go row by row through its own box."""
    try:
        runs = np.array([int(v) for v in shape.get("rle", "").split(",")])
    except ValueError:
        raise ValueError(
            f"expected rle as whole numbers 2, 5, ..., got {shape.get('rle', '')[:40]!r}"
        ) from None

    height = int(_number(shape, "height"))
    width = int(_number(shape, "width"))
    if not (0 < height <= size[0] and 0 < width <= size[1]):
        raise ValueError(f"expected a mask inside the image, got {width} x {height}")
    if height * width > MOST_MASK:
        raise ValueError(f"expected at most {MOST_MASK:,} pixels, got {width} x {height}")
    total = sum(runs.tolist())
    if runs.min() < 0 or total > height * width:
        raise ValueError(f"expected RLE runs that sum to at most {height} x {width}, got {total}")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    crop = np.pad(inside, (0, height * width - len(inside))).reshape(height, width)
    return crop, int(_number(shape, "left")), int(_number(shape, "top"))


def _points(shape: Element) -> np.ndarray:
    """The points [n, 2] of x,y;x,y;...

    Raises:
        ValueError: they are written in another way.
    """
    text = shape.get("points", "")
    try:
        pairs = [[float(v) for v in point.split(",")] for point in text.split(";")]
    except ValueError:
        pairs = []
    if not pairs or any(len(pair) != 2 for pair in pairs):
        raise ValueError(f"expected points as x,y;x,y;..., got {text[:40]!r}")
    return np.array(pairs)


CVAT = Format(
    name="cvat",
    description='CVAT: annotations.xml of "CVAT for images 1.1" or "CVAT for video 1.1"',
    written_as=("cvat",),
    recognize=recognize,
    splits=splits,
    read=read,
    lists_images=True,
    write=write_cvat,
    suffix=".xml",
    sides_from_names=True,
)
