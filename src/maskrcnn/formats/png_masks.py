"""Folders of masks beside the images: PNG, TIFF or .npy.

masks/a.png        one file per image; each value or color is an object, 0 = background (png)
masks/a/*.png      one file per object; non-zero pixels are inside; may overlap (png-each)
a/images/a.png, a/masks/*.png   a folder per image, as in the Data Science Bowl 2018 (read only)
a.png, a_masks.png, or a_img.png, a_masks.png   pairs in one folder, as Cellpose has (read only)

objects.csv beside them (file, id, category, ignore) gives categories; without it everything is
an "object".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..annotations import rle as coco_rle
from ..annotations.coco_types import RLE, CocoAnnotation, CocoCategory, CocoImage
from ..annotations.problems import DataError
from ..images.image_files import images_in
from .annotation_source import AnnotationSource
from .format import Format
from .id_maps import black_and_white, objects_of, paint, png, read_ids, read_mask
from .reading import Annotated, AnnotatedObject, DatasetBuilder, relative, report_left_out, tracked
from .writing import (
    ConversionTarget,
    Unrepresentable,
    categories_by_id,
    ignored,
    keypoints_of,
    label_of,
    own_box,
    rle_of,
    size_of,
)

_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_cp_masks", "_instance", "_instances")
_KINDS = (".png", ".tif", ".tiff", ".npy")
_IMAGE_ENDING = "_img"  # of Cellpose's images
_LIST = "objects.csv"
_HEAD = ("file", "id", "category", "ignore")
Masks = Path | list[Path]
"""The map of an image, or the files of its objects."""


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether a folder has masks that belong to images.

    Raises:
        DataError: it has nothing but Cellpose's _seg.npy files.
    """
    if not source.path.is_dir():
        return False
    if next(_pairs(source, images), None) is not None:
        return True
    if (seg := source.first("*_seg.npy")) is not None:
        raise DataError(
            f"{seg.name}: is not read, because it is a pickle, which can run any code; "
            "save the masks in Cellpose as PNG or TIFF (File > Save masks, or --save_png)"
        )
    return False


def splits(source: AnnotationSource) -> list[str]:
    """None: a folder is not divided."""
    return []


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads all images that have masks."""
    root = Path(images) if images is not None else source.path
    builder = DatasetBuilder(source.name, root)
    listed = _listed(source.path / _LIST, builder)
    has_several = False
    unlisted: list[str] = []
    pairs = list(_pairs(source, images))
    _report_unpaired(source, images, pairs, builder)
    report_left_out(builder, {image_path.parent for image_path, _ in pairs}, deep=False)

    for image_path, masks in tracked(pairs, "reading masks"):
        image_id = builder.image(relative(image_path, root))
        if image_id is None:
            continue
        one_each = isinstance(masks, list)
        for mask in masks if isinstance(masks, list) else [masks]:
            name = relative(mask, source.path)
            rles = _read_objects(builder, image_id, mask, name, one_each)
            has_several |= len(rles) > 1 or one_each
            for object_id, rle in rles.items():
                where = name if one_each else f"{name}, id {object_id}"
                row = listed.pop((name, object_id), None)
                if row is None:
                    unlisted.append(where)
                category, ignore = row or ("object", False)
                instance = AnnotatedObject(category, where, rles=[rle], ignore=ignore)
                builder.add(image_id, instance)

    if (source.path / _LIST).is_file():
        _report_unlisted(unlisted, builder)
    for file, object_id in listed:
        where = f"{_LIST}: {file}, id {object_id}"
        suggestion = "correct file and id, or remove the row"
        builder.problem("row without an object", where, "no mask has this id", suggestion, False)
    if not has_several and pairs:
        builder.problem(
            "one object per image",
            source.name,
            "no mask has more than one value besides 0",
            "if a mask shows several objects, give each its own value",
            False,
        )
    return builder.build()


def _report_unlisted(unlisted: Sequence[str], builder: DatasetBuilder) -> None:
    """Warns about objects that objects.csv does not list."""
    for where in unlisted:
        builder.problem(
            "object without a row",
            where,
            f"{_LIST} does not list it",
            'its category is "object"; add a row',
            False,
        )


def _read_objects(
    builder: DatasetBuilder, image_id: int, mask: Path, name: str, one_each: bool
) -> dict[int, RLE]:
    """The objects of one file by id; empty, with a problem added, if it cannot be used."""
    height, width = builder.size(image_id)
    objects: dict[int, RLE] = {}
    size = (height, width)
    try:
        if one_each:
            rle = read_mask(mask)
            if rle is not None:
                objects = {1: rle}
                size = (rle["size"][0], rle["size"][1])
        else:
            ids = read_ids(mask)
            size = (ids.shape[0], ids.shape[1])
            if size == (height, width):
                objects = objects_of(ids)
    except ValueError as error:
        builder.problem("unreadable mask", name, str(error), "restore the file")
        return {}

    if size != (height, width):
        detail = f"expected {width} x {height} like its image, got {size[1]} x {size[0]}"
        suggestion = "save the mask in the size of the image"
        builder.problem("mask of another size", name, detail, suggestion)
        return {}
    if one_each and not objects:
        builder.problem("empty mask", name, "all pixels are 0", "it is left out", False)
    return objects


def _pairs(source: AnnotationSource, images: str | Path | None) -> Iterator[tuple[Path, Masks]]:
    """Each image that has masks, with its map or with the files of its objects."""
    if images is None:
        for masks in sorted(source.path.glob("*/masks")):
            folder = masks.parent / "images"
            image_paths = images_in(folder) if folder.is_dir() else []
            if len(image_paths) == 1:
                yield image_paths[0], _masks_in(masks)

    masks, folder = _folders(source, images)
    if masks is None:
        yield from _beside(source.path).items()
        return
    if not folder.is_dir():
        return
    for image_path in images_in(folder):
        own = masks / image_path.relative_to(folder).with_suffix("")
        if own.is_dir() and own.resolve() != image_path.parent.resolve():
            yield image_path, _masks_in(own)
        elif (mask := _map_of(image_path, own)) is not None:
            yield image_path, mask


def _beside(folder: Path) -> dict[Path, Masks]:
    """Each image of a folder whose map is beside it, with that map."""
    pairs: dict[Path, Masks] = {}
    for image_path in images_in(folder, deep=False):
        own = image_path.with_name(image_path.stem.removesuffix(_IMAGE_ENDING))
        if (mask := _map_of(image_path, own)) is not None and mask.stem != image_path.stem:
            pairs[image_path] = mask
        elif (array := own.with_suffix(".npy")).is_file():
            pairs[image_path] = array
    maps = {path for path in pairs.values() if isinstance(path, Path)}
    return {image_path: mask for image_path, mask in pairs.items() if image_path not in maps}


def _map_of(image_path: Path, own: Path) -> Path | None:
    """The map of an image: a file of its name, with one of the usual endings."""
    for ending in _ENDINGS:
        for kind in (*_KINDS, *map(str.upper, _KINDS)):
            path = own.with_name(f"{own.name}{ending}{kind}")  # own has no suffix
            if path.is_file() and path.resolve() != image_path.resolve():
                return path
    return None


def _folders(source: AnnotationSource, images: str | Path | None) -> tuple[Path | None, Path]:
    """The folder of the masks of all images, and that of the images."""
    root = source.path
    folder = Path(images) if images is not None else root / "images"
    for name in ("masks", "mask"):
        if (root / name).is_dir():
            return root / name, folder
    return (root if images is not None else None), folder


def _masks_in(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in _KINDS and p.is_file())


def _report_unpaired(
    source: AnnotationSource,
    images: str | Path | None,
    pairs: Sequence[tuple[Path, Masks]],
    builder: DatasetBuilder,
) -> None:
    """Warns about images without a mask and masks without an image."""
    masks, folder = _folders(source, images)
    per_image = [] if images is not None else sorted(source.path.glob("*/masks"))
    image_folders = [folder, *(path.parent / "images" for path in per_image)]
    image_paths = {p for path in image_folders if path.is_dir() for p in images_in(path)}
    if masks is None and not per_image:
        maps = {paired for _, paired in pairs if isinstance(paired, Path)}
        image_paths = set(images_in(source.path, deep=False)) - maps
    for image_path in sorted(image_paths - {path for path, _ in pairs}):
        builder.problem(
            "image without a mask",
            relative(image_path, source.path),
            "no mask has its name",
            "it is left out; if it shows no object, give it a mask of zeros",
            False,
        )

    # The folder of the images may be that of the masks, under another path.
    used = {m for _, paired in pairs for m in (paired if isinstance(paired, list) else [paired])}
    taken = {path.resolve() for path in image_paths | used}
    mask_folders = [path for path in (masks, *per_image) if path is not None]
    for mask in (m for path in mask_folders for m in _masks_in(path, "**/*")):
        if mask.resolve() not in taken:
            builder.problem(
                "mask without an image",
                relative(mask, source.path),
                "no image has its name",
                "it is left out; add the image",
                False,
            )


def _listed(path: Path, builder: DatasetBuilder) -> dict[tuple[str, int], tuple[str, bool]]:
    """(file, id) -> category and whether to ignore, from objects.csv.

    Declares the categories; a row without a file only declares its category.

    Raises:
        DataError: a column is missing, or an id is not a whole number.
    """
    if not path.is_file():
        return {}
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    if rows and not set(rows[0]) >= set(_HEAD[:3]):
        raise DataError(
            f"{path.name}: expected the columns {', '.join(_HEAD)}, "
            f"got {', '.join(map(str, rows[0]))}"
        )

    listed = {}
    for line, row in enumerate(rows, start=2):
        builder.category(row["category"])
        if not row["file"]:
            continue
        if not (row["id"] or "").isdigit():
            raise DataError(
                f"{path.name}, line {line}: expected a whole number as id, got {row['id']!r}; "
                "write the value of the object in the mask"
            )
        key = (row["file"].replace("\\", "/"), int(row["id"]))
        listed[key] = (row["category"], row.get("ignore") in ("1", "true"))
    return listed


def write(annotated: Annotated, target: ConversionTarget, lost: Unrepresentable) -> None:
    """Writes images/, masks/ and objects.csv."""
    categories = categories_by_id(annotated.content)
    rows: list[Mapping[str, Any]] = [{"category": c["name"]} for c in categories.values()]
    one_each = target.format == "png-each"
    for image, raws in target.each():
        image_path = target.bring(image, target.folder / "images")
        stem = image_path.relative_to(target.folder / "images").with_suffix("")
        masks: dict[int, RLE] = {}
        for raw in raws:
            category = categories[raw["category_id"]]
            rle = _mask(raw, image, category, lost)
            if rle is None:
                continue
            object_id = len(masks) + 1
            masks[object_id] = rle
            name = f"{stem.as_posix()}/{object_id:04d}" if one_each else stem.as_posix()
            rows.append(
                {
                    "file": f"masks/{name}.png",
                    "id": 1 if one_each else object_id,
                    "category": category["name"],
                    "ignore": int(ignored(raw)),
                }
            )
        _write_masks(masks, image, stem, target, lost)

    text = io.StringIO()
    writer = csv.DictWriter(text, _HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    target.write(target.folder / _LIST, text.getvalue())


def _mask(
    raw: CocoAnnotation, image: CocoImage, category: CocoCategory, lost: Unrepresentable
) -> RLE | None:
    """The mask of an object; None, with a loss added, if it has none."""
    where = label_of(raw, image)
    if keypoints_of(raw, category):
        lost.add("keypoints", where)
    if own_box(raw, size_of(image)):
        lost.add("boxes that differ from the one around the mask", where)
    rle = rle_of(raw, size_of(image))
    if rle is None or not coco_rle.area(rle):
        lost.add("objects without a mask, left out", where)
        return None
    return rle


def _write_masks(
    masks: Mapping[int, RLE],
    image: CocoImage,
    stem: Path,
    target: ConversionTarget,
    lost: Unrepresentable,
) -> None:
    """Writes the masks of an image: a file for each, or one map."""
    path = target.folder / "masks" / stem
    if target.format == "png-each":
        path.mkdir(parents=True)
        for object_id, rle in masks.items():
            target.write(path / f"{object_id:04d}.png", black_and_white(rle))
        return

    ids, covered = paint(masks, size_of(image))
    for object_id in covered:
        lost.add("pixels covered by other objects", f"object {object_id} of {image['file_name']}")
    target.write(target.folder / "masks" / stem.with_suffix(".png"), png(ids))


PNG_MASKS = Format(
    name="png",
    description=(
        "PNG masks: a folder with images/ and masks/ (masks/a.png or masks/a/*.png), "
        "or a folder per image (a/images, a/masks), or masks and images=, "
        "or pairs (a.png, a_masks.png); also TIFF and .npy"
    ),
    written_as=("png", "png-each"),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write,
    needs_images_beside=True,
    holds_scores=False,
)
