"""VIA 2 (VGG Image Annotator): one project file, or the exported JSON or CSV, with regions.

polygon, polyline, circle, ellipse -> mask; rect -> box; point -> keypoint. A region's category is
its attribute "category" (or class, label, name, type, or the only one). Regions of one "group" and
category are one object. A point's attribute "keypoint" names it, and "visibility" is COCO's. The
attribute "ignore" marks a region to ignore. To VIA these are attributes like any other.

VIA's coordinates are continuous, and whole numbers if drawn by mouse: the center of pixel 7 is
7.5. VIA stores no image sizes, so they are read from the images.
Source: robots.ox.ac.uk/~vgg/software/via, version 2.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.coco_types import CocoAnnotation, CocoCategory, CocoImage
from ..annotations.contours import ellipse
from ..annotations.problems import DataError
from .annotation_source import AnnotationSource, read_text, with_slashes
from .format import Format
from .reading import Annotated, AnnotatedObject, DatasetBuilder, image_folder, tracked
from .writing import (
    ConversionTarget,
    Unrepresentable,
    categories_by_id,
    ignored,
    keypoints_of,
    label_of,
    number,
    numbers,
    own_box,
    polygons,
    size_of,
)

_CATEGORY = ("category", "class", "label", "name", "type", "object", "species")
_CHOICES = ("dropdown", "radio", "checkbox")
_CSV_HEAD = {"filename", "region_shape_attributes", "region_attributes"}
_MOST_FILES = 20  # files of a folder that are parsed to recognize it


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or a file of the folder, is VIA's."""
    return _metadata(source) is not None


def splits(source: AnnotationSource) -> list[str]:
    """Names of a folder's files."""
    return [p.stem for p in _files(source)] if source.path.is_dir() else []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one file."""
    if source.path.is_dir():
        source = AnnotationSource(next(p for p in _files(source) if p.stem == split))
    project = source.json if isinstance(source.json, dict) else {}
    core = project.get("_via_settings", {}).get("core", {})
    default = str(core.get("default_filepath", "")).replace("\\", "/")

    folder = source.folder
    candidates = [
        folder,
        folder / default,
        folder / "images",
        folder.parent,
        folder.parent / "images",
    ]
    searched = candidates if images is None else [Path(images)]
    entries = [
        {**entry, "filename": with_slashes(str(entry["filename"]), searched)}
        for entry in _metadata(source) or []
    ]
    file_names = [entry["filename"] for entry in entries]
    builder = DatasetBuilder(source.name, image_folder(images, candidates, file_names))

    declared = project.get("_via_attributes", {}).get("region", {})
    key = _category_key(builder, entries, declared)
    for name in declared.get(key, {}).get("options", {}):
        builder.category(str(name).strip())
    for entry in tracked(entries, "reading VIA regions"):
        image_id = builder.image(entry["filename"])
        if image_id is not None:
            _Regions(builder, image_id, entry["filename"], key).add_all(entry["regions"])
    return builder.build()


def _files(source: AnnotationSource) -> list[Path]:
    """The VIA files of a folder.

    Raises:
        DataError: a file cannot be parsed, and there is no other.
    """
    files: list[Path] = []
    errors: list[DataError] = []
    for path in sorted([*source.path.glob("*.json"), *source.path.glob("*.csv")])[:_MOST_FILES]:
        try:
            if _metadata(AnnotationSource(path)) is not None:
                files.append(path)
        except DataError as error:
            errors.append(error)
    if errors and not files:
        raise errors[0]
    return files


def _metadata(source: AnnotationSource) -> list[dict[str, Any]] | None:
    """filename and regions of each image; None if this is not VIA's."""
    if source.path.is_dir():
        files = _files(source)
        return _metadata(AnnotationSource(files[0])) if files else None
    if source.path.suffix.lower() == ".csv":
        return _from_csv(source.path)
    content = source.json
    if not isinstance(content, dict):
        return None
    if {"project", "metadata", "view"} <= content.keys():
        raise DataError(
            f"{source.name}: VIA 3 projects are not supported; export it as COCO in VIA 3"
        )

    entries = content.get("_via_img_metadata", content)
    if not isinstance(entries, dict):
        return None
    for entry in entries.values():
        if not (isinstance(entry, dict) and "filename" in entry and "regions" in entry):
            return None
    if not entries and "_via_img_metadata" not in content:
        return None
    return [{**entry, "regions": _as_list(entry["regions"])} for entry in entries.values()]


def _as_list(regions: Any) -> Any:
    """Regions as a list; before version 2 they were an object with numbers for keys."""
    return list(regions.values()) if isinstance(regions, dict) else regions


def _from_csv(path: Path) -> list[dict[str, Any]] | None:
    """filename and regions of each image; None if the columns are not VIA's."""
    text = read_text(path).removeprefix("#")  # VIA 1 starts with "#filename"
    try:
        rows = list(csv.DictReader(io.StringIO(text)))
    except csv.Error as error:
        raise DataError(
            f"{path.name}: not valid CSV: {error}; export it again from the tool"
        ) from None
    if not rows or not set(rows[0]) >= _CSV_HEAD:
        return None

    entries: dict[str, dict[str, Any]] = {}
    for line, row in enumerate(rows, start=2):
        entry = entries.setdefault(row["filename"], {"filename": row["filename"], "regions": []})
        try:
            shape = json.loads(row["region_shape_attributes"] or "{}")
            attributes = json.loads(row["region_attributes"] or "{}")
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path.name}, line {line}: region attributes are not valid JSON: {error}; "
                "export the file again"
            ) from None
        if shape:
            entry["regions"].append({"shape_attributes": shape, "region_attributes": attributes})
    return list(entries.values())


def _category_key(
    builder: DatasetBuilder, entries: Sequence[Mapping[str, Any]], declared: Mapping[str, Any]
) -> str:
    """The attribute that holds the category; "" if no region has attributes.

    Raises:
        DataError: several attributes could be the category.
    """
    used = Counter(
        key
        for entry in entries
        for region in entry["regions"]
        for key in _part(region, "region_attributes")
    )
    keys = {key.lower(): key for key in [*used, *declared]}
    known = next((keys[name] for name in _CATEGORY if name in keys), None)

    # "category" is certain; any other name is a guess if several attributes could be meant.
    rivals = [key for key in used if key.lower() in _CATEGORY]
    if known is not None and known.lower() != "category" and len(rivals) > 1:
        builder.problem(
            "attribute of the category guessed",
            builder.name,
            f'"{known}" is used as the category, of the attributes {", ".join(rivals)}',
            'rename the one that is the category to "category"',
            False,
        )
    if known is not None:
        return known

    chosen = [key for key, entry in declared.items() if entry.get("type") in _CHOICES]
    if len(chosen) == 1:
        return chosen[0]
    if len(keys) > 1:
        raise DataError(
            f"{builder.name}: regions have the attributes {', '.join(keys.values())}; "
            'rename the one that is the category to "category"'
        )
    return next(iter(keys.values()), "")


@dataclass
class _Point:
    """A region that is a point, with the group that it belongs to."""

    shape: Mapping[str, Any]
    attributes: Mapping[str, Any]
    where: str
    group: tuple[Any, ...]


@dataclass
class _Regions:
    """Turns the regions of one image into objects."""

    builder: DatasetBuilder
    image_id: int
    file: str
    key: str
    """The attribute that holds the category."""

    def add_all(self, regions: Sequence[Any]) -> None:
        """Adds the objects of the image."""
        objects: dict[tuple[Any, ...], AnnotatedObject] = {}
        points: list[_Point] = []
        for index, region in enumerate(regions):
            where = f"{self.file}, region {index}"
            shape = _part(region, "shape_attributes")
            attributes = _part(region, "region_attributes")
            category = _value(attributes.get(self.key)) if self.key else "object"
            if not category:
                self.builder.problem(
                    "region without category",
                    where,
                    f'its attribute "{self.key}" is {attributes.get(self.key)!r}',
                    "choose one in VIA",
                )
                continue

            group: tuple[Any, ...] = (index,)
            if attributes.get("group") not in (None, ""):
                group = (category, str(attributes["group"]))
            if shape.get("name") == "point":
                points.append(_Point(shape, attributes, where, group))
                continue

            instance = objects.setdefault(group, AnnotatedObject(category, where))
            instance.ignore |= str(attributes.get("ignore", "")).lower() in ("1", "true", "yes")
            try:
                _read_shape(instance, shape)
            except (ValueError, TypeError, KeyError) as error:
                self.builder.problem(
                    "broken region",
                    where,
                    f"{shape.get('name')}: {error}",
                    "draw it as polygon, rect, circle or ellipse",
                )

        # Points come last: the object that they belong to may follow them in the file.
        for point in points:
            self._add_point(objects, point)
        for instance in objects.values():
            if instance.boxes or instance.polygons or instance.keypoints:
                self.builder.add(self.image_id, instance)

    def _add_point(self, objects: dict[tuple[Any, ...], AnnotatedObject], point: _Point) -> None:
        """Adds a keypoint to the object of its group."""
        shape = point.shape
        attributes = point.attributes
        if not attributes.get("keypoint") or len(point.group) != 2:
            self.builder.problem(
                "point without object",
                point.where,
                "has no attribute keypoint or group",
                'give it the attributes "keypoint" (its name) and "group", '
                "and give the polygon or rect of its object the same group",
            )
            return

        try:
            x = float(shape["cx"]) - KEYPOINT_OFFSET
            y = float(shape["cy"]) - KEYPOINT_OFFSET
            visibility = int(_value(attributes.get("visibility")) or 2)
        except (ValueError, TypeError, KeyError):
            values = (shape.get("cx"), shape.get("cy"), attributes.get("visibility"))
            self.builder.problem(
                "broken point",
                point.where,
                f"cx, cy, visibility are {', '.join(map(repr, values))}",
                "draw it again; visibility is 2 (visible), 1 (hidden), 0 (absent) or empty",
            )
            return
        instance = objects.setdefault(point.group, AnnotatedObject(point.group[0], point.where))
        instance.keypoints[str(attributes["keypoint"])] = (x, y, visibility)


def _part(region: Any, name: str) -> Mapping[str, Any]:
    """The shape or the attributes of a region; empty if there are none."""
    part = region.get(name) if isinstance(region, Mapping) else None
    return part if isinstance(part, Mapping) else {}


def _value(given: Any) -> str:
    """An attribute's value: a text, or the only chosen option of a checkbox."""
    if isinstance(given, Mapping):
        chosen = [name for name, is_on in given.items() if is_on]
        return str(chosen[0]) if len(chosen) == 1 else ""
    return "" if given is None else str(given).strip()


def _read_shape(instance: AnnotatedObject, shape: Mapping[str, Any]) -> None:
    """Adds a shape to an object.

    Raises:
        ValueError: the shape has no area, or is broken.
    """
    kind = shape.get("name")
    if kind in ("polygon", "polyline"):
        x = shape["all_points_x"]
        y = shape["all_points_y"]
        if len(x) != len(y):
            raise ValueError(f"expected as many y as x coordinates, got {len(x)} x and {len(y)} y")
        points = [np.array(x, dtype=float), np.array(y, dtype=float)]
        instance.polygons.append(np.stack(points, axis=1))
    elif kind == "rect":
        x = float(shape["x"])
        y = float(shape["y"])
        instance.boxes.append((x, y, x + float(shape["width"]), y + float(shape["height"])))
    elif kind in ("circle", "ellipse"):
        radii = (shape["r"], shape["r"]) if kind == "circle" else (shape["rx"], shape["ry"])
        center = (float(shape["cx"]), float(shape["cy"]))
        angle = float(shape.get("theta") or 0)
        instance.polygons.append(ellipse(center, (float(radii[0]), float(radii[1])), angle))
    else:
        raise ValueError("this shape has no area")


def write(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes a project file, which VIA opens with Project > Load."""
    categories = categories_by_id(annotated.content)
    metadata: dict[str, Any] = {}
    for image, raws in target.each():
        name = target.refer(image, target.file.parent)
        path = (annotated.images or Path()) / image["file_name"]
        file_size = path.stat().st_size if path.is_file() else -1
        regions: list[dict[str, Any]] = []
        for group, raw in enumerate(raws, start=1):
            category = categories[raw["category_id"]]
            regions += _write_object(raw, image, category, group, target.tolerance, lost)
        metadata[f"{name}{file_size}"] = {
            "filename": name,
            "size": file_size,
            "regions": regions,
            "file_attributes": {},
        }

    for category in categories.values():
        if category.get("skeleton"):
            lost.add("limbs of skeletons", category["name"])
    names = [category["name"] for category in categories.values()]
    target.write(target.file, json.dumps(_project(target.file.stem, metadata, names)))


def _project(name: str, metadata: dict[str, Any], categories: Sequence[str]) -> dict[str, Any]:
    """A project file of VIA 2, in which the category is chosen from a list."""
    dropdown = {
        "type": "dropdown",
        "description": "",
        "options": dict.fromkeys(categories, ""),
        "default_options": {},
    }
    text = {
        attribute: {"type": "text", "description": "", "default_value": ""}
        for attribute in ("group", "keypoint", "visibility", "ignore", "score")
    }
    image_grid = {
        "img_height": 80,
        "rshape_fill": "none",
        "rshape_fill_opacity": 0.3,
        "rshape_stroke": "yellow",
        "rshape_stroke_width": 2,
        "show_region_shape": True,
        "show_image_policy": "all",
    }
    image = {
        "region_label": "category",
        "region_color": "category",
        "region_label_font": "10px Sans",
    }
    user_interface = {
        "annotation_editor_height": 25,
        "annotation_editor_fontsize": 0.8,
        "leftsidebar_width": 18,
        "image_grid": image_grid,
        "image": image,
    }
    return {
        "_via_settings": {
            "ui": user_interface,
            "core": {"buffer_size": 18, "filepath": {}, "default_filepath": ""},
            "project": {"name": name},
        },
        "_via_img_metadata": metadata,
        "_via_attributes": {"region": {"category": dropdown, **text}, "file": {}},
        "_via_data_format_version": "2.0.10",
        "_via_image_id_list": list(metadata),
    }


def _write_object(
    raw: CocoAnnotation,
    image: CocoImage,
    category: CocoCategory,
    group: int,
    tolerance: float,
    lost: Unrepresentable,
) -> list[dict[str, Any]]:
    """The regions of one object; several get the group as an attribute."""
    size = size_of(image)
    shapes: list[dict[str, Any]] = []
    for polygon in polygons(raw, size, tolerance):
        x, y = numbers(polygon.T)
        shapes.append({"name": "polygon", "all_points_x": x, "all_points_y": y})
    if (box := own_box(raw, size)) is not None:
        x0, y0, x1, y1 = box
        corner = {"x": number(x0), "y": number(y0)}
        extent = {"width": number(x1 - x0), "height": number(y1 - y0)}
        shapes.append({"name": "rect", **corner, **extent})

    attributes: dict[str, Any] = {"category": category["name"]}
    if ignored(raw):
        attributes["ignore"] = "1"
    if "score" in raw:
        attributes["score"] = str(number(raw["score"]))
    keypoints = keypoints_of(raw, category)
    if keypoints or len(shapes) > 1:
        attributes["group"] = str(group)

    if not keypoints and not shapes:
        lost.add("objects without box, mask and keypoints, left out", label_of(raw, image))
    regions = [{"shape_attributes": shape, "region_attributes": attributes} for shape in shapes]
    for name, x, y, visibility in keypoints:
        center = {"cx": number(x + KEYPOINT_OFFSET), "cy": number(y + KEYPOINT_OFFSET)}
        more = {"keypoint": name, "visibility": str(visibility)}
        regions.append(
            {
                "shape_attributes": {"name": "point", **center},
                "region_attributes": attributes | more,
            }
        )
    return regions


VIA = Format(
    name="via",
    description="VIA 2: a project or export (JSON with _via_img_metadata or regions, or its CSV)",
    written_as=("via",),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write,
    suffix=".json",
    sides_from_names=True,
)
