"""Reads COCO content as tools write it: `interpret(content) -> Interpretation`.

In:  content whose structure is checked (structure.py), with values as other people's tools write
     them.
Out: the same content with values as the format defines them, and a note for each kind of change.

    "12.5", "7"                 numbers written as text become numbers
    7.0                         a whole number as an id or size becomes an integer
    "a1", "f3c0-..."            ids that are text become numbers; `original_id` keeps the text
    iscrowd "0", true, 1.0      becomes 0 or 1, and so does ignore
    attributes.rotation: 45     CVAT: a box without a mask is turned about its center, as a polygon
    [RLE, RLE], [RLE, polygon]  a mask in several parts becomes one RLE
    bbox of 5 numbers           Detectron2: center, size and angle become a polygon
    images without file_name    LVIS: named by the last two parts of coco_url

The notes also count what is in the file and is not used. Entries that need no change are kept as
they are, and nothing is modified in place.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from .annotation import is_number
from .coco_types import Json, JsonObject
from .image_names import name_from_url
from .mask_parts import has_rle_parts, unite_parts
from .notes import Note, Notes
from .problems import Problem
from .shown_values import shown

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_MOST_ID = 2**62  # larger ids are problems
_LONGEST = 40  # characters of a number; text of thousands of digits is none
_WORDS = {"true": 1, "yes": 1, "false": 0, "no": 0, "": 0}
_CVAT = "attributes.rotation"
_ANGLES = ("rotation", "angle", "theta")
_USED = {
    *("id", "image_id", "category_id", "bbox", "segmentation", "keypoints", "num_keypoints"),
    *("area", "iscrowd", "ignore", "where", "original_id", "point_coords", "point_labels"),
}
_TOP_LEVEL = {"images", "annotations", "categories", "info", "licenses", "type"}
_ID_LISTS = ("labeled_categories", "neg_category_ids", "not_exhaustive_category_ids")
_MOST_NAMES = 8  # fields named in a note
_TEXT = ("numbers written as text", "read as numbers")
_SIZES = ("width", "height")
_SCALARS = (*_SIZES, "area", "num_keypoints")
_NUMBERS = (
    *("area", "num_keypoints", "bbox", "keypoints", "segmentation"),
    *("point_coords", "point_labels"),
)
_SOURCES = {"id": "annotations", "image_id": "images", "category_id": "categories"}


@dataclass(frozen=True)
class Interpretation:
    """Content as the format defines it."""

    content: JsonObject
    """The lists may still hold unusable entries."""
    notes: tuple[Note, ...]
    """What is read differently than written, and what is not used."""
    problems: tuple[Problem, ...]
    """Values that could mean either of two things."""


def interpret(content: JsonObject) -> Interpretation:
    """Returns content with its values as the format defines them.

    Args:
        content: with the lists images, annotations and categories.
    """
    return _Interpreter(content).run()


def number_of(value: Json) -> Json:
    """The number that a text is; any other value unchanged."""
    if not isinstance(value, str) or len(value) > _LONGEST or not _NUMBER.fullmatch(value):
        return value
    number = float(value)
    is_whole = value.strip().lstrip("+-").isdigit()
    return int(value) if is_whole else number


class _Interpreter:
    """One pass over the entries of a file."""

    def __init__(self, content: JsonObject) -> None:
        self.content = content
        self.notes = Notes()
        self.problems: list[Problem] = []
        self.ids = {
            key: self._ids_of(key, content[key]) for key in ("images", "annotations", "categories")
        }
        self.unused: Counter[str] = Counter()
        self.num_unused = 0
        self.five_are_degrees = _are_degrees(content["annotations"])

    def run(self) -> Interpretation:
        images = _each(self.content["images"], self._image)
        categories = _each(self.content["categories"], self._category)
        annotations = _each(self.content["annotations"], self._annotation)

        self._note_unused()
        self._note_missing(annotations)
        self._note_empty(images, categories, annotations)
        content = {
            **self.content,
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        return Interpretation(content, self.notes.all(), tuple(self.problems))

    def _ids_of(self, key: str, entries: Sequence[Json]) -> dict[str, int]:
        """The number of each id that is text.

        A text that is a number stands for it, unless "1" and "01" are two ids. Others are numbered
        from the largest number on, in the order of the file.
        """
        given = [entry.get("id") for entry in entries if isinstance(entry, Mapping)]
        texts = list(dict.fromkeys(i for i in given if isinstance(i, str)))
        if not texts:
            return {}

        numbers = {t: int(t) for t in texts if t.isascii() and t.isdigit() and len(t) < 19}
        if len(set(numbers.values())) < len(numbers):
            numbers = {}
        whole = [int(i) for i in given if isinstance(i, int) and abs(i) < _MOST_ID]
        free = max([0, *whole, *numbers.values()]) + 1

        others = [text for text in texts if text not in numbers]
        if others:
            handled = "numbered in the order of the file; original_id keeps each"
            what = f"{key} whose id is text"
            self.notes.add(what, handled, shown(others[0]), len(others), is_rewritten=True)
        return numbers | {text: free + n for n, text in enumerate(others)}

    def _image(self, index: int, raw: JsonObject) -> dict[str, Json]:
        changes = self._id_changes(raw, "images", {"id": "images"})
        changes |= self._numbers(raw, _SIZES, lambda: f"images[{index}]")
        for key in _ID_LISTS:
            ids = raw.get(key)
            if isinstance(ids, list) and not all(type(i) is int for i in ids):
                changes[key] = [self._id(i, "categories") for i in ids]

        url = raw.get("coco_url")
        if raw.get("file_name") in (None, "") and isinstance(url, str) and "/" in url:
            changes["file_name"] = name_from_url(url)
            what = "images without file_name"
            handled = "named by the end of coco_url"
            self.notes.add(what, handled, changes["file_name"], is_rewritten=True)
        return changes

    def _category(self, index: int, raw: JsonObject) -> dict[str, Json]:
        if raw.get("name") in (None, ""):
            what = "categories without a name"
            self.notes.add(what, "their ids are their names", f"categories[{index}]")
        return self._id_changes(raw, "categories", {"id": "categories"})

    def _annotation(self, index: int, raw: JsonObject) -> dict[str, Json]:
        changes = self._id_changes(raw, "annotations", _SOURCES)
        changes |= self._numbers(raw, _NUMBERS, partial(_where, index, raw))
        changes |= self._united(changes.get("segmentation", raw.get("segmentation")), index, raw)
        for key in ("iscrowd", "ignore"):
            value = raw.get(key, 0)
            if type(value) is not int or value not in (0, 1):
                changes |= self._flag(index, raw, key)

        if raw.get("num_keypoints") and not raw.get("keypoints"):
            self.notes.add("num_keypoints without keypoints", "not used", _where(index, raw))
        if not isinstance(raw.get("where", ""), str):  # the readers of other formats write text
            changes["where"] = ""

        rotated = {}
        extra = raw.keys() - _USED
        box = raw.get("bbox")
        if extra or (isinstance(box, list | tuple) and len(box) == 5):
            rotated = self._rotated({**raw, **changes}, _where(index, raw))
            self._count_unused(raw, extra, is_turned=bool(rotated))
        return changes | rotated

    def _id_changes(self, raw: JsonObject, own: str, sources: Mapping[str, str]) -> dict[str, Json]:
        """New values of the ids of an entry; `sources` is the list that each refers to."""
        changes: dict[str, Json] = {}
        for key, source in sources.items():
            value = raw.get(key)
            if type(value) in (str, float):
                changes[key] = number = self._id(value, source)
                if isinstance(value, str) and value != number == number_of(value):
                    example = f"{key} {shown(value, 40)} of {own}"
                    self.notes.add(*_TEXT, example, is_rewritten=True)
                elif isinstance(value, str) and key == "id":
                    changes["original_id"] = value
        return changes

    def _id(self, value: Json, source: str) -> Json:
        if isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, str):
            return value
        if value in self.ids[source]:
            return self.ids[source][value]
        is_number = value.isascii() and value.isdigit() and len(value) < 19
        return int(value) if is_number else value

    def _numbers(
        self, raw: JsonObject, names: Iterable[str], where: Callable[[], str]
    ) -> dict[str, Json]:
        """New values of the fields in which numbers are text, or sizes are whole floats."""
        changes: dict[str, Json] = {}
        for name in names:
            value = raw.get(name)
            if name in _SIZES and isinstance(value, float) and value.is_integer():
                changes[name] = int(value)
                continue
            new = number_of(value) if name in _SCALARS else _with_numbers(value)
            if new is not value:
                changes[name] = new
                example = f"{name} {shown(value, 40)} of {where()}"
                self.notes.add(*_TEXT, example, is_rewritten=True)
        return changes

    def _united(self, mask: Json, index: int, raw: JsonObject) -> dict[str, Json]:
        """The RLE of a mask that is a list with RLEs in it; broken ones stay, as problems."""
        if not has_rle_parts(mask):
            return {}
        try:
            united = unite_parts(mask)
        except ValueError:
            return {}
        handled = "united to one mask" if len(mask) > 1 else "read as the RLE"
        where = _where(index, raw)
        self.notes.add("masks that are a list of RLEs", handled, where, is_rewritten=True)
        return {"segmentation": united}

    def _flag(self, index: int, raw: JsonObject, key: str) -> dict[str, Json]:
        """The new value of `iscrowd` or `ignore`; a problem where it is neither yes nor no."""
        value = raw.get(key)
        if value is None:
            return {}
        where = _where(index, raw)
        if isinstance(value, str):
            flag = _WORDS.get(value.strip().lower(), number_of(value))
            example = f"{where}: {shown(value)}"
            self.notes.add(f"{key} written as text", "read as 0 or 1", example, is_rewritten=True)
        else:
            flag = value
            if isinstance(value, bool):
                what = f"{key} written as true or false"
                self.notes.add(what, "read as 1 or 0", where, is_rewritten=True)
        if isinstance(flag, int | float) and flag in (0, 1):
            return {key: int(flag)}

        self.problems.append(
            Problem(
                kind=f"{key} is not 0 or 1",
                where=where,
                detail=f"{key} is {shown(value, 40)}",
                suggestion="write 0 for an object, 1 for a region to ignore",
                is_error=True,
                annotation=index,
            )
        )
        return {}

    def _rotated(self, raw: JsonObject, where: str) -> dict[str, Json]:
        """The mask and the box of an annotation whose box is turned."""
        four = _box(raw, 4)
        five = _box(raw, 5)
        has_mask = bool(raw.get("segmentation"))
        name, angle = _angle(raw)

        if five and has_mask:
            handled = "not used; the mask decides"
            self.notes.add("boxes of five numbers", handled, where, is_rewritten=True)
            return {"bbox": None}
        if five and self.five_are_degrees:
            handled = "read as center x, center y, width, height, degrees, as Detectron2 writes"
            handled += "; they become polygons"
            self.notes.add("boxes of five numbers", handled, where, is_rewritten=True)
            x, y, width, height, degrees = five
            return _turned(x, y, width, height, -degrees)

        if not name:
            return {}
        if has_mask:
            self.notes.add(f"masks with {name}", "used as they are, not turned", where)
        elif name == _CVAT and four:
            handled = "turned about their centers; they become polygons"
            self.notes.add(f"boxes with {name}", handled, where, is_rewritten=True)
            x, y, width, height = four
            attributes = {k: v for k, v in raw["attributes"].items() if k != "rotation"}
            turned = _turned(x + width / 2, y + height / 2, width, height, angle)
            return turned | {"attributes": attributes}
        else:
            handled = "used without turning them; export polygons to train on the turned shape"
            self.notes.add(f"boxes with {name}", handled, where)
        return {}

    def _count_unused(self, raw: JsonObject, extra: Iterable[str], is_turned: bool) -> None:
        """Counts the fields of an annotation that nothing reads."""
        names = []
        for key in sorted(extra, key=str):
            value = raw[key]
            inner = value.items() if isinstance(value, Mapping) and key == "attributes" else ()
            names += [f"attributes.{name}"[:50] for name, part in inner if not _is_empty(part)]
            if not inner and not _is_empty(value):
                names.append(str(key)[:50])
        if is_turned and _CVAT in names:
            names.remove(_CVAT)
        self.unused.update(names)
        self.num_unused += bool(names)

    def _note_unused(self) -> None:
        if self.unused:
            named = [f"{name} ({count:,})" for name, count in self.unused.most_common(_MOST_NAMES)]
            more = len(self.unused) - len(named)
            listed = ", ".join(named) + (f" and {more} more" if more else "")
            what = "annotations with fields that are not used"
            self.notes.add(what, listed, count=self.num_unused)
        for key, value in self.content.items():
            if key not in _TOP_LEVEL and isinstance(value, list) and value:
                self.notes.add(f'entries of the list "{key}"', "not used", count=len(value))

    def _note_missing(self, annotations: Sequence[Json]) -> None:
        """Notes objects that lack what other objects have, and regions to ignore."""
        entries = [a for a in annotations if isinstance(a, Mapping)]
        ignored = [a for a in entries if a.get("iscrowd") or a.get("ignore")]
        objects = [a for a in entries if not (a.get("iscrowd") or a.get("ignore"))]
        if ignored:
            handled = "neither objects nor background; their masks and keypoints are not learned"
            self.notes.add("regions to ignore (crowds)", handled, count=len(ignored))

        for field, noun, handled in (
            ("segmentation", "mask", "excluded from the mask AP; their boxes may train masks"),
            ("bbox", "box", "the box around the mask or the keypoints is used"),
        ):
            missing = sum(not a.get(field) for a in objects)
            if missing and (field == "bbox" or missing < len(objects)):
                self.notes.add(f"objects without a {noun}", handled, count=missing)

    def _note_empty(
        self, images: Sequence[Json], categories: Sequence[Json], annotations: Sequence[Json]
    ) -> None:
        """Notes images and categories that no annotation refers to."""
        entries = [a for a in annotations if isinstance(a, Mapping)]
        for listed, reference, name, what, handled in (
            (images, "image_id", "file_name", "images without objects", "used as such"),
            (categories, "category_id", "name", "categories without objects", "kept, not learned"),
        ):
            used = {i for a in entries if isinstance(i := a.get(reference), int | str)}
            for entry in listed:
                number = entry.get("id") if isinstance(entry, Mapping) else None
                if isinstance(number, int | str) and number not in used:
                    self.notes.add(what, handled, shown(entry.get(name), 60).strip("'"))


def _each(
    entries: Sequence[Json], change: Callable[[int, JsonObject], dict[str, Json]]
) -> Sequence[Json]:
    """The entries with the changes of each; the same list if nothing changes."""
    new: list[Json] = []
    changed = False
    for index, raw in enumerate(entries):
        changes = change(index, raw) if isinstance(raw, Mapping) else {}
        new.append({**raw, **changes} if changes else raw)
        changed |= bool(changes)
    return new if changed else entries


def _where(index: int, raw: JsonObject) -> str:
    number = raw.get("id")
    name = raw.get("where")
    if isinstance(name, str):
        return name
    has_id = isinstance(number, int | str | float)
    return f"annotation {shown(number).strip(chr(39))}" if has_id else f"annotations[{index}]"


def _with_numbers(value: Json) -> Json:
    """A value with its texts as numbers; the same object if there are none."""
    if isinstance(value, list):
        kinds = set(map(type, value))
        if kinds.isdisjoint((str, list, dict)):
            return value
        new = [number_of(p) if isinstance(p, str) else _with_numbers(p) for p in value]
        return value if all(a is b for a, b in zip(new, value, strict=True)) else new

    if isinstance(value, Mapping):  # an RLE, whose counts may be compressed text
        new_parts = {
            key: _with_numbers(part)
            for key, part in value.items()
            if key in ("size", "counts") and isinstance(part, list)
        }
        same = all(part is value[key] for key, part in new_parts.items())
        return value if same else {**value, **new_parts}
    return value


def _angle(raw: JsonObject) -> tuple[str, float]:
    """The field that turns a box, and its degrees; "" if none does."""
    attributes = raw.get("attributes")
    inner = attributes if isinstance(attributes, Mapping) else {}
    for prefix, fields in (("attributes.", inner), ("", raw)):
        for name in _ANGLES:
            angle = number_of(fields.get(name))
            if is_number(angle) and angle % 180:
                return prefix + name, float(angle)
    return "", 0.0


def _box(raw: JsonObject, count: int) -> list[float] | None:
    """The box, if it has this many numbers and a positive width and height."""
    box = _with_numbers(raw.get("bbox"))
    if not isinstance(box, list | tuple) or len(box) != count or not all(map(is_number, box)):
        return None
    return list(box) if min(box[2], box[3]) > 0 else None


def _are_degrees(annotations: Sequence[Json]) -> bool:
    """Whether the fifth numbers of boxes are degrees; small ones may be radians or scores."""
    boxes = [_box(a, 5) for a in annotations if isinstance(a, Mapping)]
    return max((abs(box[4]) for box in boxes if box), default=0.0) > math.pi


def _turned(x: float, y: float, width: float, height: float, degrees: float) -> dict[str, Json]:
    """A rectangle turned clockwise about its center x, y: its polygon and the box around it."""
    cosine = math.cos(math.radians(degrees))
    sine = math.sin(math.radians(degrees))
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)
    points = corners @ np.array([[cosine, sine], [-sine, cosine]]) + (x, y)
    low = points.min(axis=0)
    return {
        "segmentation": [points.reshape(-1).tolist()],
        "bbox": [*low.tolist(), *(points.max(axis=0) - low).tolist()],
    }


def _is_empty(value: Json) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)
