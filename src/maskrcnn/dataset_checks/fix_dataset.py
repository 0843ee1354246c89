"""Fixes a data set where the fix is unambiguous: `fix_dataset(data) -> FixedDataset`.

Out: the COCO content with all other fields unchanged, a list of changes, and a list of remaining
problems. The `suggestion` of a change says what was done. fix_annotation.py has the rules for a
single annotation; these are for the whole file:

    image without size              gets the size of its file
    image size mismatch           gets the size of its file where the image's RLEs have that size,
                                    or where objects reach beyond the old size but not the new one
    duplicate image entry           is dropped
    boxes x0, y0, x1, y1            are all rewritten where the whole file proves it
    category ids counted from 0     are increased by one, where the categories are 1..C and the
                                    annotations use all of 0..C-1 and no other
    duplicate annotation            is dropped
    id missing, used twice or 0     is replaced by a new one
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from ..annotations.annotation import is_number
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError, DataWarning, Problem
from ..images.read import ImageError, read_header
from .fix_annotation import fix_annotation
from .whole_dataset import looks_like_corners, raw_boxes

_COMPARED = ("image_id", "category_id", "bbox", "segmentation", "keypoints", "iscrowd", "ignore")


@dataclass
class FixedDataset:
    """A fixed data set."""

    content: dict[str, Any]
    """COCO content; may still hold unusable entries, so it is not a checked `CocoContent`."""
    changes: list[Problem] = field(default_factory=list)
    """The fixed problems; their `suggestion` says what was done."""
    remaining: list[Problem] = field(default_factory=list)
    """Problems without an unambiguous fix."""

    def write(self, path: Path, *inputs: str | Path | None) -> None:
        """Writes the annotation file.

        Raises:
            DataError: `path` is one of the inputs.
        """
        for given in inputs:
            if given is None or not Path(given).exists() or not path.exists():
                continue
            if path.samefile(given):
                raise DataError(
                    f"{path} is the file that was checked, and --fix never overwrites its input; "
                    "choose another name"
                )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content))

    def add_change(self, kind: str, where: str, detail: str, what: str) -> None:
        """Records a change."""
        self.changes.append(Problem(kind, where, detail, what, False))


def fix_dataset(data: CocoDataset, undecodable: Sequence[Problem] = ()) -> FixedDataset:
    """Fixes every problem with an unambiguous fix; the data set itself is not modified.

    Args:
        data: opened with on_error="drop".
        undecodable: problems of images that cannot be decoded; they remain.
    """
    raw = data.raw
    result = FixedDataset(
        {
            **raw,
            "images": [dict(i) if isinstance(i, Mapping) else i for i in raw["images"]],
            "annotations": [
                {k: v for k, v in a.items() if k != "where"} if isinstance(a, Mapping) else a
                for a in raw["annotations"]
            ],
        }
    )

    # First what concerns the whole file, so that each annotation is then compared with the right
    # image size, category and box format.
    _drop_duplicates(result)
    _fix_images(result, data)
    _shift_categories(result, data)
    _fix_corners(result, data)
    _fix_ids(result)
    # What opening the data reported holds for the content until something in it changes.
    opened = data if not result.changes else _open(result.content, None, "")
    _fix_annotations(result, opened)
    _drop_duplicates(result)

    # Problems without an index come from the reader of another format, not from the content.
    from_reader = [p for p in data.dropped if p.annotation is None and p.image is None]
    checked = data if not result.changes else _open(result.content, data.image_folder, data.name)
    errors = [p for p in checked.dropped if p.annotation is not None or p.image is not None]
    warned = [p for p in checked.warnings if p.annotation is not None or p.image is not None]
    result.remaining = [*from_reader, *errors, *undecodable, *warned]
    return result


def _open(content: dict[str, Any], folder: Path | None, name: str) -> CocoDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return CocoDataset(content, folder, on_error="drop", name=name)


def _fix_images(result: FixedDataset, data: CocoDataset) -> None:
    """Drops duplicate entries and fixes sizes."""
    broken = {p.image for p in data.dropped if p.image is not None}
    objects = defaultdict(list)
    for a in result.content["annotations"]:
        if isinstance(a, dict):
            objects[repr(a.get("image_id"))].append(a)

    kept: list[Any] = []
    known: set[str] = set()
    for index, image in enumerate(result.content["images"]):
        key = repr(image)  # as it was, before its size is fixed
        if key in known:
            where = f"images[{index}]"
            result.add_change("image id used twice", where, f"{image!r:.80}", "duplicate dropped")
            continue
        known.add(key)
        kept.append(image)
        if index not in broken or data.image_folder is None or not isinstance(image, dict):
            continue
        if isinstance(image.get("file_name"), str):
            path = data.image_folder / image["file_name"]
            _fix_size(result, image, path, objects[repr(image.get("id"))])
    result.content["images"] = kept


def _fix_size(
    result: FixedDataset, image: dict[str, Any], path: Path, objects: list[dict[str, Any]]
) -> None:
    """Sets an image's size to that of its file, where there is none or the objects prove it."""
    try:
        header = read_header(path)
    except ImageError:
        return

    old = (image.get("height"), image.get("width"))
    missing = not all(_is_whole(side) and side > 0 for side in old)
    if old == header.size:
        return
    if not missing and (header.stored_size == old or not _proves(objects, old, header.size)):
        return

    image["height"], image["width"] = header.size
    result.add_change(
        "image without size" if missing else "image size mismatch",
        f"image {image.get('id')} ({image['file_name']})",
        f"height, width were {old[0]}, {old[1]}",
        "set to the size of the file",
    )


def _proves(objects: list[dict[str, Any]], old: tuple[Any, Any], new: tuple[int, int]) -> bool:
    """Whether the objects were annotated in an image of the new size (height, width).

    They were if their RLEs have that size. Without RLEs, they were if some reach beyond the old
    size and none beyond the new one.
    """
    sizes = [
        a["segmentation"].get("size") for a in objects if isinstance(a.get("segmentation"), dict)
    ]
    if sizes:
        return all(size in (list(new), new) for size in sizes)
    ends = _ends(objects)
    return len(ends) > 0 and bool(
        (ends > np.array(old[::-1]) + 1).any() and (ends <= np.array(new[::-1]) + 1).all()
    )


def _ends(objects: list[dict[str, Any]]) -> np.ndarray:
    """The right and lower ends of boxes and polygons, [n, 2]."""
    ends: list[Any] = []
    for a in objects:
        box = a.get("bbox")
        mask = a.get("segmentation")
        try:
            if isinstance(box, list) and len(box) == 4:
                ends.append(np.add(box[:2], box[2:]))
            if isinstance(mask, list):
                ends += [np.reshape(part, (-1, 2)).max(axis=0) for part in mask]
        except (TypeError, ValueError):  # broken in another way
            continue
    return np.array(ends, dtype=np.float64).reshape(-1, 2)


def _shift_categories(result: FixedDataset, data: CocoDataset) -> None:
    known = {c.id for c in data.categories}
    entries = [a for a in result.content["annotations"] if isinstance(a, dict)]
    used = [a.get("category_id") for a in entries]
    count = len(known)
    if (
        known != set(range(1, count + 1))
        or not all(map(_is_whole, used))
        or set(used) != set(range(count))
    ):
        return

    for a in entries:
        a["category_id"] += 1
    result.add_change(
        "annotation of an unknown category",
        data.name,
        f"annotations use 0..{count - 1}, the categories are 1..{count}",
        "all category ids increased by one",
    )


def _fix_corners(result: FixedDataset, data: CocoDataset) -> None:
    if not looks_like_corners(*raw_boxes(data)):
        return
    for a in result.content["annotations"]:
        box = a.get("bbox") if isinstance(a, dict) else None
        if isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box)):
            a["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    result.add_change(
        "boxes are x0, y0, x1, y1", data.name, "all boxes", "converted to x, y, width, height"
    )


def _fix_ids(result: FixedDataset) -> None:
    """Gives new ids to annotations whose id is missing, already used, or 0."""
    entries = [a for a in result.content["annotations"] if isinstance(a, dict)]
    taken = {a["id"] for a in entries if _is_whole(a.get("id"))}
    free = max([0, *taken]) + 1
    used = set()

    for a in entries:
        old = a.get("id")
        if not _is_whole(old):
            kind = "annotation without id"
        elif old == 0:
            kind = "annotation with id 0"
        elif old in used:
            kind = "annotation id used twice"
        else:
            used.add(old)
            continue
        a["id"] = free
        used.add(free)
        detail = f"of image {a.get('image_id')!r}, its id is now {free}"
        result.add_change(kind, f"annotation {old!r}", detail, "replaced by a new id")
        free += 1


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _fix_annotations(result: FixedDataset, opened: CocoDataset) -> None:
    """Fixes the annotations in which opening the content found something wrong."""
    wrong = {p.annotation for p in (*opened.dropped, *opened.warnings) if p.annotation is not None}
    images = _usable_images(result.content["images"])
    categories = {c.id: c for c in opened.categories}

    kept = []
    for index, raw in enumerate(result.content["annotations"]):
        if index not in wrong or not isinstance(raw, dict):
            kept.append(raw)
            continue
        image_id = raw.get("image_id")
        category_id = raw.get("category_id")
        image = images.get(image_id) if _is_whole(image_id) else None
        category = categories.get(category_id) if _is_whole(category_id) else None
        if image is None or category is None:
            kept.append(raw)
            continue

        where = f"annotation {raw['id']} ({image['file_name']})"

        def report(kind: str, detail: str, what: str, where: str = where) -> None:
            result.add_change(kind, where, detail, what)

        new = fix_annotation(raw, (image["height"], image["width"]), category, report)
        if new is not None:
            kept.append(new)
    result.content["annotations"] = kept


def _usable_images(entries: Sequence[Any]) -> dict[int, dict[str, Any]]:
    """The first well-formed entry of each image id, whatever its file is like."""
    images: dict[int, dict[str, Any]] = {}
    for image in entries:
        if (
            isinstance(image, dict)
            and _is_whole(image.get("id"))
            and isinstance(image.get("file_name"), str)
            and all(_is_whole(image.get(side)) and image[side] > 0 for side in ("width", "height"))
        ):
            images.setdefault(image["id"], image)
    return images


def _drop_duplicates(result: FixedDataset) -> None:
    """Drops annotations that differ from an earlier one by their id only."""
    first: dict[str, Any] = {}
    kept = []

    for raw in result.content["annotations"]:
        if isinstance(raw, dict):
            key = repr([raw.get(name) for name in _COMPARED])
            annotated = any(raw.get(name) for name in ("bbox", "segmentation", "keypoints"))
            if annotated and key in first:
                result.add_change(
                    "annotation given twice",
                    f"annotation {raw.get('id')}",
                    f"the same as annotation {first[key]}",
                    "duplicate dropped",
                )
                continue
            first[key] = raw.get("id")
        kept.append(raw)
    result.content["annotations"] = kept
