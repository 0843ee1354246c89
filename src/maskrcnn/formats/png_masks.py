"""Folders of PNG masks beside the images.

masks/a.png             one file an image, each value or color an object, 0 = background      (writes: png)
masks/a/*.png           one file an object, all that is not 0 inside; objects may overlap       (writes: png-each)
a/images/a.png, a/masks/*.png    the same with a folder for each image, as in the Data Science Bowl 2018

objects.csv beside them (file, id, category, ignore) gives categories; without it everything is "object".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..annotations import rle as coco_rle
from ..annotations.problems import DataError
from ..images.files import images_in
from .id_maps import black_and_white, objects_of, paint, png, read_ids, read_mask
from .reading import Annotated, Builder, Drawn, relative, tracked
from .source import Source
from .writing import (
    Losses,
    Target,
    ignored,
    keypoints_of,
    label_of,
    names_of,
    own_box,
    rle_of,
    size_of,
)

NAME = "png"
LOOKS_LIKE = "a folder with images/ and masks/ (masks/a.png or masks/a/*.png), or a folder for each image (a/images, a/masks), or masks and images="
_ENDINGS = ("", "_mask", "_masks", "_label", "_labels", "_cp_masks", "_instance", "_instances")
_KINDS = (".png", ".tif", ".tiff")
_LIST = "objects.csv"
_HEAD = ("file", "id", "category", "ignore")


def recognize(source: Source, images: str | Path | None = None) -> bool:
    """Whether there are masks beside images."""
    return source.path.is_dir() and next(_pairs(source, images), None) is not None


def splits(source: Source) -> list[str]:
    """None: a folder is one split."""
    return []


def read(source: Source, images: str | Path | None, split: str) -> Annotated:
    """Reads all images that have masks."""
    root = Path(images) if images is not None else source.path
    builder = Builder(source.name, root)
    listed = _listed(source.path / _LIST, builder)
    several = False
    unlisted: list[str] = []
    pairs = list(_pairs(source, images))
    _note_single(source, images, pairs, builder)
    for image_path, masks in tracked(pairs, "reading masks"):
        image = builder.image(relative(image_path, root))
        if image is None:
            continue
        each = isinstance(masks, list)
        for mask in masks if isinstance(masks, list) else [masks]:
            name = relative(mask, source.path)
            found = _found(builder, image, mask, name, each)
            several |= len(found) > 1 or each
            for one, rle in found.items():
                if (row := listed.pop((name, one), None)) is None:
                    unlisted.append(name if each else f"{name}, id {one}")
                category, ignore = row or ("object", False)
                builder.add(
                    image,
                    Drawn(
                        category, name if each else f"{name}, id {one}", rles=[rle], ignore=ignore
                    ),
                )
    for where in unlisted if (source.path / _LIST).is_file() else ():
        builder.problem(
            "object without a row",
            where,
            f"{_LIST} does not name it",
            'its category is "object"; add a row',
            False,
        )
    for file, one in listed:
        builder.problem(
            "row without an object",
            f"{_LIST}: {file}, id {one}",
            "no mask has it",
            "mend file and id, or drop the row",
            False,
        )
    if not several and pairs:
        suggestion = "if a mask shows several objects, give each its own value"
        builder.problem(
            "one object an image",
            source.name,
            "no mask has more than one value besides 0",
            suggestion,
            False,
        )
    return builder.done()


def _found(
    builder: Builder, image: int, mask: Path, name: str, each: bool
) -> dict[int, dict[str, Any]]:
    """The objects of one file, by id."""
    height, width = builder.size(image)
    try:
        if each:
            rle = read_mask(mask)
            found, size = ({1: rle}, tuple(rle["size"])) if rle else ({}, (height, width))
        else:
            ids = read_ids(mask)
            found, size = objects_of(ids) if ids.shape == (height, width) else {}, ids.shape
    except ValueError as error:
        builder.problem("unreadable mask", name, str(error), "restore the file")
        return {}
    if size != (height, width):
        detail = f"is {size[1]} x {size[0]}, its image {width} x {height}"
        builder.problem("mask of another size", name, detail, "save the mask in the image's size")
        return {}
    if each and not found:
        builder.problem("empty mask", name, "holds nothing but 0", "it is left out", False)
    return found


def _pairs(source: Source, images: str | Path | None) -> Iterator[tuple[Path, Path | list[Path]]]:
    """Each image with its map of ids, or with the files of its objects."""
    root = source.path
    if images is None:
        for folder in sorted(root.glob("*/masks")):
            image_paths = (
                images_in(folder.parent / "images") if (folder.parent / "images").is_dir() else []
            )
            if len(image_paths) == 1:
                yield image_paths[0], _masks_in(folder)
    masks, folder = _places(source, images)
    if masks is None or not folder.is_dir():
        return
    for image_path in images_in(folder):
        stem = image_path.relative_to(folder).with_suffix("")
        own = masks / stem
        if own.is_dir() and own.resolve() != image_path.parent.resolve():
            yield image_path, _masks_in(own)
        else:
            names = (
                own.with_name(f"{own.name}{e}{kind}")
                for e in _ENDINGS
                for kind in (*_KINDS, *map(str.upper, _KINDS))
            )
            mask = next(
                (p for p in names if p.is_file() and p.resolve() != image_path.resolve()), None
            )
            if mask is not None:
                yield image_path, mask


def _places(source: Source, images: str | Path | None) -> tuple[Path | None, Path]:
    """The folder of the masks of all images, and that of the images."""
    root = source.path
    masks = next(
        (root / n for n in ("masks", "mask") if (root / n).is_dir()),
        root if images is not None else None,
    )
    return masks, Path(images) if images is not None else root / "images"


def _masks_in(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in _KINDS and p.is_file())


def _note_single(
    source: Source,
    images: str | Path | None,
    pairs: Sequence[tuple[Path, Path | list[Path]]],
    builder: Builder,
) -> None:
    """Notes images without a mask and masks without an image."""
    masks, folder = _places(source, images)
    each = (
        [] if images is not None else sorted(source.path.glob("*/masks"))
    )  # a folder for each image
    image_paths = {
        p
        for home in (folder, *(m.parent / "images" for m in each))
        if home.is_dir()
        for p in images_in(home)
    }
    paired = {image_path for image_path, _ in pairs}
    used = {m for _, found in pairs for m in (found if isinstance(found, list) else [found])}
    given = [m for home in (masks, *each) if home is not None for m in _masks_in(home, "**/*")]
    taken = {
        p.resolve() for p in image_paths | used
    }  # images= may lie in the same folder, written otherwise
    for image_path in sorted(image_paths - paired):
        where = relative(image_path, source.path)
        builder.problem(
            "image without a mask",
            where,
            "no mask has its name",
            "it is left out; if it shows no object, give it a mask of 0",
            False,
        )
    for mask in (m for m in given if m.resolve() not in taken):
        builder.problem(
            "mask without an image",
            relative(mask, source.path),
            "no image has its name",
            "it is left out; add the image",
            False,
        )


def _listed(path: Path, builder: Builder) -> dict[tuple[str, int], tuple[str, bool]]:
    """(file, id) -> category and whether to ignore; a line without a file declares a category."""
    if not path.is_file():
        return {}
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    if rows and not set(rows[0]) >= set(_HEAD[:3]):
        raise DataError(
            f"{path.name}: its columns are {', '.join(map(str, rows[0]))}, must be {', '.join(_HEAD)}"
        )
    found = {}
    for line, row in enumerate(rows, start=2):
        builder.category(row["category"])
        if row["file"]:
            if not (row["id"] or "").isdigit():
                raise DataError(
                    f"{path.name}, line {line}: id is {row['id']!r}, must be a whole number"
                )
            found[row["file"].replace("\\", "/"), int(row["id"])] = (
                row["category"],
                row.get("ignore") in ("1", "true"),
            )
    return found


def write(annotated: Annotated, target: Target, losses: Losses) -> None:
    """Writes images/, masks/ and objects.csv."""
    categories = names_of(annotated.content)
    rows: list[Mapping[str, Any]] = [{"category": c["name"]} for c in categories.values()]
    each = target.format == "png-each"
    for image, raws in target.each():
        image_path = target.place(image, target.folder / "images")
        stem = image_path.relative_to(target.folder / "images").with_suffix("")
        masks: dict[int, dict[str, Any]] = {}
        for raw in raws:
            category, where = categories[raw["category_id"]], label_of(raw, image)
            if keypoints_of(raw, category):
                losses.add("keypoints", where)
            if own_box(raw, size_of(image)):
                losses.add("boxes that are not those around the mask", where)
            rle = rle_of(raw, size_of(image))
            if rle is None or not coco_rle.area(rle):
                losses.add("objects without a mask, left out", where)
                continue
            masks[len(masks) + 1] = rle
            name = (
                f"masks/{stem.as_posix()}/{len(masks):04d}.png"
                if each
                else f"masks/{stem.as_posix()}.png"
            )
            rows.append(
                {
                    "file": name,
                    "id": 1 if each else len(masks),
                    "category": category["name"],
                    "ignore": int(ignored(raw)),
                }
            )
        if each:
            (target.folder / "masks" / stem).mkdir(parents=True)
            for one, rle in masks.items():
                target.write(
                    target.folder / "masks" / stem / f"{one:04d}.png", black_and_white(rle)
                )
        else:
            ids, covered = paint(masks, size_of(image))
            for one in covered:
                losses.add(
                    "pixels of objects under others", f"object {one} of {image['file_name']}"
                )
            target.write(target.folder / "masks" / stem.with_suffix(".png"), png(ids))
    text = io.StringIO()
    writer = csv.DictWriter(text, _HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    target.write(target.folder / _LIST, text.getvalue())
