"""A data set mended where there is one right answer: `fixed(data) -> Fixed`.

Out: COCO's dict with every other field as it was, a list of what was done, and one of what is left: `Problem`s, whose cure says what was or is to be
done. mend.py has the rules for one annotation; those for the whole file are here:

    an image without size             gets that of its file
    an image of another size          gets that of its file where its RLE have it, or where objects reach beyond the old size but not the new
    an image entry given twice         is dropped
    boxes x0, y0, x1, y1               are all rewritten where the whole file proves it (look.py)
    category ids counted from 0        are moved up by one, where the categories are 1..C and the annotations use 0..C-1, all of them and no other
    an annotation given twice          is dropped
    an id missing, used twice or 0     becomes a new one
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.annotation import is_number
from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataError, DataWarning, Problem
from ..images.read import ImageError, read_header
from .fix_annotation import mend
from .whole_dataset import looks_like_corners, raw_boxes


@dataclass
class Fixed:
    """A mended data set."""

    content: dict[str, Any]
    """COCO's dict."""
    done: list[Problem] = field(default_factory=list)
    left: list[Problem] = field(default_factory=list)

    def write(self, path: Path, *inputs: str | Path | None) -> None:
        """Writes the annotation file.

        Raises:
            DataError: `path` is one of the inputs, or cannot be written.
        """
        if any(
            given is not None and Path(given).exists() and path.exists() and path.samefile(given)
            for given in inputs
        ):
            raise DataError(
                f"{path}: is the file that was checked; give --fix another name, it never overwrites its input"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content))


def fixed(data: CocoDataset, broken: Sequence[Problem] = ()) -> Fixed:
    """Mends what can be mended; the data set stays as it is. `broken` are images that cannot be decoded: they are left."""
    raw = data.raw
    content = {
        **raw,
        "images": [dict(i) if isinstance(i, Mapping) else i for i in raw["images"]],
        "annotations": [
            {k: v for k, v in a.items() if k != "where"} if isinstance(a, Mapping) else a
            for a in raw["annotations"]
        ],
    }
    result = Fixed(content)
    _drop_copies(result)
    _mend_images(result, data)
    _shift_categories(result, data)
    _mend_corners(result, data)
    _number(result)
    _mend_annotations(result)
    _drop_copies(result)
    again = _opened(result.content, data.image_folder, data.name)
    unread = [
        p for p in data.dropped if p.annotation is None and p.image is None
    ]  # what the reader of another format could not take
    result.left = [*unread, *again.dropped, *broken, *again.warnings]
    return result


def _opened(content: dict[str, Any], folder: Path | None, name: str) -> CocoDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return CocoDataset(content, folder, on_error="drop", name=name)


def _mend_images(result: Fixed, data: CocoDataset) -> None:
    kept: list[Any] = []
    seen: set[str] = set()
    broken = {p.image for p in data.dropped if p.image is not None}
    objects = defaultdict(list)
    for a in result.content["annotations"]:
        if isinstance(a, dict):
            objects[repr(a.get("image_id"))].append(a)
    for place, image in enumerate(result.content["images"]):
        key = repr(image)  # before it is mended
        if key in seen:
            result.done.append(
                Problem(
                    "image id used twice",
                    f"images[{place}]",
                    f"{image!r:.80}",
                    "the copy was dropped",
                    False,
                )
            )
            continue
        seen.add(key)
        kept.append(image)
        if (
            place in broken
            and data.image_folder is not None
            and isinstance(image, dict)
            and isinstance(image.get("file_name"), str)
        ):
            _mend_size(
                result,
                image,
                data.image_folder / image["file_name"],
                objects[repr(image.get("id"))],
            )
    result.content["images"] = kept


def _mend_size(
    result: Fixed, image: dict[str, Any], path: Path, objects: list[dict[str, Any]]
) -> None:
    try:
        header = read_header(path)
    except ImageError:
        return
    old = (image.get("height"), image.get("width"))
    missing = not all(
        isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in old
    )
    if old == header.size or (
        not missing and (header.stored_size == old or not _proves(objects, old, header.size))
    ):
        return
    image["height"], image["width"] = header.size
    kind = "image without size" if missing else "image size mismatch"
    detail = f"height, width were {old[0]}, {old[1]}"
    where = f"image {image.get('id')} ({image['file_name']})"
    result.done.append(Problem(kind, where, detail, "they are the file's now", False))


def _proves(objects: list[dict[str, Any]], old: tuple[Any, Any], new: tuple[int, int]) -> bool:
    """Whether the objects were annotated in an image of the new size: their RLE are of it, or they reach beyond the old size but not it."""
    rles = [
        a["segmentation"].get("size") for a in objects if isinstance(a.get("segmentation"), dict)
    ]
    if rles:
        return all(size in (list(new), new) for size in rles)
    ends = _ends(objects)
    return len(ends) > 0 and bool(
        (ends > np.array(old[::-1]) + 1).any() and (ends <= np.array(new[::-1]) + 1).all()
    )


def _ends(objects: list[dict[str, Any]]) -> np.ndarray:
    """The right and lower ends of boxes and polygons, [n, 2]."""
    found: list[Any] = []
    for a in objects:
        box, mask = a.get("bbox"), a.get("segmentation")
        try:
            found += [np.add(box[:2], box[2:])] if isinstance(box, list) and len(box) == 4 else []
            found += (
                [np.reshape(part, (-1, 2)).max(axis=0) for part in mask]
                if isinstance(mask, list)
                else []
            )
        except (TypeError, ValueError):  # broken in another way
            continue
    return np.array(found, dtype=np.float64).reshape(-1, 2)


def _shift_categories(result: Fixed, data: CocoDataset) -> None:
    known = {c.id for c in data.categories}
    used = [a.get("category_id") for a in result.content["annotations"] if isinstance(a, dict)]
    count = len(known)
    if (
        known != set(range(1, count + 1))
        or not all(map(_is_id, used))
        or set(used) != set(range(count))
    ):
        return
    for a in result.content["annotations"]:
        if isinstance(a, dict):
            a["category_id"] += 1
    detail = f"annotations use 0..{count - 1}, the categories are 1..{count}"
    result.done.append(
        Problem(
            "annotation of an unknown category",
            data.name,
            detail,
            "all category ids were moved up by one",
            False,
        )
    )


def _mend_corners(result: Fixed, data: CocoDataset) -> None:
    if not looks_like_corners(*raw_boxes(data)):
        return
    for a in result.content["annotations"]:
        box = a.get("bbox") if isinstance(a, dict) else None
        if isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box)):
            a["bbox"] = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
    result.done.append(
        Problem(
            "boxes are x0, y0, x1, y1",
            data.name,
            "all boxes",
            "they are x, y, width, height now",
            False,
        )
    )


def _number(result: Fixed) -> None:
    """Gives new ids to annotations without one, with one used before, and with 0."""
    entries = [a for a in result.content["annotations"] if isinstance(a, dict)]
    taken = {a["id"] for a in entries if _is_id(a.get("id"))}
    free, seen = max([0, *taken]) + 1, set()
    for a in entries:
        old = a.get("id")
        if _is_id(old) and old not in seen and old != 0:
            seen.add(old)
            continue
        kind = (
            "annotation id used twice"
            if _is_id(old) and old != 0
            else "annotation with id 0"
            if _is_id(old)
            else "annotation without id"
        )
        a["id"] = free
        seen.add(free)
        detail = f"of image {a.get('image_id')!r}, has the id {free} now"
        result.done.append(Problem(kind, f"annotation {old!r}", detail, "it has a new id", False))
        free += 1


def _is_id(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _mend_annotations(result: Fixed) -> None:
    """Mends those with which something is wrong."""
    data = _opened(result.content, None, "")
    wrong = {p.annotation for p in (*data.dropped, *data.warnings) if p.annotation is not None}
    images = {image["id"]: image for image in data.content()["images"]}
    categories = {c.id: c for c in data.categories}
    kept = []
    for place, raw in enumerate(result.content["annotations"]):
        image_id, category_id = (
            (raw.get("image_id"), raw.get("category_id")) if isinstance(raw, dict) else (None, None)
        )
        known = (
            _is_id(image_id)
            and image_id in images
            and _is_id(category_id)
            and category_id in categories
        )
        if place not in wrong or not known:
            kept.append(raw)
            continue
        image = images[raw["image_id"]]
        where = f"annotation {raw['id']} ({image['file_name']})"

        def tell(kind: str, detail: str, what: str, is_error: bool, where: str = where) -> None:
            result.done.append(Problem(kind, where, detail, what, is_error))

        new = mend(raw, (image["height"], image["width"]), categories[raw["category_id"]], tell)
        kept += [] if new is None else [new]
    result.content["annotations"] = kept


def _drop_copies(result: Fixed) -> None:
    """Drops annotations that are another but for the id."""
    first: dict[str, Any] = {}
    kept = []
    for raw in result.content["annotations"]:
        if isinstance(raw, dict):
            fields = (
                "image_id",
                "category_id",
                "bbox",
                "segmentation",
                "keypoints",
                "iscrowd",
                "ignore",
            )
            key = repr([raw.get(name) for name in fields])
            if key in first and any(
                raw.get(name) for name in ("bbox", "segmentation", "keypoints")
            ):
                detail = f"the same as annotation {first[key]}"
                result.done.append(
                    Problem(
                        "annotation given twice",
                        f"annotation {raw.get('id')}",
                        detail,
                        "the copy was dropped",
                        False,
                    )
                )
                continue
            first[key] = raw.get("id")
        kept.append(raw)
    result.content["annotations"] = kept
