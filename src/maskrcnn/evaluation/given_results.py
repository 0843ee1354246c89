"""COCO results from a file or a list, checked and matched to annotations.

In:  result entries of any origin, and the annotations to compare them with.
Out: the same entries with the image and category ids of the annotations.

Names decide: an entry with a `file_name` belongs to the image of that name, and one with a
`category_name` to the category of that name. Ids count only where names are missing. Entries of
images or categories that are not annotated are counted and named.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..annotations import rle
from ..annotations.categories import similar_names
from ..annotations.coco_types import CocoContent, CocoResult
from ..annotations.json_file import read_json
from ..config import Category
from ..runtime.counted import counted
from ..runtime.plain_data import PlainData
from .metric import FIELD

SHOWN = 5  # names in a message


def read_results(source: str | Path) -> list[PlainData]:
    """Returns the entries of a results file.

    The file holds a list of results, or an object with the list "annotations" whose "images" and
    "categories" then name what the entries' ids mean.

    Args:
        source: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON or has no list of results.
    """
    if not Path(source).is_file():
        raise FileNotFoundError(f"{source}: file not found")
    content: Any = read_json(Path(source))
    if isinstance(content, Mapping) and isinstance(content.get("annotations"), list):
        return _with_names(content)
    if not isinstance(content, list):
        got = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            got = f"an object with the keys {', '.join(map(str, content)) or 'none'}"
        raise ValueError(
            f"{source}: expected a list of detections, as in a COCO results file, got {got}"
        )
    return content


def match_results(
    results: Sequence[PlainData], truth: CocoContent, categories: Sequence[Category], where: str
) -> list[CocoResult]:
    """Checks results and gives them the ids of the annotations.

    Args:
        results: entries with image_id (or file_name), category_id (or category_name), score, and a
            bbox, segmentation or keypoints.
        truth: COCO annotations with whole-number ids; entries whose id was text have an
            `original_id`.
        categories: those of `truth`.
        where: what the results are, for messages.

    Returns:
        The entries whose image and category are annotated.

    Raises:
        ValueError: an entry is malformed or ambiguous, or none of them is annotated; the message
            names the entry.
    """
    if not results:
        warnings.warn(f"{where}: it has no detections, so that every AP is 0", stacklevel=4)
    checked = [_checked(entry, f"{where}, entry {n}") for n, entry in enumerate(results)]
    _report_scores(results, checked, where)

    images = _Images(truth)
    labels = _Categories(categories, checked, original_ids(truth["categories"]))
    matched: list[CocoResult] = []
    for n, entry in enumerate(checked):
        place = f"{where}, entry {n}"
        image = images.find(entry, place)
        category = labels.find(entry)
        if image is None or category is None:
            continue
        result: Any = {**entry, "image_id": image, "category_id": category}
        _check_parts(result, images.sizes.get(image), labels.keypoints[category], place)
        matched.append(result)

    labels.report(where, len(results))
    images.report(where, len(results))
    _report_repeated(matched, where)
    _report_missing_parts(matched, labels.keypoints, where)
    return matched


def plain_id(value: Any) -> Any:
    """An id as an integer where it is one: "7" and 7.0 become 7; other text stays."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def original_ids(entries: Sequence[Any]) -> dict[str, int]:
    """The id of each entry by the text that the file has instead."""
    return {entry["original_id"]: entry["id"] for entry in entries if "original_id" in entry}


class _Images:
    """Finds the annotated image of an entry, and counts entries of other images."""

    def __init__(self, truth: CocoContent) -> None:
        self.count = len(truth["images"])
        self.original = original_ids(truth["images"])
        self.ids = {image["id"] for image in truth["images"] if "original_id" not in image}
        """Ids that the file itself has."""
        self.sizes = {
            image["id"]: (image["height"], image["width"])
            for image in truth["images"]
            if "height" in image and "width" in image
        }
        self.names = {
            image["id"]: _slashed(image["file_name"])
            for image in truth["images"]
            if image.get("file_name")
        }
        self.by_last: dict[str, list[Any]] = {}
        self.by_stem: dict[str, list[Any]] = {}
        for id_, name in self.names.items():
            self.by_last.setdefault(_last(name), []).append(id_)
            self.by_stem.setdefault(_last(name).rsplit(".", 1)[0], []).append(id_)

        self.others: Counter[str] = Counter()
        """How many entries have a file name that is not annotated."""

    def find(self, entry: PlainData, place: str) -> Any:
        id_ = plain_id(entry.get("image_id"))
        name = _slashed(entry.get("file_name") or "")
        if not name and id_ in self.original:
            return self.original[id_]
        if not name and isinstance(id_, str):
            return self._of_text(id_, place)  # some tools write the name of the file as its id
        if not name or not self.names:
            if id_ in self.ids:
                return id_
            raise ValueError(
                f"{place}: image_id {id_!r} is not among the annotated images ({self.count:,}), "
                f"such as {_some([*self.original, *map(str, self.ids)])}; "
                'use the ids of the annotation file, or add "file_name" to the results'
            )

        if self.names.get(id_) == name:
            return id_
        return self._only(name, self._named(name), place)

    def report(self, where: str, total: int) -> None:
        if not self.others:
            return
        count = self.others.total()
        text = (
            f"{count:,} of {counted(total, 'detection')}, of "
            f"{counted(len(self.others), 'image')} without annotations ({_some([*self.others])})"
        )
        if count == total:
            raise ValueError(
                f"{where}: {text}; the annotated images ({self.count:,}) are "
                f"{_some([*self.names.values()])}. Evaluate on the images that were predicted"
            )
        warnings.warn(f"{where}: ignored detections: {text}", stacklevel=5)

    def _of_text(self, text: str, place: str) -> Any:
        name = _slashed(text)
        return self._only(name, self._named(name) or self.by_stem.get(_last(name), []), place)

    def _only(self, name: str, fitting: Sequence[Any], place: str) -> Any:
        if len(fitting) > 1:
            raise ValueError(
                f'{place}: "{name}" is the name of {len(fitting)} of the {self.count} '
                "annotated images. Give the file names with their folders"
            )
        if not fitting:
            self.others[name] += 1
            return None
        return fitting[0]

    def _named(self, name: str) -> Sequence[Any]:
        """The ids of the images that a name means, among those with the same last part.

        Images of exactly this name; else those whose name ends with it, or with which it ends (one
        side lacks leading folders); else those of the same file name in other folders.
        """
        same_last = self.by_last.get(_last(name), [])
        exact = [i for i in same_last if self.names[i] == name]
        if exact:
            return exact
        ending = [
            i
            for i in same_last
            if f"/{self.names[i]}".endswith(f"/{name}") or f"/{name}".endswith(f"/{self.names[i]}")
        ]
        return ending or same_last


class _Categories:
    """Finds the annotated category of an entry, and counts entries of other categories."""

    def __init__(
        self,
        categories: Sequence[Category],
        results: Sequence[PlainData],
        original: Mapping[str, int],
    ) -> None:
        self.categories = categories
        self.original = original
        self.renumbered = set(original.values())
        self.keypoints = {c.id: len(c.keypoints) for c in categories}
        self.by_name = {c.name: c.id for c in categories}
        names = {str(r["category_name"]) for r in results if r.get("category_name")}
        # A model without names numbers its categories; then the ids decide.
        self.numbered = all(name.isdigit() for name in names) and not names & self.by_name.keys()
        self.other_names: Counter[str] = Counter()
        self.other_ids: Counter[Any] = Counter()

    def find(self, entry: PlainData) -> Any:
        id_ = plain_id(entry.get("category_id"))
        name = str(entry.get("category_name") or "")
        if not name or self.numbered:
            if id_ in self.original:
                return self.original[id_]
            if id_ in self.keypoints and id_ not in self.renumbered:
                return id_
            self.other_ids[id_] += 1
            return None

        if name not in self.by_name:
            self.other_names[name] += 1
            return None
        return self.by_name[name]

    def report(self, where: str, total: int) -> None:
        if self.other_ids:
            ids = sorted(self.other_ids, key=str)
            known = ", ".join(f"{c.id} ({c.name})" for c in self.categories[:10])
            shift = {i + 1 for i in ids if isinstance(i, int)} & self.keypoints.keys()
            hint = " They may be counted from 0 here." if 0 in ids and shift else ""
            raise ValueError(
                f"{where}: the category ids {ids[:10]} of {self.other_ids.total()} of {total} "
                f"detections are not annotated; the annotations have {known}.{hint} "
                'The results name no categories: add "category_name" to each, or remove those of '
                "other categories"
            )
        if not self.other_names:
            return

        similar = similar_names(self.other_names, self.by_name)
        if similar is not None and not self.numbered:
            raise ValueError(
                f'{where}: detections of "{similar[0]}", but the annotations have "{similar[1]}"; '
                "give both the same spelling"
            )
        count = self.other_names.total()
        text = f"the categories {_some([*self.other_names])}, which are not annotated"
        if count < total:
            message = f"{where}: ignored {count:,} of {counted(total, 'detection')}, of {text}"
            warnings.warn(message, stacklevel=5)
            return
        near = [
            f'"{close[0]}" for "{name}"'
            for name in self.other_names
            if (close := difflib.get_close_matches(name, self.by_name, n=1))
        ]
        meant = f" Did you mean {_some(near)}?" if near else ""
        raise ValueError(
            f"{where}: all detections ({total:,}) are of {text}; the annotations have "
            f"{_some([*self.by_name])}.{meant} Rename the categories on one side"
        )


def _checked(entry: Any, place: str) -> PlainData:
    """An entry with a numeric score, after checks that need no annotations."""
    is_object = isinstance(entry, Mapping)
    ids = [entry.get(key) for key in ("image_id", "category_id")] if is_object else []
    are_ids = all(isinstance(i, int | float | str | None) and not isinstance(i, bool) for i in ids)
    if not is_object or not are_ids:
        raise ValueError(
            f"{place}: expected an object with image_id, category_id and score, got {entry!r:.60}"
        )

    missing = [
        key
        for key, other in (("image_id", "file_name"), ("category_id", "category_name"))
        if entry.get(key) is None and not entry.get(other)
    ]
    missing += ["score"] * (entry.get("score") is None)
    if missing:
        raise ValueError(
            f"{place}: {', '.join(missing)} missing; each entry needs image_id, category_id, "
            "score, and a bbox, segmentation or keypoints"
        )
    if not any(entry.get(field) for field in FIELD.values()):
        raise ValueError(f"{place}: expected a bbox, segmentation or keypoints, got none of them")

    score = entry["score"]
    try:
        number = math.nan if isinstance(score, bool) else float(score)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{place}: score: expected a number from 0 to 1, got {score!r:.40}")
    return entry if score is number else {**entry, "score": number}


def _check_parts(
    entry: PlainData, size: tuple[int, int] | None, num_keypoints: int, place: str
) -> None:
    box = entry.get("bbox")
    if box is not None and (not _are_numbers(box, 4) or box[2] < 0 or box[3] < 0):
        raise ValueError(
            f"{place}: bbox: expected 4 finite numbers x, y, width, height, got {box!r:.80}"
        )

    segmentation = entry.get("segmentation")
    if segmentation:
        problem = _segmentation_problem(segmentation, size)
        if problem:
            raise ValueError(f"{place}: segmentation: {problem}")

    keypoints = entry.get("keypoints")
    if keypoints and not _are_numbers(keypoints, 3 * num_keypoints):
        got = f"{len(keypoints)}" if isinstance(keypoints, list | tuple) else repr(keypoints)[:40]
        raise ValueError(
            f"{place}: expected {3 * num_keypoints} keypoint numbers (x, y and score each) for "
            f"category {entry['category_id']}, got {got}"
        )


def _segmentation_problem(segmentation: Any, size: tuple[int, int] | None) -> str:
    if isinstance(segmentation, list | tuple):
        flat = all(
            isinstance(part, list | tuple)
            and len(part) >= 6
            and len(part) % 2 == 0
            and _are_numbers(part, len(part))
            for part in segmentation
        )
        return "" if flat else "expected polygons as lists x, y, x, y, ... of 3 points or more"
    if not isinstance(segmentation, Mapping) or not {"size", "counts"} <= segmentation.keys():
        return f"expected polygons, or RLE with size and counts, got {segmentation!r:.60}"

    stored = segmentation["size"]
    if not _are_numbers(stored, 2):
        return f"size: expected [height, width], got {stored!r:.40}"
    if size is not None and tuple(stored) != size:
        swapped = "; height and width are swapped" if tuple(stored) == size[::-1] else ""
        return (
            f"size: expected {list(size)}, the height and width of the image, "
            f"got {list(stored)}{swapped}"
        )
    try:
        rle.counts(segmentation)
    except (ValueError, TypeError, OverflowError) as error:
        return str(error)
    return ""


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(
            isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
            for v in values
        )
    )


def _report_scores(given: Sequence[PlainData], checked: Sequence[PlainData], where: str) -> None:
    texts = sum(isinstance(entry["score"], str) for entry in given)
    if texts:
        message = f"{where}: scores that are text were read as numbers: {texts:,}"
        warnings.warn(message, stacklevel=5)
    beyond = [entry["score"] for entry in checked if not 0 <= entry["score"] <= 1]
    if beyond:
        extreme = max(beyond, key=abs)
        warnings.warn(
            f"{where}: {counted(len(beyond), 'score')} outside 0 to 1, such as {extreme:g}; "
            "only the order of the scores counts",
            stacklevel=5,
        )


def _report_repeated(results: Sequence[CocoResult], where: str) -> None:
    fields = ("image_id", "category_id", "score", *FIELD.values())
    times = Counter(tuple(str(entry.get(field)) for field in fields) for entry in results)
    repeated = sum(times.values()) - len(times)
    if repeated:
        warnings.warn(
            f"{where}: exact repetitions of another detection: {repeated:,}; "
            "each counts as a false positive",
            stacklevel=5,
        )


def _report_missing_parts(
    results: Sequence[CocoResult], keypoints: Mapping[Any, int], where: str
) -> None:
    """Warns where only some detections have a part. A box that is missing comes from the mask."""
    for task, field in FIELD.items():
        expected = [
            r
            for r in results
            if (task != "keypoints" or keypoints[r["category_id"]])
            and not (task == "bbox" and r.get("segmentation"))
        ]
        without = sum(not r.get(field) for r in expected)
        if 0 < without < len(expected):
            warnings.warn(
                f"{where}: {without:,} of {counted(len(expected), 'detection')} without {field}, "
                f"not counted for {task}",
                stacklevel=5,
            )


def _with_names(content: PlainData) -> list[PlainData]:
    """The entries of a COCO dictionary with the names that its lists give to their ids."""
    lists = (
        ("image_id", "file_name", "images", "file_name"),
        ("category_id", "category_name", "categories", "name"),
    )
    entries = list(content["annotations"])

    for id_key, name_key, list_name, key in lists:
        listed = content.get(list_name)
        named = {
            plain_id(item["id"]): item[key]
            for item in (listed if isinstance(listed, list) else ())
            if isinstance(item, Mapping)
            and isinstance(item.get("id"), int | float | str)
            and isinstance(item.get(key), str)
            and item[key]
        }
        for n, entry in enumerate(entries):
            if isinstance(entry, Mapping) and not entry.get(name_key):
                id_ = entry.get(id_key)
                name = named.get(plain_id(id_)) if isinstance(id_, int | float | str) else None
                entries[n] = {**entry, name_key: name} if name else entry
    return entries


def _slashed(name: Any) -> str:
    return str(name).replace("\\", "/")


def _last(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
