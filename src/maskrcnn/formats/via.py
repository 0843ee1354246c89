"""VIA 2 (VGG Image Annotator): one project file, or the exported JSON or CSV, with regions.

polygon, polyline, circle, ellipse -> mask; rect -> box; point -> keypoint. A region's category is
its attribute "category" (or class, label, name, type, or the only one). Regions of one "group" and
category are one object. A point's attribute "keypoint" names it, and "visibility" is COCO's. The
attribute "ignore" marks a region to ignore. To VIA these are attributes like any other.

A folder may hold one file per split, or folders that do: train/via_region_data.json,
val/via_region_data.json. All files of a folder have the same attribute for the category.

VIA's coordinates are continuous, and whole numbers if drawn by mouse: the center of pixel 7 is
7.5. VIA stores no image sizes, so they are read from the images.
Source: robots.ox.ac.uk/~vgg/software/via, version 2.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from ..annotations.annotation import KEYPOINT_OFFSET
from ..annotations.coco_types import CocoAnnotation, CocoCategory, CocoImage, Json, JsonObject
from ..annotations.contours import ellipse
from ..annotations.problems import DataError
from .annotation_source import AnnotationSource, with_slashes
from .bounded_files import part_of, read_csv
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
_OWN = ("group", "keypoint", "visibility", "ignore", "score")  # attributes with a meaning here
_CHOICES = ("dropdown", "radio", "checkbox")
_CSV_HEAD = {"filename", "region_shape_attributes", "region_attributes"}
_MOST_FILES = 20  # files of a folder that are parsed to recognize it
_BROKEN = (ValueError, TypeError, KeyError, OverflowError)


class ViaShape(TypedDict, total=False):
    """The shape of a region, by its name."""

    name: str
    all_points_x: list[float]
    all_points_y: list[float]
    x: float
    y: float
    width: float
    height: float
    cx: float
    cy: float


class ViaRegion(TypedDict):
    """One region of an image."""

    shape_attributes: ViaShape
    region_attributes: dict[str, str]


class ViaImage(TypedDict):
    """One image with its regions."""

    filename: str
    size: int
    """Of the file in bytes; -1 = unknown."""
    regions: list[ViaRegion]
    file_attributes: dict[str, str]


@dataclass(frozen=True)
class _Entry:
    """One image of a file, whose regions are not checked yet."""

    filename: str
    regions: Sequence[Json]


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or a file of the folder or of its folders, is VIA's."""
    return bool(_files(source)) if source.path.is_dir() else _entries(source) is not None


def splits(source: AnnotationSource) -> list[str]:
    """Names of a folder's files, or of its folders that have a file."""
    return list(_files(source)) if source.path.is_dir() else []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one file."""
    root = source
    siblings = {"": source}
    if source.path.is_dir():
        siblings = {name: AnnotationSource(path) for name, path in _files(source).items()}
        source = siblings[split]
    core = part_of(part_of(source.json, "_via_settings"), "core")
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
        _Entry(with_slashes(entry.filename, searched), entry.regions)
        for entry in _entries(source) or []
    ]
    name = source.name if source is root else f"{root.name}:{split}"
    file_names = [entry.filename for entry in entries]
    builder = DatasetBuilder(name, image_folder(images, candidates, file_names))

    # One attribute for all splits, so that a category has the same name in each of them.
    declared = part_of(part_of(source.json, "_via_attributes"), "region")
    others = [other for other in siblings.values() if other is not source]
    regions = [region for entry in entries for region in entry.regions]
    regions += [r for other in others for entry in _entries(other) or [] for r in entry.regions]
    key = _category_key(builder, root, regions, declared)

    for option in part_of(declared.get(key), "options"):
        builder.category(str(option).strip())
    for entry in tracked(entries, "reading VIA regions"):
        image_id = builder.image(entry.filename)
        if image_id is not None:
            _Regions(builder, image_id, entry.filename, key).add_all(entry.regions)
    return builder.build()


def _files(source: AnnotationSource) -> dict[str, Path]:
    """The VIA files of a folder by name; else those of its folders, by the folder's name.

    Raises:
        DataError: a file cannot be parsed, and there is no other.
    """
    errors: list[DataError] = []
    for pattern in ("*", "*/*"):
        candidates = [*source.path.glob(f"{pattern}.json"), *source.path.glob(f"{pattern}.csv")]
        files: list[Path] = []
        for path in sorted(candidates)[:_MOST_FILES]:
            try:
                if _entries(AnnotationSource(path)) is not None:
                    files.append(path)
            except DataError as error:
                errors.append(error)
        if files and pattern == "*":
            return {path.stem: path for path in files}

        alone = Counter(path.parent for path in files)
        if files:
            return {
                path.parent.name
                if alone[path.parent] == 1
                else f"{path.parent.name}/{path.stem}": path
                for path in files
            }
    if errors:
        raise errors[0]
    return {}


def _entries(source: AnnotationSource) -> list[_Entry] | None:
    """The images of a file with their regions; None if it is not VIA's."""
    if source.path.suffix.lower() == ".csv":
        return _from_csv(source.path)
    content = source.json
    if not isinstance(content, dict):
        return None
    if {"project", "metadata", "view"} <= content.keys():
        raise DataError(
            f"{source.name}: VIA 3 projects are not supported; export it as COCO in VIA 3"
        )

    images = content.get("_via_img_metadata", content)
    if not isinstance(images, dict) or (not images and "_via_img_metadata" not in content):
        return None
    if not all(
        isinstance(i, dict) and {"filename", "regions"} <= i.keys() for i in images.values()
    ):
        return None
    for key, image in images.items():
        if not isinstance(image["regions"], list | dict | None):
            raise DataError(
                f'{source.name}, image "{key:.40}": expected regions as a list, '
                f"got {image['regions']!r:.40}; export the file again from VIA"
            )
    return [_Entry(str(i["filename"]), _as_list(i["regions"])) for i in images.values()]


def _as_list(regions: Json) -> list[Json]:
    """Regions as a list; before version 2 they were an object with numbers for keys."""
    return list(regions.values()) if isinstance(regions, dict) else regions or []


def _from_csv(path: Path) -> list[_Entry] | None:
    """The images of a CSV file with their regions; None if the columns are not VIA's."""
    rows = read_csv(path)
    if not rows or not set(rows[0]) >= _CSV_HEAD:
        return None

    regions: dict[str, list[Json]] = {}
    for line, row in enumerate(rows, start=2):
        of_image = regions.setdefault(row["filename"], [])
        try:
            shape = json.loads(row["region_shape_attributes"] or "{}")
            attributes = json.loads(row["region_attributes"] or "{}")
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path.name}, line {line}: region attributes are not valid JSON: {error}; "
                "export the file again"
            ) from None
        if shape:
            of_image.append({"shape_attributes": shape, "region_attributes": attributes})
    return [_Entry(filename, of_image) for filename, of_image in regions.items()]


def _category_key(
    builder: DatasetBuilder,
    source: AnnotationSource,
    regions: Sequence[Json],
    declared: JsonObject,
) -> str:
    """The attribute that holds the category; "" if no region has attributes.

    Counts the other attributes as not used.

    Raises:
        DataError: several attributes could be the category, or the chosen one does not exist.
    """
    values: dict[str, dict[int, str]] = {}
    for index, region in enumerate(regions):
        for key, value in part_of(region, "region_attributes").items():
            of_key = values.setdefault(key, {})
            if text := _value(value):
                of_key[index] = text

    key = _chosen_key(builder, source, values, declared)
    for other, given in values.items():
        if other not in (key, *_OWN) and given and given != values.get(key):
            builder.unused(f'attribute "{other}"', count=len(given))
    return key


def _chosen_key(
    builder: DatasetBuilder,
    source: AnnotationSource,
    values: Mapping[str, Mapping[int, str]],
    declared: JsonObject,
) -> str:
    """The attribute that holds the category.

    Args:
        builder: gets a problem where the attribute is a guess.
        source: the file or folder, with the attribute that the user chose.
        values: attribute -> index of the region -> its value.
        declared: the attributes that the project declares.

    Raises:
        DataError: several attributes could be the category, or the chosen one does not exist.
    """
    keys = {key.lower(): key for key in [*values, *declared]}
    if source.attribute:
        if (key := keys.get(source.attribute.lower())) is None:
            raise DataError(
                f'{source.path}: no region has the attribute "{source.attribute}"; '
                f"the attributes are {', '.join(keys.values()) or 'none'}"
            )
        return key

    # Attributes that have the same value in every region are no question: the first is used.
    distinct: dict[tuple[tuple[int, str], ...], str] = {}
    for key, given in values.items():
        distinct.setdefault(tuple(given.items()), key)
    known = next((keys[name] for name in _CATEGORY if name in keys), None)
    rivals = [key for key in distinct.values() if key.lower() in _CATEGORY]

    # "category" is certain; any other name is a guess if several attributes could be meant.
    if known is not None and known.lower() != "category" and len(rivals) > 1:
        builder.problem(
            "attribute of the category guessed",
            builder.name,
            f'"{known}" is used as the category, of the attributes {", ".join(rivals)}',
            'choose another with attribute="NAME" (--attribute NAME)',
            False,
        )
    if known is not None:
        return known

    chosen = [k for k, entry in declared.items() if part_of(declared, k).get("type") in _CHOICES]
    if len(chosen) == 1:
        return chosen[0]
    possible = [key for key in distinct.values() if key not in _OWN]
    if len(possible) > 1:
        examples = [f"{key} ({', '.join(_some(values[key].values()))})" for key in possible]
        raise DataError(
            f"{source.path}: several attributes could be the category: {', '.join(examples)}; "
            f'choose one with attribute="{possible[0]}" (--attribute {possible[0]})'
        )
    return next(iter(possible or [key for key in keys.values() if key not in _OWN]), "")


def _some(values: Iterable[str]) -> list[str]:
    """Up to three different values, as examples."""
    different = list(dict.fromkeys(values))
    return [*different[:3], *(["..."] if len(different) > 3 else [])]


Group = tuple[int | str, ...]
"""(category, group) of a region; (index,) for a region without a group."""


@dataclass
class _Point:
    """A region that is a point, with the group that it belongs to."""

    shape: JsonObject
    attributes: JsonObject
    where: str
    group: Group


@dataclass
class _Regions:
    """Turns the regions of one image into objects."""

    builder: DatasetBuilder
    image_id: int
    file: str
    key: str
    """The attribute that holds the category."""

    def add_all(self, regions: Sequence[Json]) -> None:
        """Adds the objects of the image."""
        objects: dict[Group, AnnotatedObject] = {}
        points: list[_Point] = []
        for index, region in enumerate(regions):
            where = f"{self.file}, region {index}"
            shape = part_of(region, "shape_attributes")
            attributes = part_of(region, "region_attributes")
            category = _value(attributes.get(self.key)) if self.key else "object"
            if not category:
                self.builder.problem(
                    "region without category",
                    where,
                    f'its attribute "{self.key}" is {attributes.get(self.key)!r}',
                    "choose one in VIA",
                )
                continue

            group: Group = (index,)
            if attributes.get("group") not in (None, ""):
                group = (category, str(attributes["group"]))
            if shape.get("name") == "point":
                points.append(_Point(shape, attributes, where, group))
                continue

            instance = objects.setdefault(group, AnnotatedObject(category, where))
            instance.ignore |= str(attributes.get("ignore", "")).lower() in ("1", "true", "yes")
            if shape.get("name") == "polyline":
                self.builder.problem(
                    "line read as polygon",
                    where,
                    "a polyline, which has no area",
                    "its last point is joined to its first",
                    False,
                )
            try:
                _read_shape(instance, shape)
            except _BROKEN as error:
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

    def _add_point(self, objects: dict[Group, AnnotatedObject], point: _Point) -> None:
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
        except _BROKEN:
            values = (shape.get("cx"), shape.get("cy"), attributes.get("visibility"))
            self.builder.problem(
                "broken point",
                point.where,
                f"cx, cy, visibility are {', '.join(map(repr, values))}",
                "draw it again; visibility is 2 (visible), 1 (hidden), 0 (absent) or empty",
            )
            return
        instance = objects.setdefault(
            point.group, AnnotatedObject(str(point.group[0]), point.where)
        )
        instance.keypoints[str(attributes["keypoint"])] = (x, y, visibility)


def _value(given: Json) -> str:
    """An attribute's value: a text, or the only chosen option of a checkbox."""
    if isinstance(given, Mapping):
        chosen = [name for name, is_on in given.items() if is_on]
        return str(chosen[0]) if len(chosen) == 1 else ""
    return "" if given is None else str(given).strip()


def _read_shape(instance: AnnotatedObject, shape: JsonObject) -> None:
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
    metadata: dict[str, ViaImage] = {}
    for image, raws in target.each():
        name = target.refer(image, target.file.parent)
        path = (annotated.images or Path()) / image["file_name"]
        file_size = path.stat().st_size if path.is_file() else -1
        regions: list[ViaRegion] = []
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
            lost.add_category("limbs of skeletons", category["name"])
    names = [category["name"] for category in categories.values()]
    target.write(target.file, json.dumps(_project(target.file.stem, metadata, names)))


def _project(
    name: str, metadata: dict[str, ViaImage], categories: Sequence[str]
) -> dict[str, Json]:
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
) -> list[ViaRegion]:
    """The regions of one object; several get the group as an attribute."""
    size = size_of(image)
    shapes: list[ViaShape] = []
    for polygon in polygons(raw, size, tolerance):
        x, y = numbers(polygon.T)
        shapes.append({"name": "polygon", "all_points_x": x, "all_points_y": y})
    if (box := own_box(raw, size)) is not None:
        x0, y0, x1, y1 = box
        width = number(x1 - x0)
        height = number(y1 - y0)
        shapes.append(
            {"name": "rect", "x": number(x0), "y": number(y0), "width": width, "height": height}
        )

    attributes: dict[str, str] = {"category": category["name"]}
    if ignored(raw):
        attributes["ignore"] = "1"
    if "score" in raw:
        attributes["score"] = str(number(raw["score"]))
    keypoints = keypoints_of(raw, category)
    if keypoints or len(shapes) > 1:
        attributes["group"] = str(group)

    if not keypoints and not shapes:
        lost.add("objects without box, mask and keypoints, left out", label_of(raw, image))
    regions: list[ViaRegion] = [
        {"shape_attributes": shape, "region_attributes": attributes} for shape in shapes
    ]
    for name, x, y, visibility in keypoints:
        point: ViaShape = {
            "name": "point",
            "cx": number(x + KEYPOINT_OFFSET),
            "cy": number(y + KEYPOINT_OFFSET),
        }
        more = {"keypoint": name, "visibility": str(visibility)}
        regions.append({"shape_attributes": point, "region_attributes": attributes | more})
    return regions


VIA = Format(
    name="via",
    description=(
        "VIA 2: a project or export (JSON with _via_img_metadata or regions, or its CSV), "
        "or a folder of them (train/via_region_data.json)"
    ),
    written_as=("via",),
    recognize=recognize,
    splits=splits,
    read=read,
    lists_images=True,
    write=write,
    suffix=".json",
    sides_from_names=True,
    has_attributes=True,
)
