"""VIA 2 (VGG Image Annotator): one project file, or the exported JSON or CSV, with regions.

polygon, polyline, circle, ellipse -> mask; rect -> box; point -> keypoint. A region's category is its attribute "category" (or class, label, name,
type, or the only one). Regions of one "group" and category are one object; a point's attribute "keypoint" names it, "visibility" is COCO's. The
attribute "ignore" makes a region to ignore. VIA itself has none of these: they are attributes like any other.

VIA's coordinates are continuous, and whole numbers where it was the mouse that drew: the middle of pixel 7 is 7.5. It knows no sizes of images:
they are read from the files. Source: robots.ox.ac.uk/~vgg/software/via, version 2.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.contours import ellipse
from ..annotations.problems import DataError
from .reading import Annotated, Builder, Drawn, image_folder, tracked
from .source import Source, read_text, with_slashes
from .writing import (
    Losses,
    Target,
    ignored,
    keypoints_of,
    label_of,
    names_of,
    number,
    numbers,
    own_box,
    polygons,
    size_of,
)

NAME = "via"
LOOKS_LIKE = "a project or export of VIA 2 (JSON with _via_img_metadata or regions, or its CSV)"
SUFFIX = ".json"
_CATEGORY = ("category", "class", "label", "name", "type", "object", "species")
_CSV_HEAD = {"filename", "region_shape_attributes", "region_attributes"}


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether it is VIA's."""
    return _metadata(source) is not None


def splits(source: Source) -> list[str]:
    """The files of a folder."""
    return [p.stem for p in _files(source)] if source.path.is_dir() else []


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads one file."""
    if source.path.is_dir():
        source = Source(next(p for p in _files(source) if p.stem == split))
    project = source.json if isinstance(source.json, dict) else {}
    default = str(
        project.get("_via_settings", {}).get("core", {}).get("default_filepath", "")
    ).replace("\\", "/")
    folder = source.folder
    places = [folder, folder / default, folder / "images", folder.parent, folder.parent / "images"]
    looked = [Path(images)] if images is not None else places
    entries = [
        {**e, "filename": with_slashes(str(e["filename"]), looked)} for e in _metadata(source) or []
    ]
    builder = Builder(source.name, image_folder(images, places, [e["filename"] for e in entries]))
    declared = project.get("_via_attributes", {}).get("region", {})
    key = _category_key(builder, entries, declared)
    options = declared.get(key, {}).get("options", {})
    for name in options:
        builder.category(str(name).strip())
    for entry in tracked(entries, "reading VIA regions"):
        image = builder.image(entry["filename"])
        if image is not None:
            _regions(builder, image, entry["filename"], entry["regions"], key)
    return builder.done()


def _files(source: Source) -> list[Path]:
    """Those of a folder that are VIA's; one that cannot be read matters only where no other can."""
    found, broken = [], []
    for path in sorted([*source.path.glob("*.json"), *source.path.glob("*.csv")])[:20]:
        try:
            found += [path] if _metadata(Source(path)) is not None else []
        except DataError as error:
            broken.append(error)
    if broken and not found:
        raise broken[0]
    return found


def _metadata(source: Source) -> list[dict[str, Any]] | None:
    """filename and regions of each image; None where this is not VIA's."""
    if source.path.is_dir():
        files = _files(source)
        return _metadata(Source(files[0])) if files else None
    if source.path.suffix.lower() == ".csv":
        return _from_csv(source.path)
    content = source.json
    if not isinstance(content, dict):
        return None
    if {"project", "metadata", "view"} <= content.keys():
        raise DataError(
            f"{source.name}: is a VIA 3 project, which is not read; export it as COCO in VIA 3"
        )
    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, dict) or not all(
        isinstance(e, dict) and "filename" in e and "regions" in e for e in entries.values()
    ):
        return None
    if not entries and "_via_img_metadata" not in content:
        return None
    # before version 2, regions were an object with numbers for keys
    return [
        {**e, "regions": list(r.values()) if isinstance(r := e["regions"], dict) else r}
        for e in entries.values()
    ]


def _from_csv(path: Path) -> list[dict[str, Any]] | None:
    try:
        rows = list(
            csv.DictReader(io.StringIO(read_text(path).removeprefix("#")))
        )  # VIA 1 begins with "#filename"
    except csv.Error as error:
        raise DataError(
            f"{path.name}: is not CSV: {error}; export it again from the tool"
        ) from None
    if not rows or not set(rows[0]) >= _CSV_HEAD:
        return None
    entries: dict[str, dict[str, Any]] = {}
    for line, row in enumerate(rows, start=2):
        entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
        try:
            shape, attributes = (
                json.loads(row["region_shape_attributes"] or "{}"),
                json.loads(row["region_attributes"] or "{}"),
            )
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name}, line {line}: region attributes are not JSON: {error}; export the file again"
            ) from None
        if shape:
            entry["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    return list(entries.values())


def _category_key(
    builder: Builder, entries: Sequence[Mapping[str, Any]], declared: Mapping[str, Any]
) -> str:
    """The attribute that says what an object is; "" if no region has any."""
    used = Counter(
        key for e in entries for r in e["regions"] for key in _part(r, "region_attributes")
    )
    keys = {key.lower(): key for key in [*used, *declared]}
    known = next((keys[k] for k in _CATEGORY if k in keys), None)
    rivals = [key for key in used if key.lower() in _CATEGORY]
    if known is not None and known.lower() != "category" and len(rivals) > 1:
        detail = f'"{known}" was taken, of the attributes {", ".join(rivals)}'
        builder.problem(
            "attribute of the category guessed",
            builder.name,
            detail,
            'rename the one that is the category to "category"',
            False,
        )
    chosen = [k for k, d in declared.items() if d.get("type") in ("dropdown", "radio", "checkbox")]
    if known is None and len(keys) > 1 and len(chosen) != 1:
        raise DataError(
            f'{builder.name}: regions have the attributes {", ".join(keys.values())}; rename the one that is the category to "category"'
        )
    return known or (chosen[0] if len(chosen) == 1 else next(iter(keys.values()), ""))


def _regions(
    builder: Builder, image: int, file: str, regions: Sequence[Mapping[str, Any]], key: str
) -> None:
    objects: dict[Any, Drawn] = {}
    points: list[tuple[Mapping[str, Any], Mapping[str, Any], str, Any]] = []
    for place, region in enumerate(regions):
        where = f"{file}, region {place}"
        shape, attributes = _part(region, "shape_attributes"), _part(region, "region_attributes")
        category = _value(attributes.get(key)) if key else "object"
        if not category:
            builder.problem(
                "region without category",
                where,
                f'its attribute "{key}" is {attributes.get(key)!r}',
                "choose one in VIA",
            )
            continue
        group = (
            (category, str(attributes["group"]))
            if attributes.get("group") not in (None, "")
            else (place,)
        )
        if shape.get("name") == "point":
            points.append((shape, attributes, where, group))
            continue
        drawn = objects.setdefault(group, Drawn(category, where))
        drawn.ignore |= str(attributes.get("ignore", "")).lower() in ("1", "true", "yes")
        try:
            _shape(drawn, shape)
        except (ValueError, TypeError, KeyError) as error:
            builder.problem(
                "broken region",
                where,
                f"{shape.get('name')}: {error}",
                "draw it as polygon, rect, circle or ellipse",
            )
    for shape, attributes, where, group in points:
        if not attributes.get("keypoint") or len(group) != 2:
            suggestion = 'give it the attributes "keypoint" (its name) and "group", and the polygon or rect of its object the same group'
            builder.problem(
                "point of no object", where, "has no attribute keypoint or group", suggestion
            )
            continue
        try:
            x, y = float(shape["cx"]) - KEYPOINT_OFFSET, float(shape["cy"]) - KEYPOINT_OFFSET
            visibility = int(_value(attributes.get("visibility")) or 2)
        except (ValueError, TypeError, KeyError):
            detail = f"cx, cy, visibility are {', '.join(repr(v) for v in (shape.get('cx'), shape.get('cy'), attributes.get('visibility')))}"
            builder.problem(
                "broken point",
                where,
                detail,
                "draw it again; visibility is 2 (seen), 1 (hidden), 0 (absent) or left empty",
            )
            continue
        objects.setdefault(group, Drawn(group[0], where)).keypoints[str(attributes["keypoint"])] = (
            x,
            y,
            visibility,
        )
    for drawn in objects.values():
        if drawn.boxes or drawn.polygons or drawn.keypoints:
            builder.add(image, drawn)


def _part(region: Any, name: str) -> Mapping[str, Any]:
    """The shape or the attributes of a region; empty where there are none."""
    part = region.get(name) if isinstance(region, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _value(given: Any) -> str:
    """An attribute's value: a text, or the only chosen one of a checkbox."""
    if isinstance(given, Mapping):
        chosen = [name for name, on in given.items() if on]
        return str(chosen[0]) if len(chosen) == 1 else ""
    return "" if given is None else str(given).strip()


def _shape(drawn: Drawn, shape: Mapping[str, Any]) -> None:
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        x, y = shape["all_points_x"], shape["all_points_y"]
        if len(x) != len(y):
            raise ValueError(f"{len(x)} x and {len(y)} y coordinates")
        drawn.polygons.append(
            np.stack([np.array(x, dtype=float), np.array(y, dtype=float)], axis=1)
        )
    elif kind == "rect":
        x, y = float(shape["x"]), float(shape["y"])
        drawn.boxes.append((x, y, x + float(shape["width"]), y + float(shape["height"])))
    elif kind in ("circle", "ellipse"):
        radii = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
        center = (float(shape["cx"]), float(shape["cy"]))
        drawn.polygons.append(
            ellipse(center, (float(radii[0]), float(radii[1])), float(shape.get("theta") or 0))
        )
    else:
        raise ValueError("this shape has no area")


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes a project file, which VIA opens by Project > Load."""
    categories = names_of(annotated.content)
    metadata: dict[str, Any] = {}
    for image, raws in target.each():
        name = target.refer(image, target.file.parent)
        path = (annotated.images or Path()) / image["file_name"]
        bytes_ = path.stat().st_size if path.is_file() else -1
        regions = [
            r
            for n, raw in enumerate(raws, start=1)
            for r in _written(raw, image, categories[raw["category_id"]], n, target, losses)
        ]
        metadata[f"{name}{bytes_}"] = {
            "filename": name,
            "size": bytes_,
            "regions": regions,
            "file_attributes": {},
        }
    for category in categories.values():
        if category.get("skeleton"):
            losses.add("limbs of skeletons", category["name"])
    text = {
        name: {"type": "text", "description": "", "default_value": ""}
        for name in ("group", "keypoint", "visibility", "ignore", "score")
    }
    dropdown = {
        "type": "dropdown",
        "description": "",
        "options": {c["name"]: "" for c in categories.values()},
        "default_options": {},
    }
    project = {
        "_via_settings": {
            "ui": {
                "annotation_editor_height": 25,
                "annotation_editor_fontsize": 0.8,
                "leftsidebar_width": 18,
                "image_grid": {
                    "img_height": 80,
                    "rshape_fill": "none",
                    "rshape_fill_opacity": 0.3,
                    "rshape_stroke": "yellow",
                    "rshape_stroke_width": 2,
                    "show_region_shape": True,
                    "show_image_policy": "all",
                },
                "image": {
                    "region_label": "category",
                    "region_color": "category",
                    "region_label_font": "10px Sans",
                },
            },
            "core": {"buffer_size": 18, "filepath": {}, "default_filepath": ""},
            "project": {"name": target.file.stem},
        },
        "_via_img_metadata": metadata,
        "_via_attributes": {"region": {"category": dropdown, **text}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(metadata),
    }
    target.write(target.file, json.dumps(project))


def _written(
    raw: dict, image: dict, category: dict, group: int, target: Target, losses: Losses
) -> list[dict[str, Any]]:
    size = size_of(image)
    shapes: list[dict[str, Any]] = []
    for polygon in polygons(raw, size, target.tolerance):
        x, y = numbers(polygon.T)
        shapes.append({"name": "polygon", "all_points_x": x, "all_points_y": y})
    if (box := own_box(raw, size)) is not None:
        x0, y0, x1, y1 = box
        shapes.append(
            {
                "name": "rect",
                "x": number(x0),
                "y": number(y0),
                "width": number(x1 - x0),
                "height": number(y1 - y0),
            }
        )
    attributes: dict[str, Any] = {"category": category["name"]}
    if ignored(raw):
        attributes["ignore"] = "1"
    if "score" in raw:
        attributes["score"] = str(number(raw["score"]))
    keypoints = keypoints_of(raw, category)
    if keypoints or len(shapes) > 1:
        attributes["group"] = str(group)
    if not keypoints and not shapes:
        losses.add("objects without box, mask and keypoints, left out", label_of(raw, image))
    regions = [{"shape_attributes": shape, "region_attributes": attributes} for shape in shapes]
    for name, x, y, visibility in keypoints:
        point = {
            "name": "point",
            "cx": number(x + KEYPOINT_OFFSET),
            "cy": number(y + KEYPOINT_OFFSET),
        }
        more = {"keypoint": name, "visibility": str(visibility)}
        regions.append({"shape_attributes": point, "region_attributes": attributes | more})
    return regions
