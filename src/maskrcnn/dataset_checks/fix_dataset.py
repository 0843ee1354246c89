"""Fixes a data set where the fix is unambiguous: `fix_dataset(data) -> FixedDataset`.

Out: the COCO content with all other fields unchanged, a list of changes, and a list of remaining
problems. The `suggestion` of a change says what was done. fix_annotation.py has the rules for a
single annotation; these are for the whole file:

    image without size              gets the size of its file, unless its objects contradict it
    image size mismatch             gets the size of its file where its objects prove it
                                    (size_evidence.py)
    duplicate image entry           is dropped
    boxes x0, y0, x1, y1            are all rewritten where the whole file proves it
    category ids counted from 0     are increased by one, where the categories are 1..C and the
                                    annotations use all of 0..C-1 and no other
    duplicate annotation            is dropped
    id missing, used twice or 0     is replaced by a new one

An image whose entry or file is wrong proves nothing: nothing is fixed against its size. No file is
read again but the headers of such images.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeGuard

import numpy as np

from ..annotations.annotation import is_number
from ..annotations.categories import parse_categories
from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import Json, JsonObject
from ..annotations.labeled_categories import find_key_problems
from ..annotations.problems import DataError, Problem, find_problems
from ..images.read import ImageError, read_header
from ..runtime.atomic_files import replace_text
from .fix_annotation import fix_annotation
from .size_evidence import annotated_at, may_be_annotated_at
from .whole_dataset import looks_like_corners, raw_boxes

_COMPARED = ("image_id", "category_id", "bbox", "segmentation", "keypoints", "iscrowd", "ignore")


@dataclass
class FixedDataset:
    """A fixed data set."""

    content: dict[str, Json]
    """COCO content; may still hold unusable entries, so it is not a checked `CocoContent`."""
    changes: list[Problem] = field(default_factory=list)
    """The fixed problems; their `suggestion` says what was done."""
    remaining: list[Problem] = field(default_factory=list)
    """Problems without an unambiguous fix."""

    def write(self, path: Path) -> None:
        """Writes the annotation file; replaces an existing one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(self.content))


def refuse_inputs(paths: Iterable[Path], inputs: Iterable[str | Path | None]) -> None:
    """Checks that no file to write is one of the inputs.

    Raises:
        DataError: it is one.
    """
    given = [Path(one) for one in inputs if one is not None and Path(one).exists()]
    for path in paths:
        if path.is_dir():
            raise DataError(f"{path}: expected a file name for --fix, got a folder")
        if path.exists() and any(path.samefile(one) for one in given):
            raise DataError(
                f"{path} is the file that was checked, and --fix never overwrites its input; "
                "choose another name"
            )


def fix_dataset(data: CocoDataset, undecodable: Sequence[Problem] = ()) -> FixedDataset:
    """Fixes every problem with an unambiguous fix; the data set itself is not modified.

    Args:
        data: opened with on_error="drop".
        undecodable: problems of images that cannot be decoded; they remain.
    """
    draft = _Draft(data)

    # First what concerns the whole file, so that each annotation is then compared with the right
    # image size, category and box format. A fix may be what another one waits for.
    while draft.fix_file() or draft.fix_annotations():
        draft.find_problems()
    return FixedDataset(draft.content(), draft.changes, draft.remaining(undecodable))


def fixed_errors(data: CocoDataset, fixed: FixedDataset) -> int:
    """How many of the errors of a data set are gone in the fixed one."""
    found = Counter(p.kind for p in data.dropped)
    remaining = Counter(p.kind for p in fixed.remaining if p.is_error)
    return (found - remaining).total()


class _Draft:
    """Content that is being fixed, in memory.

    Attributes:
        images: the entries that are left, by their index in the file.
        annotations: the same.
        changes: what was changed so far.
        problems: what is wrong with the content as it is now, with indices into the file.
        of_files: problems that only opening the data finds, in image files or other formats.
    """

    def __init__(self, data: CocoDataset) -> None:
        self.data = data
        self.images = {n: _copy(image) for n, image in enumerate(data.raw["images"])}
        self.annotations = {n: _copy(raw) for n, raw in enumerate(data.raw["annotations"])}
        for raw in self.annotations.values():
            if isinstance(raw, dict):
                raw.pop("where", None)
        self.changes: list[Problem] = []
        self.categories = {c.id: c for c in parse_categories(data.raw["categories"])}

        self.find_problems()
        in_content = {(p.kind, p.annotation, p.image) for p in self.problems}
        self.of_files = [
            p
            for p in (*data.dropped, *data.warnings)
            if (p.kind, p.annotation, p.image) not in in_content
        ]

    def content(self) -> dict[str, Json]:
        """The content as it is now."""
        lists = {"images": [*self.images.values()], "annotations": [*self.annotations.values()]}
        return {**self.data.raw, **lists}

    def find_problems(self) -> None:
        """Checks the content; reads no file."""
        images = [*self.images.values()]
        labels = {i: label for label, i in enumerate(self.categories)}
        annotations = [*self.annotations.values()]
        found = find_problems(images, annotations, labels, self.categories, None).problems
        found += find_key_problems(images, self.categories)

        image_of = [*self.images]
        annotation_of = [*self.annotations]
        self.problems = [
            replace(
                p,
                image=None if p.image is None else image_of[p.image],
                annotation=None if p.annotation is None else annotation_of[p.annotation],
            )
            for p in found
        ]

    def remaining(self, undecodable: Sequence[Problem]) -> list[Problem]:
        """What is still wrong, with indices into the content as it is now; errors first."""
        image_at = {index: n for n, index in enumerate(self.images)}
        annotation_at = {index: n for n, index in enumerate(self.annotations)}
        problems = sorted([*self.problems, *self.of_files], key=_rank)
        errors = [p for p in problems if p.is_error]

        warned = [
            p
            for p in problems
            if not p.is_error and (p.annotation is not None or p.image is not None)
        ]
        return [
            replace(
                p,
                image=image_at.get(p.image) if p.image is not None else None,
                annotation=annotation_at.get(p.annotation) if p.annotation is not None else None,
            )
            for p in (*errors, *undecodable, *warned)
            if (p.image is None or p.image in image_at)
            and (p.annotation is None or p.annotation in annotation_at)
        ]

    def fix_file(self) -> bool:
        """Fixes what concerns more than one annotation; returns whether anything has changed."""
        before = len(self.changes)
        self._drop_duplicates()
        self._fix_images()
        self._shift_categories()
        self._fix_corners()
        self._fix_ids()
        return len(self.changes) > before

    def fix_annotations(self) -> bool:
        """Fixes the annotations with problems; returns whether anything has changed."""
        before = len(self.changes)
        wrong = {p.annotation for p in self.problems if p.annotation is not None}
        images = self._proven_images()

        for index in sorted(wrong):
            raw = self.annotations[index]
            image = images.get(_id(raw, "image_id"))
            category = self.categories.get(_id(raw, "category_id"))
            if image is None or category is None:
                continue

            size = (image["height"], image["width"])
            new, changes = fix_annotation(raw, size, category)
            if not changes:
                continue
            if new is None:
                del self.annotations[index]
            else:
                self.annotations[index] = new
            where = f"annotation {raw['id']} ({image['file_name']})"
            for kind, detail, what in changes:
                self._add_change(kind, where, detail, what)
        return len(self.changes) > before

    def _add_change(self, kind: str, where: str, detail: str, what: str) -> None:
        self.changes.append(Problem(kind, where, detail, what, False))

    def _wrong_images(self) -> set[int]:
        """Indices of the images whose size nothing can be compared with."""
        problems = [*self.problems, *self.of_files]
        return {p.image for p in problems if p.is_error and p.image is not None}

    def _proven_images(self) -> dict[int, JsonObject]:
        """The image entries without an error, by id."""
        wrong = self._wrong_images()
        unclear = {_id(self.images[n], "id") for n in wrong if n in self.images}
        return {
            image["id"]: image
            for n, image in self.images.items()
            if n not in wrong and image["id"] not in unclear
        }

    def _fix_images(self) -> None:
        """Drops duplicate entries, and sets sizes to those of the files where that is certain."""
        seen: set[str] = set()
        copies = []
        for index, image in self.images.items():
            if repr(image) in seen:
                copies.append(index)
            seen.add(repr(image))

        self._fix_sizes(set(copies))
        for index in copies:
            image = self.images.pop(index)
            detail = f"{image!r:.80}"
            self._add_change("image id used twice", f"images[{index}]", detail, "duplicate dropped")

    def _fix_sizes(self, copies: set[int]) -> None:
        folder = self.data.image_folder
        wrong = self._wrong_images() & self.images.keys() - copies
        if folder is None or not wrong:
            return
        objects = defaultdict(list)
        for raw in self.annotations.values():
            if isinstance(raw, dict):
                objects[repr(raw.get("image_id"))].append(raw)
        entries = [image for n, image in self.images.items() if n not in copies]
        uses = Counter(repr(i.get("id")) for i in entries if isinstance(i, dict))

        for index in sorted(wrong):
            image = self.images[index]
            if isinstance(image, dict) and isinstance(image.get("file_name"), str):
                key = repr(image.get("id"))
                if uses[key] == 1:
                    self._fix_size(index, image, folder / image["file_name"], objects[key])

    def _fix_size(
        self, index: int, image: dict[str, Json], path: Path, objects: list[JsonObject]
    ) -> None:
        try:
            size = read_header(path).size
        except ImageError:
            return

        old = (image.get("height"), image.get("width"))
        given = [_is_whole(side) and side > 0 for side in old]
        missing = not all(given)
        if old == size:
            return
        if missing and any(g and a != b for g, a, b in zip(given, old, size, strict=True)):
            return  # the side that is given is another one
        if missing and not may_be_annotated_at(objects, size):
            return
        if not missing and not annotated_at(objects, size, old):
            return

        image["height"], image["width"] = size
        self.of_files = [
            p for p in self.of_files if (p.kind, p.image) != ("image size mismatch", index)
        ]
        self._add_change(
            "image without size" if missing else "image size mismatch",
            f"image {image.get('id')} ({image['file_name']})",
            f"height, width were {old[0]}, {old[1]}",
            "set to the size of the file",
        )

    def _shift_categories(self) -> None:
        entries = [a for a in self.annotations.values() if isinstance(a, dict)]
        used = [a.get("category_id") for a in entries]
        count = len(self.categories)
        if (
            self.categories.keys() != set(range(1, count + 1))
            or not all(map(_is_whole, used))
            or set(used) != set(range(count))
        ):
            return

        for a in entries:
            a["category_id"] += 1
        self._add_change(
            "annotation of an unknown category",
            self.data.name,
            f"annotations use 0..{count - 1}, the categories are 1..{count}",
            "all category ids increased by one",
        )

    def _fix_corners(self) -> None:
        entries = self.annotations.values()
        boxes = [raw["bbox"] for raw in entries if _has_box(raw)]
        ordered = all(x0 < x1 and y0 < y1 for x0, y0, x1, y1 in boxes)
        images = list(self._proven_images().values())
        if not ordered or not looks_like_corners(*raw_boxes(images, list(entries))):
            return

        for raw in filter(_has_box, entries):
            x0, y0, x1, y1 = raw["bbox"]
            raw["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        self._add_change(
            "boxes are x0, y0, x1, y1",
            self.data.name,
            "all boxes",
            "converted to x, y, width, height",
        )

    def _fix_ids(self) -> None:
        """Gives new ids to annotations whose id is missing, already used, or 0."""
        entries = [a for a in self.annotations.values() if isinstance(a, dict)]
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
            detail = f"of image {a.get('image_id')!r:.80}, its id is now {free}"
            self._add_change(kind, f"annotation {old!r:.80}", detail, "replaced by a new id")
            free += 1

    def _drop_duplicates(self) -> None:
        """Drops annotations that differ from an earlier one by their id only."""
        first: dict[str, Json] = {}

        for index, raw in list(self.annotations.items()):
            if not isinstance(raw, dict):
                continue
            key = _key(raw)
            annotated = any(raw.get(name) for name in ("bbox", "segmentation", "keypoints"))
            if annotated and key in first:
                self._add_change(
                    "annotation given twice",
                    f"annotation {raw.get('id')}",
                    f"the same as annotation {first[key]}",
                    "duplicate dropped",
                )
                del self.annotations[index]
                continue
            first[key] = raw.get("id")


def _rank(problem: Problem) -> int:
    """The order of problems in reports: the whole set, images, annotations."""
    if problem.annotation is not None:
        return 2
    return 0 if problem.image is None else 1


def _copy(entry: Json) -> Json:
    return dict(entry) if isinstance(entry, Mapping) else entry


def _id(entry: Json, name: str) -> Json:
    """An id of an entry that may be broken; None if it is no whole number."""
    value = entry.get(name) if isinstance(entry, Mapping) else None
    return value if _is_whole(value) else None


def _is_whole(value: Json) -> TypeGuard[int]:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _has_box(raw: Json) -> bool:
    box = raw.get("bbox") if isinstance(raw, dict) else None
    return isinstance(box, list | tuple) and len(box) == 4 and all(map(is_number, box))


def _key(raw: JsonObject) -> str:
    return repr([raw.get(name) for name in _COMPARED])
