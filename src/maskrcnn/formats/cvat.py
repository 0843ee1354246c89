"""CVAT: annotations.xml of "CVAT for images 1.1".

polygon, ellipse, turned box, mask (runs, row by row, in its own box) -> mask; box -> box; skeleton -> keypoints with occluded and outside. Shapes of
one group_id and label are one object; a skeleton, or points named after a keypoint, belong to the one other object of their group. The attribute
"ignore" (or is_crowd) makes a region to ignore. In CVAT a label with a skeleton has no other shapes, so a category with both is two labels, "NAME"
and "NAME skeleton".

CVAT's coordinates are continuous: the middle of pixel 7 is 7.5. Source: docs.cvat.ai, "XML annotation format".
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.contours import ellipse
from ..annotations.problems import DataError
from .reading import Annotated, Builder, Drawn, image_folder, tracked
from .source import Source, with_slashes
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

NAME = "cvat"
LOOKS_LIKE = 'annotations.xml of "CVAT for images 1.1"'
SUFFIX = ".xml"
_SKELETON = " skeleton"
_AREAS = ("polygon", "box", "ellipse", "mask")


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether it is CVAT's."""
    return bool(_files(source))


def splits(source: Source) -> list[str]:
    """The files of a folder, or the subsets of a project."""
    files = _files(source)
    return (
        [p.stem for p in files]
        if len(files) > 1
        else sorted({i.get("subset", "") for i in _root(files[0]).iterfind("image")} - {""})
    )


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads one file, or one subset of it."""
    files = _files(source)
    path = next((p for p in files if p.stem == split), files[0])
    root = _root(path)
    if root.find("track") is not None:
        raise DataError(
            f'{path.name}: has tracks of "CVAT for video"; export the task as "CVAT for images 1.1"'
        )
    entries = [
        i
        for i in root.iterfind("image")
        if len(files) > 1 or not split or i.get("subset", "") == split
    ]
    folder = path.parent
    places = [
        b / p
        for b in (folder, folder.parent)
        for p in ("images", f"images/{split}", f"images/{split.lower()}", ".", "images/default")
    ]
    for entry in entries:
        entry.set(
            "name",
            with_slashes(entry.get("name", ""), [Path(images)] if images is not None else places),
        )
    names = [i.get("name", "") for i in entries]
    builder = Builder(
        f"{path.name}:{split}" if split and len(files) == 1 else path.name,
        image_folder(images, places, names),
    )
    labels = {
        name: label
        for label in root.iterfind("meta//labels/label")
        if (name := label.findtext("name")) and not label.findtext("parent")
    }
    keypoints = {j for i in entries for p in i.iterfind("points") if (j := p.get("label"))}
    _declare(
        builder, root, {name: label for name, label in labels.items() if name not in keypoints}
    )
    adopted: dict[str, str] = {}
    for entry in tracked(entries, "reading CVAT shapes"):
        size = entry.get("height"), entry.get("width")
        image = builder.image(
            entry.get("name", ""),
            (int(float(size[0])), int(float(size[1]))) if size[0] and size[1] else None,
        )
        if image is not None:
            adopted |= _shapes(builder, image, entry, labels)
    for skeleton, category in adopted.items():
        builder.adopt(category, skeleton)
    return builder.done()


def _files(source: Source) -> list[Path]:
    if source.path.is_file():
        return [source.path] if source.xml is not None and source.xml.tag == "annotations" else []
    found = sorted(source.path.glob("*.xml")) if source.path.is_dir() else []
    return (
        [p for p in found if b"<annotations" in p.read_bytes()[:2000]] if len(found) <= 20 else []
    )


def _root(path: Path) -> Element:
    root = Source(path).xml
    assert root is not None, path
    return root


def _category(label: str, labels: Mapping[str, Element]) -> str:
    base = label.removesuffix(_SKELETON)
    return (
        base
        if base in labels and label in labels and labels[label].findtext("type") == "skeleton"
        else label
    )


def _declare(builder: Builder, root: Element, labels: Mapping[str, Element]) -> None:
    """Labels in their order, with the keypoints and limbs of skeletons."""
    for name, label in labels.items():
        keypoints = [
            str(j.findtext("name"))
            for j in root.iterfind("meta//labels/label")
            if j.findtext("parent") == name
        ]
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
        merged = name != (base := _category(name, labels))
        builder.category(
            base if merged else name,
            keypoints,
            skeleton=[limb for limb in skeleton if len(limb) == 2],
        )


def _attribute(tag: str, name: str) -> str:
    found = re.search(rf'{name}="([^"]*)"', tag)
    return found[1] if found else ""


def _shapes(
    builder: Builder, image: int, entry: Element, labels: Mapping[str, Element]
) -> dict[str, str]:
    """Adds the objects of an image; gives the labels of skeletons that belong to objects of another label, and that."""
    adopted: dict[str, str] = {}
    objects: dict[Any, Drawn] = {}
    with_skeleton: list[tuple[Element, str]] = []
    for place, shape in enumerate(entry):
        where = f"{entry.get('name')}, {shape.tag} {place}"
        if not shape.get("label"):
            builder.problem("object without category", where, "has no label", "choose one in CVAT")
        elif shape.tag in ("skeleton", "points"):
            with_skeleton.append((shape, where))
        elif shape.tag == "tag":
            builder.problem(
                "tag of a whole image",
                where,
                f'"{shape.get("label")}"',
                "it is left out: only objects are read",
                False,
            )
        elif shape.tag not in _AREAS:
            builder.problem(
                "shape without area",
                where,
                f"a {shape.tag}",
                f"draw it as {', '.join(_AREAS)} or skeleton",
            )
        else:
            drawn = objects.setdefault(
                _key(shape, place), Drawn(_category(shape.get("label", ""), labels), where)
            )
            _flags(drawn, shape)
            try:
                _area(drawn, shape, builder.size(image))
            except (ValueError, KeyError) as error:
                builder.problem(
                    "broken shape", where, f"{shape.tag}: {error}", "draw it again in CVAT"
                )
    for number_, (shape, where) in enumerate(with_skeleton, start=len(entry)):
        category = _keypoints(builder, objects, shape, where, labels, number_)
        if shape.tag == "skeleton" and category not in (
            None,
            base := _category(shape.get("label", ""), labels),
        ):
            adopted[base] = str(category)
    for drawn in objects.values():
        if drawn.boxes or drawn.polygons or drawn.rles or drawn.keypoints:
            builder.add(image, drawn)
    return {skeleton: category for skeleton, category in adopted.items() if skeleton in labels}


def _key(shape: Element, place: int) -> tuple[Any, ...]:
    group = shape.get("group_id") or "0"
    return (place,) if group == "0" else (shape.get("label"), group)


def _flags(drawn: Drawn, shape: Element) -> None:
    for attribute in shape.iterfind("attribute"):
        if attribute.get("name") in ("ignore", "is_crowd", "iscrowd"):
            drawn.ignore |= (attribute.text or "").strip().lower() in ("1", "true")


def _area(drawn: Drawn, shape: Element, size: tuple[int, int]) -> None:
    def value(name: str) -> float:
        if not shape.get(name):
            raise ValueError(f"has no {name}")
        return float(shape.get(name, ""))

    angle = math.radians(float(shape.get("rotation") or 0))
    if shape.tag == "polygon":
        drawn.polygons.append(_points(shape))
    elif shape.tag == "ellipse":
        drawn.polygons.append(
            ellipse((value("cx"), value("cy")), (value("rx"), value("ry")), angle)
        )
    elif shape.tag == "box":
        x0, y0, x1, y1 = value("xtl"), value("ytl"), value("xbr"), value("ybr")
        if angle:  # a turned rectangle has no box of its own
            center = np.array([(x0 + x1) / 2, (y0 + y1) / 2])
            turn = np.array(
                [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
            )
            drawn.polygons.append(
                (np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - center) @ turn + center
            )
        else:
            drawn.boxes.append((x0, y0, x1, y1))
    else:
        runs = np.array([int(v) for v in shape.get("rle", "").split(",")])
        height, width = int(value("height")), int(value("width"))
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        if len(inside) > height * width:
            raise ValueError(f"its runs sum to {len(inside)}, more than {height} x {width}")
        crop = np.pad(inside, (0, height * width - len(inside))).reshape(height, width)
        drawn.rles.append(coco_rle.encode_crop(crop, int(value("left")), int(value("top")), size))


def _points(shape: Element) -> np.ndarray:
    return np.array(
        [[float(v) for v in point.split(",")] for point in shape.get("points", "").split(";")]
    ).reshape(-1, 2)


def _keypoints(
    builder: Builder,
    objects: dict[Any, Drawn],
    shape: Element,
    where: str,
    labels: Mapping[str, Element],
    place: int,
) -> str | None:
    """Gives a skeleton, or points named after a keypoint, to the one object of its group; a skeleton alone is an object. Gives the object's category."""
    group = _key(shape, place)
    mates = [
        drawn
        for key, drawn in objects.items()
        if len(key) == len(group) == 2 and key[1] == group[1]
    ]
    if shape.tag == "skeleton":
        drawn = (
            mates[0]
            if len(mates) == 1
            else objects.setdefault(
                (place,), Drawn(_category(shape.get("label", ""), labels), where)
            )
        )
        _flags(drawn, shape)
        parts = list(shape.iterfind("points"))
    elif len(mates) == 1:
        drawn, parts = mates[0], [shape]
    else:
        suggestion = "draw a skeleton instead, or group each with the polygon or box of its object"
        builder.problem(
            "point of no object",
            where,
            f'points "{shape.get("label")}" are in a group with {len(mates)} objects',
            suggestion,
        )
        return None
    for part in parts:
        try:
            ((x, y),) = _points(part).tolist()
        except ValueError:
            suggestion = "draw one point for each label"
            builder.problem(
                "broken shape",
                where,
                f'points of "{part.get("label")}": {part.get("points", "")!r:.40}',
                suggestion,
            )
            continue
        if part.get("outside", "0") != "1":
            drawn.keypoints[part.get("label", "")] = (
                x - KEYPOINT_OFFSET,
                y - KEYPOINT_OFFSET,
                1 if part.get("occluded") == "1" else 2,
            )
    return drawn.category


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes one XML file, which CVAT takes as "CVAT 1.1" (Upload annotations)."""
    categories = names_of(annotated.content)
    areal = {
        r["category_id"]
        for r in annotated.content["annotations"]
        if r.get("segmentation") or r.get("bbox")
    }
    skeletons = {
        c: entry["name"] + (_SKELETON if c in areal else "")
        for c, entry in categories.items()
        if entry.get("keypoints")
    }
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    for name, text in (
        ("name", annotated.name),
        ("size", str(len(annotated.content["images"]))),
        ("mode", "annotation"),
    ):
        SubElement(task, name).text = text
    _write_labels(SubElement(task, "labels"), categories, skeletons, areal)
    for place, (image, raws) in enumerate(target.each()):
        name = target.refer(image, target.file.parent)
        node = SubElement(
            root,
            "image",
            id=str(place),
            name=name,
            width=str(image["width"]),
            height=str(image["height"]),
        )
        for group, raw in enumerate(raws, start=1):
            category = categories[raw["category_id"]]
            _write_object(
                node,
                raw,
                image,
                category,
                skeletons.get(raw["category_id"], ""),
                group,
                target,
                losses,
            )
    ElementTree.indent(root)
    target.write(
        target.file,
        b'<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(root, encoding="utf-8"),
    )


def _write_object(
    node: Element,
    raw: dict,
    image: dict,
    category: dict,
    skeleton: str,
    group: int,
    target: Target,
    losses: Losses,
) -> None:
    size = size_of(image)
    shapes: list[tuple[str, dict[str, str]]] = []
    polygons = drawable(raw, target.tolerance)
    shapes += [
        ("polygon", {"points": ";".join(f"{x},{y}" for x, y in numbers(p))}) for p in polygons
    ]
    if not polygons and (rle := rle_of(raw, size)) is not None and coco_rle.area(rle):
        crop, x0, y0 = coco_rle.decode_crop(rle)
        edges = np.flatnonzero(np.diff(crop.reshape(-1).astype(np.int8), prepend=0))
        runs = ", ".join(map(str, np.diff(edges, prepend=0, append=crop.size).tolist()))
        shapes.append(
            (
                "mask",
                {
                    "rle": runs,
                    "left": str(x0),
                    "top": str(y0),
                    "width": str(crop.shape[1]),
                    "height": str(crop.shape[0]),
                },
            )
        )
    if (box := own_box(raw, size)) is not None:
        shapes.append(
            (
                "box",
                {
                    side: str(number(v))
                    for side, v in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)
                },
            )
        )
    keypoints = {name: (x, y, v) for name, x, y, v in keypoints_of(raw, category)}
    more = {"group_id": str(group)} if len(shapes) + bool(keypoints) > 1 else {}
    origin = {
        "source": "auto" if "score" in raw else "manual",
        "occluded": "0",
        "z_order": "0",
        **more,
    }
    nodes = [
        SubElement(node, tag, {"label": category["name"], **origin, **values})
        for tag, values in shapes
    ]
    if keypoints:
        nodes.append(
            SubElement(
                node,
                "skeleton",
                {"label": skeleton, "source": origin["source"], "z_order": "0", **more},
            )
        )
        for name in category["keypoints"]:
            x, y, v = keypoints.get(name, (-KEYPOINT_OFFSET, -KEYPOINT_OFFSET, 0))
            place = f"{number(x + KEYPOINT_OFFSET)},{number(y + KEYPOINT_OFFSET)}"
            SubElement(
                nodes[-1],
                "points",
                label=name,
                occluded=str(int(v == 1)),
                outside=str(int(v == 0)),
                points=place,
            )
    for shape in nodes:
        if ignored(raw):
            SubElement(shape, "attribute", name="ignore").text = "true"
        if "score" in raw:
            SubElement(shape, "attribute", name="score").text = str(number(raw["score"]))
    if not nodes:
        losses.add("objects without box, mask and keypoints, left out", label_of(raw, image))


def _write_labels(
    labels: Element,
    categories: Mapping[int, dict[str, Any]],
    skeletons: Mapping[int, str],
    areal: set[int],
) -> None:
    def label(name: str, kind: str) -> Element:
        node = SubElement(labels, "label")
        SubElement(node, "name").text = name
        SubElement(node, "type").text = kind
        attributes = SubElement(node, "attributes")
        for attribute, input_type, default, values in (
            ("ignore", "checkbox", "false", "false"),
            ("score", "number", "0", "0\n1\n0.000001"),
        ):
            entry = SubElement(attributes, "attribute")
            parts = (
                ("name", attribute),
                ("mutable", "False"),
                ("input_type", input_type),
                ("default_value", default),
                ("values", values),
            )
            for part, text in parts:
                SubElement(entry, part).text = text
        return node

    for number_, category in categories.items():
        if number_ in areal or number_ not in skeletons:
            label(category["name"], "any")
        if number_ in skeletons:
            SubElement(label(skeletons[number_], "skeleton"), "svg").text = _svg(category)
            for keypoint in category["keypoints"]:
                SubElement(label(keypoint, "points"), "parent").text = skeletons[number_]


def _svg(category: Mapping[str, Any]) -> str:
    """A skeleton's drawing: its keypoints around a circle, and the limbs."""
    keypoints = category["keypoints"]
    turns = [2 * math.pi * j / len(keypoints) for j in range(len(keypoints))]
    places = [(50 + 40 * math.sin(t), 50 - 40 * math.cos(t)) for t in turns]
    lines = [
        f'<line x1="{places[a - 1][0]:.2f}" y1="{places[a - 1][1]:.2f}" x2="{places[b - 1][0]:.2f}" y2="{places[b - 1][1]:.2f}" stroke="black" '
        f'data-type="edge" data-node-from="{a}" stroke-width="0.5" data-node-to="{b}"></line>'
        for a, b in category.get("skeleton") or ()
    ]
    circles = [
        f'<circle r="1.5" stroke="black" fill="#b3b3b3" cx="{x:.2f}" cy="{y:.2f}" stroke-width="0.1" data-type="element node" '
        f'data-element-id="{n}" data-node-id="{n}" data-label-name="{name}"></circle>'
        for n, (name, (x, y)) in enumerate(zip(keypoints, places, strict=True), start=1)
    ]
    return "".join([*lines, *circles])
