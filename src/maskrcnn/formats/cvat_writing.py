"""Writes CVAT's XML: "CVAT for images 1.1", with one label for areas and one for keypoints."""

from __future__ import annotations

import math
from collections.abc import Mapping
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.coco_types import CocoAnnotation, CocoCategory, CocoImage
from .reading import Annotated
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

SKELETON = " skeleton"
"""What the label of a category's keypoints ends in, where the category has areas too."""


def write_cvat(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes one XML file, which CVAT imports as "CVAT 1.1" (Upload annotations)."""
    categories = categories_by_id(annotated.content)
    areal = {
        raw["category_id"]
        for raw in annotated.content["annotations"]
        if raw.get("segmentation") or raw.get("bbox")
    }
    skeletons = {
        category_id: category["name"] + (SKELETON if category_id in areal else "")
        for category_id, category in categories.items()
        if category.get("keypoints")
    }

    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    SubElement(task, "name").text = annotated.name
    SubElement(task, "size").text = str(len(annotated.content["images"]))
    SubElement(task, "mode").text = "annotation"
    _write_labels(SubElement(task, "labels"), categories, skeletons, areal)

    for index, (image, raws) in enumerate(target.each()):
        attributes = {
            "id": str(index),
            "name": target.refer(image, target.file.parent),
            "width": str(image["width"]),
            "height": str(image["height"]),
        }
        node = SubElement(root, "image", attributes)
        for group, raw in enumerate(raws, start=1):
            category = categories[raw["category_id"]]
            skeleton = skeletons.get(raw["category_id"], "")
            written = _write_object(node, raw, image, category, skeleton, group, target.tolerance)
            if not written:
                lost.add("objects without box, mask and keypoints, left out", label_of(raw, image))

    ElementTree.indent(root)
    head = b'<?xml version="1.0" encoding="utf-8"?>\n'
    target.write(target.file, head + ElementTree.tostring(root, encoding="utf-8"))


def _write_object(
    node: Element,
    raw: CocoAnnotation,
    image: CocoImage,
    category: CocoCategory,
    skeleton: str,
    group: int,
    tolerance: float,
) -> bool:
    """Adds the shapes of one object to an image; False if it has none.

    Args:
        node: the image's element.
        raw: the object.
        image: its image.
        category: its category.
        skeleton: label of the category's skeleton.
        group: group_id that joins several shapes.
        tolerance: by how many pixels traced polygons may be simplified.
    """
    shapes = _area_shapes(raw, size_of(image), tolerance)
    keypoints = {name: (x, y, v) for name, x, y, v in keypoints_of(raw, category)}
    source = "auto" if "score" in raw else "manual"
    more = {"group_id": str(group)} if len(shapes) + bool(keypoints) > 1 else {}

    origin = {"source": source, "occluded": "0", "z_order": "0", **more}
    nodes = [
        SubElement(node, tag, {"label": category["name"], **origin, **values})
        for tag, values in shapes
    ]
    if keypoints:
        attributes = {"label": skeleton, "source": source, "z_order": "0", **more}
        nodes.append(SubElement(node, "skeleton", attributes))
        for name in category.get("keypoints", ()):
            _write_keypoint(nodes[-1], name, keypoints.get(name))

    for shape in nodes:
        if ignored(raw):
            SubElement(shape, "attribute", name="ignore").text = "true"
        if "score" in raw:
            SubElement(shape, "attribute", name="score").text = str(number(raw["score"]))
    return bool(nodes)


def _area_shapes(
    raw: CocoAnnotation, size: tuple[int, int], tolerance: float
) -> list[tuple[str, dict[str, str]]]:
    """Tag and attributes of the shapes that hold the mask and the box."""
    polygons = drawable(raw, tolerance)
    shapes = [
        ("polygon", {"points": ";".join(f"{x},{y}" for x, y in numbers(polygon))})
        for polygon in polygons
    ]
    if not polygons and (rle := rle_of(raw, size)) is not None and coco_rle.area(rle):
        crop, x0, y0 = coco_rle.decode_crop(rle)
        edges = np.flatnonzero(np.diff(crop.reshape(-1).astype(np.int8), prepend=0))
        runs = np.diff(edges, prepend=0, append=crop.size).tolist()
        mask = {
            "rle": ", ".join(map(str, runs)),
            "left": str(x0),
            "top": str(y0),
            "width": str(crop.shape[1]),
            "height": str(crop.shape[0]),
        }
        shapes.append(("mask", mask))

    if (box := own_box(raw, size)) is not None:
        sides = zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
        shapes.append(("box", {side: str(number(value)) for side, value in sides}))
    return shapes


def _write_keypoint(
    skeleton: Element, name: str, keypoint: tuple[float, float, int] | None
) -> None:
    """Adds one keypoint to a skeleton; None = it is unlabeled."""
    x, y, visibility = keypoint or (-KEYPOINT_OFFSET, -KEYPOINT_OFFSET, 0)
    SubElement(
        skeleton,
        "points",
        label=name,
        occluded=str(int(visibility == 1)),
        outside=str(int(visibility == 0)),
        points=f"{number(x + KEYPOINT_OFFSET)},{number(y + KEYPOINT_OFFSET)}",
    )


def _write_labels(
    labels: Element,
    categories: Mapping[int, CocoCategory],
    skeletons: Mapping[int, str],
    areal: set[int],
) -> None:
    """Declares the labels of all categories: those with areas, and those of skeletons."""
    for category_id, category in categories.items():
        if category_id in areal or category_id not in skeletons:
            _write_label(labels, category["name"], "any")
        if category_id in skeletons:
            skeleton = _write_label(labels, skeletons[category_id], "skeleton")
            SubElement(skeleton, "svg").text = _svg(category)
            for keypoint in category.get("keypoints", ()):
                label = _write_label(labels, keypoint, "points")
                SubElement(label, "parent").text = skeletons[category_id]


def _write_label(labels: Element, name: str, kind: str) -> Element:
    """Declares one label, with the attributes "ignore" and "score"."""
    label = SubElement(labels, "label")
    SubElement(label, "name").text = name
    SubElement(label, "type").text = kind
    attributes = SubElement(label, "attributes")

    for attribute, input_type, default, values in (
        ("ignore", "checkbox", "false", "false"),
        ("score", "number", "0", "0\n1\n0.000001"),
    ):
        entry = SubElement(attributes, "attribute")
        SubElement(entry, "name").text = attribute
        SubElement(entry, "mutable").text = "False"
        SubElement(entry, "input_type").text = input_type
        SubElement(entry, "default_value").text = default
        SubElement(entry, "values").text = values
    return label


def _svg(category: CocoCategory) -> str:
    """A drawing of a skeleton: its keypoints on a circle, and the limbs."""
    names = category.get("keypoints", [])
    angles = [2 * math.pi * index / len(names) for index in range(len(names))]
    points = [(50 + 40 * math.sin(angle), 50 - 40 * math.cos(angle)) for angle in angles]

    lines = []
    for a, b in category.get("skeleton") or ():
        (x1, y1), (x2, y2) = points[a - 1], points[b - 1]
        lines.append(
            f'<line x1="{x1:.2f}" y1="{y1:.2f}" x2="{x2:.2f}" y2="{y2:.2f}" stroke="black" '
            f'data-type="edge" data-node-from="{a}" stroke-width="0.5" data-node-to="{b}"></line>'
        )
    circles = [
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x:.2f}" cy="{y:.2f}" '
        f'stroke-width="0.1" data-type="element node" data-element-id="{number_}" '
        f'data-node-id="{number_}" data-label-name="{name}"></circle>'
        for number_, (name, (x, y)) in enumerate(zip(names, points, strict=True), start=1)
    ]
    return "".join([*lines, *circles])
