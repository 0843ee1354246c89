"""QuPath: GeoJSON exports of the objects of an image, with the image beside them. Read only.

Polygon and MultiPolygon, with their holes -> mask. The category is the name of the classification,
`object` for an object without one. The image has the name of the file (a.geojson or
a.tif.geojson), and coordinates are its pixels, continuous from the upper left corner. Whether they
are those before or after an EXIF orientation depends on the library that QuPath read the image
with, so that such images are refused.

Source: qupath.readthedocs.io, "Exporting annotations", GeoJSON; RFC 7946.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.coco_types import RLE, Json, JsonObject
from ..annotations.contours import Polygon, fill, union
from ..annotations.images_option import images_option
from ..annotations.json_file import read_json
from ..annotations.problems import DataError
from ..images.image_files import images_in
from ..images.read import ImageError, read_header
from .annotation_source import AnnotationSource
from .bounded_files import part_of
from .format import Format
from .reading import MOST_PIXELS, Annotated, AnnotatedObject, DatasetBuilder, relative, tracked

_BROKEN = (ValueError, TypeError, KeyError, OverflowError)
_NOT_OBJECTS = ("root", "tma core")  # QuPath's own objects around the annotations


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether the file, or a file of the folder, is GeoJSON."""
    if source.path.is_dir():
        return bool(_files(source.path))
    is_file = source.path.suffix.lower() in (".geojson", ".json") and source.path.is_file()
    return is_file and _features(read_json(source.path)) is not None


def splits(source: AnnotationSource) -> list[str]:
    """None: a folder is not divided."""
    return []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one file for each image; images without a file are left out."""
    files = _files(source.path) if source.path.is_dir() else [source.path]
    folders = [source.folder, source.folder.parent, source.folder / "images"]
    folders = [Path(images)] if images is not None else [*folders, source.folder.parent / "images"]
    candidates = {path: _image(path, folders) for path in files}
    found = [path for path in candidates.values() if path is not None]
    root = found[0].parent if found else source.folder
    if images is not None:
        root = Path(images)
    builder = DatasetBuilder(source.name, root)

    for path in tracked(files, "reading GeoJSON"):
        image_path = candidates[path]
        if image_path is None:
            detail = f"no image {_stem(path)}.* in {', '.join(str(f) for f in folders)}"
            suggestion = f"put the image beside it, or pass {images_option()}"
            builder.problem("file without image", path.name, detail, suggestion)
            continue
        try:
            features = _features(read_json(path))
        except DataError as error:
            builder.problem("broken file", path.name, str(error), "export it again")
            continue
        if _is_turned(image_path):
            detail = f"{image_path.name} has an EXIF orientation, which QuPath may have ignored"
            suggestion = "save the image upright, without that tag, and annotate that file"
            builder.problem("image that EXIF turns", path.name, detail, suggestion)
            continue
        image_id = builder.image(relative(image_path, root), where=path.name)
        if image_id is not None:
            for index, feature in enumerate(features or ()):
                _read_feature(builder, image_id, feature, f"{path.name}, feature {index}")
    if source.path.is_dir():
        used = {relative(path, root) for path in found}
        builder.left_out_images(used, "GeoJSON file")
    return builder.build()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.geojson") if p.is_file())


def _stem(path: Path) -> str:
    return path.name.removesuffix(path.suffix)


def _image(path: Path, folders: list[Path]) -> Path | None:
    """The image of a file: a.tif.geojson or a.geojson beside a.tif."""
    for folder in folders:
        for image in images_in(folder, deep=False) if folder.is_dir() else ():
            if _stem(path) in (image.name, image.stem):
                return image
    return None


def _is_turned(image: Path) -> bool:
    """Whether an image is stored in another orientation than it is shown in."""
    try:
        return read_header(image).orientation in range(2, 9)
    except ImageError:
        return False  # reported when the image is added


def _features(content: Json) -> list[Json] | None:
    """The features of GeoJSON; None for anything else."""
    if isinstance(content, dict) and content.get("type") == "FeatureCollection":
        content = content.get("features")
    elif isinstance(content, dict) and content.get("type") == "Feature":
        content = [content]
    is_list = isinstance(content, list) and bool(content)
    types = (
        [feature.get("type") for feature in content if isinstance(feature, dict)] if is_list else []
    )
    return content if is_list and types.count("Feature") == len(content) else None


def _read_feature(builder: DatasetBuilder, image_id: int, feature: JsonObject, where: str) -> None:
    """Adds one object, or counts it as not used."""
    properties = part_of(feature, "properties")
    kind = str(properties.get("objectType", properties.get("object_type", "annotation"))).lower()
    geometry = part_of(feature, "geometry")
    shape = geometry.get("type")
    if kind in _NOT_OBJECTS:
        builder.unused(f"objects of the type {kind}", where)
        return
    plane = part_of(geometry, "plane")
    if plane.get("z") or plane.get("t"):
        builder.unused("objects in other planes (z or t) than the first", where)
        return
    if shape not in ("Polygon", "MultiPolygon"):
        builder.unused(f"geometries of the type {shape!r:.30}", where)
        return

    try:
        given = geometry["coordinates"]
        parts = [
            [_ring(r) for r in part] for part in (given if shape == "MultiPolygon" else [given])
        ]
        if not parts or not all(parts):
            raise ValueError("has no points")
    except _BROKEN as error:
        builder.problem("broken feature", where, f"{shape}: {error}", "draw it again in QuPath")
        return
    instance = AnnotatedObject(_category(properties), where)
    if all(len(rings) == 1 for rings in parts):
        instance.polygons = [rings[0] for rings in parts]
    else:
        size = builder.size(image_id)
        instance.rles = [_with_holes(rings, size) for rings in parts]
    if kind in ("detection", "cell") and "nucleusGeometry" in feature:
        builder.unused("nuclei of cells", where)
    builder.add(image_id, instance)


def _ring(points: Json) -> Polygon:
    """The points of a ring without the last, which repeats the first."""
    ring = np.array(points, dtype=float)
    if ring.ndim != 2 or ring.shape[1] < 2 or len(ring) < 3:
        raise ValueError("expected rings of 3 or more points [x, y]")
    ring = ring[:, :2]
    if not (np.abs(ring) <= MOST_PIXELS).all():
        raise ValueError(f"expected coordinates within +-{MOST_PIXELS:,.0f} pixels")
    return ring[:-1] if len(ring) > 3 and (ring[0] == ring[-1]).all() else ring


def _with_holes(rings: list[Polygon], size: tuple[int, int]) -> RLE:
    """The RLE of the first ring without the others, which are its holes."""
    outside = fill(rings[:1], size)
    if len(rings) == 1:
        return outside
    crop, x0, y0 = coco_rle.decode_crop(outside)
    holes, hole_x, hole_y = coco_rle.decode_crop(fill(rings[1:], size))
    full = np.zeros_like(crop)
    top, left = max(hole_y - y0, 0), max(hole_x - x0, 0)
    inside = holes[max(y0 - hole_y, 0) :, max(x0 - hole_x, 0) :][
        : crop.shape[0] - top, : crop.shape[1] - left
    ]
    full[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return union([coco_rle.encode_crop(crop & ~full, x0, y0, size)], size)


def _category(properties: JsonObject) -> str:
    """The name of the classification; older versions wrote it as text or as names."""
    given = properties.get("classification")
    if isinstance(given, dict):
        given = given.get("name") or given.get("names")
    if isinstance(given, list):
        given = ": ".join(map(str, given))
    return str(given).strip() or "object" if given else "object"


QUPATH = Format(
    name="qupath",
    description="QuPath: a GeoJSON file per image (a.geojson beside a.tif), or a folder of them",
    recognize=recognize,
    splits=splits,
    read=read,
)
