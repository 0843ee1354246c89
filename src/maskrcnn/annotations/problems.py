"""Finds everything wrong with a COCO data set, all at once, before the first training step.

`find_problems(images, annotations, ...)` reads every annotation and the header of every image and
returns a list of `Problem`s; `describe` turns them into text. An error makes an annotation or an
image unusable. A warning does not: the reader handles it as its suggestion says (see
annotation.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..config import Category
from ..images.read import ImageError, read_header
from ..runtime.counted import counted
from ..runtime.progress import track
from .annotation import ProblemReporter, read_annotation
from .coco_types import Json, JsonObject
from .crossings import self_crossing
from .images_option import images_option
from .rle import MOST_PIXELS
from .shown_values import shown

NO_OBJECT = "no object to learn"
"""The kind of problem of a data set in which no object is usable."""
_SHOWN = 20  # problems of each kind
_CHUNK = 2000  # annotations whose polygons are searched for crossings in one call


class DataError(ValueError):
    """Annotations that cannot be used: every problem, with file, annotation id and suggestion."""


class DataWarning(UserWarning):
    """Annotations that were dropped, and why."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one image or annotation."""

    kind: str
    """What is wrong, in a few words; problems are grouped by it."""
    where: str
    """Which image or annotation."""
    detail: str
    """The offending values."""
    suggestion: str
    """For an error how to fix it, for a warning how it is handled."""
    is_error: bool
    """Whether the image or annotation is unusable."""
    annotation: int | None = None
    """Index of the annotation in the file's list."""
    image: int | None = None
    """Index of the image in the file's list, if the image itself has the problem."""


@dataclass(frozen=True)
class FoundProblems:
    """What a pass over the whole file finds."""

    problems: list[Problem]
    deep_images: frozenset[int]
    """Indices of the images with more than 8 bits."""
    empty_annotations: frozenset[int]
    """Indices of the annotations without an error that have nothing left to use."""


def describe(
    name: str, problems: Sequence[Problem], noun: str = "problem", most: int | None = _SHOWN
) -> str:
    """Returns the problems as text, grouped by kind.

    Args:
        name: of the data set.
        problems: all of them.
        noun: what to call one in the first line.
        most: number of locations shown for each kind; None shows all.
    """
    return "\n".join([f"{name}: {counted(len(problems), noun)}", *listed(problems, most)])


def listed(problems: Sequence[Problem], most: int | None = _SHOWN) -> list[str]:
    """Returns the lines of `describe` without the first."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.suggestion), []).append(problem)

    lines = []
    for (kind, suggestion), group in groups.items():
        lines.append(f"  {kind} ({len(group)}): {suggestion}")
        lines += [f"    {p.where}: {p.detail}" for p in group[:most]]
        if most is not None and len(group) > most:
            lines.append(f"    ... and {len(group) - most} more")
    return lines


def summary(name: str, problems: Sequence[Problem]) -> str:
    """Returns one line with the number of warnings of each kind."""
    kinds = Counter(p.kind for p in problems)
    counts = ", ".join(f"{kind} ({count})" for kind, count in kinds.most_common())
    return f"{name}: {counted(len(problems), 'warning')}: {counts}"


def find_problems(
    images: Sequence[Json],
    annotations: Sequence[Json],
    labels: Mapping[int, int],
    categories: Mapping[int, Category],
    folder: Path | None,
    known: Collection[int | None] = (),
) -> FoundProblems:
    """Checks all entries of a file and the headers of its images.

    Args:
        images: the list `images` of the file.
        annotations: the list `annotations` of the file.
        labels: category id -> label, for the categories in use.
        categories: category id -> category as defined in the file.
        folder: folder of the images. None skips the image files.
        known: indices of images whose files are not looked at, because the caller has reported
            them.
    """
    problems, image_index = _check_image_entries(images)

    deep_images: set[int] = set()
    if folder is not None:
        broken = {p.image for p in problems if p.is_error}.union(known)
        problems += _check_image_files(images, broken, folder, deep_images)

    search = _AnnotationSearch(images, annotations, image_index, labels, categories)
    search.run()
    return FoundProblems(
        problems + search.problems, frozenset(deep_images), frozenset(search.empty)
    )


def _check_image_entries(images: Sequence[Json]) -> tuple[list[Problem], dict[int, int]]:
    """Returns problems of the entries themselves, and image id -> index of the usable entries."""
    problems: list[Problem] = []
    image_index: dict[int, int] = {}
    first_with_file: dict[str, int] = {}
    for index, image in enumerate(images):
        problem = _image_entry_error(index, image, image_index)
        if problem is not None:
            problems.append(problem)
            continue

        image_index[image["id"]] = index
        name = image["file_name"]
        first = first_with_file.setdefault(name, index) if name else index
        if first != index:
            problems.append(
                Problem(
                    kind="image listed twice",
                    where=f"images[{index}]",
                    detail=f"{image['file_name']} is also images[{first}]",
                    suggestion="list each image once",
                    is_error=False,
                    image=index,
                )
            )
    return problems, image_index


def without_images(name: str, images: Sequence[Json], num_annotated: int) -> list[Problem]:
    """Returns a problem if a data set has neither images nor annotations.

    Args:
        name: of the data set.
        images: the list of the file.
        num_annotated: number of annotations in the file, each of which is an error without images.
    """
    if images or num_annotated:
        return []
    detail = 'the list "images" is empty'
    suggestion = "nothing can be learned or measured; was the right file exported?"
    return [Problem("no image", name, detail, suggestion, is_error=False)]


def without_objects(name: str, num_annotated: int, used: Sequence[JsonObject]) -> list[Problem]:
    """Returns a problem if a data set has annotations, but no object to learn or to find.

    Args:
        name: of the data set.
        num_annotated: number of annotations in the file.
        used: the annotations that are usable.
    """
    if not num_annotated or not all(a.get("iscrowd") or a.get("ignore") for a in used):
        return []
    return [
        Problem(
            kind=NO_OBJECT,
            where=name,
            detail=f"{counted(num_annotated, 'annotation')}, usable: {len(used):,}"
            + (", all as regions to ignore" if used else ""),
            suggestion="check iscrowd and ignore: 0 is an object, 1 is a region to ignore"
            if used
            else "the other problems say why",
            is_error=False,
        )
    ]


def _image_entry_error(index: int, image: Json, image_index: Mapping[int, int]) -> Problem | None:
    """Returns what makes an image entry unusable, None if it is fine."""
    if (
        not isinstance(image, Mapping)
        or not _is_integer(image.get("id"))
        or not isinstance(image.get("file_name"), str)
    ):
        kind = "image entry is broken"
        detail = shown(image)
        suggestion = 'write {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}'
    elif not all(_is_integer(image.get(side)) and image[side] > 0 for side in ("width", "height")):
        kind = "image without size"
        detail = f"width {shown(image.get('width'))}, height {shown(image.get('height'))}"
        suggestion = "write both, in pixels, as whole numbers > 0"
    elif image["width"] * image["height"] > MOST_PIXELS:
        kind = "image too large"
        detail = f"width {shown(image['width'])}, height {shown(image['height'])}"
        suggestion = f"images have at most {MOST_PIXELS:,} pixels; cut it into tiles"
    elif image["id"] in image_index:
        kind = "image id used twice"
        detail = f"id {image['id']} is also that of images[{image_index[image['id']]}]"
        suggestion = "give each image its own id"
    else:
        return None

    return Problem(kind, f"images[{index}]", detail, suggestion, is_error=True, image=index)


def _check_image_files(
    images: Sequence[Json], broken: set[int | None], folder: Path, deep_images: set[int]
) -> list[Problem]:
    """Opens the header of every image and compares its size with the annotated one."""
    problems: list[Problem] = []
    checked = 0
    missing = 0
    for index, image in track(
        list(enumerate(images)), "checking images", show=None if len(images) >= 2000 else False
    ):
        if index in broken:
            continue
        where = f"image {image['id']} ({image['file_name']})"
        checked += 1

        try:
            header = read_header(folder / image["file_name"])
        except ImageError as error:
            missing += not os.path.exists(folder / image["file_name"])
            restore = f"is {images_option()} the right folder? If so, restore the file"
            suggestion = error.advice or restore
            problems.append(
                Problem("unreadable image", where, error.reason, suggestion, True, image=index)
            )
            continue
        if header.deep:
            deep_images.add(index)
        if header.frames > 1:
            detail = f"{header.frames} frames" if header.frames > 2 else "several frames"
            suggestion = "the first is used; save the others as images to use them too"
            problems.append(
                Problem("image with several frames", where, detail, suggestion, False, image=index)
            )

        annotated_size = (image["height"], image["width"])
        if header.size != annotated_size:
            detail = (
                f"the file is {header.size[1]} x {header.size[0]} pixels, "
                f"the annotations say {annotated_size[1]} x {annotated_size[0]}"
            )
            suggestion = "fix width and height, or use the image that was annotated"
            if header.stored_size == annotated_size:
                suggestion = (
                    "width and height ignore the EXIF rotation: write the upright size if the "
                    "objects fit it (--fix does); else annotate the upright image"
                )
            problems.append(
                Problem("image size mismatch", where, detail, suggestion, True, image=index)
            )

    if missing == checked:
        suggestion = f"none is in {folder}; pass their folder as {images_option()}"
        return [replace(problem, suggestion=suggestion) for problem in problems]
    return problems


class _AnnotationSearch:
    """One pass over the annotations of a file; collects `problems` and `empty` indices."""

    def __init__(
        self,
        images: Sequence[Json],
        annotations: Sequence[Json],
        image_index: Mapping[int, int],
        labels: Mapping[int, int],
        categories: Mapping[int, Category],
    ) -> None:
        self.images = images
        self.annotations = annotations
        self.image_index = image_index
        self.labels = labels
        self.categories = categories

        listed_ids = (image.get("id") for image in images if isinstance(image, Mapping))
        self.broken_images = {i for i in listed_ids if _is_integer(i) and i not in image_index}

        self.problems: list[Problem] = []
        self.empty: list[int] = []
        self._index_of_id: dict[int, int] = {}
        self._index_of_content: dict[tuple[Json, ...], int] = {}
        self._polygons: list[tuple[int, np.ndarray]] = []
        """Annotation index and points of each polygon not yet searched for crossings."""

    def run(self) -> None:
        starts = range(0, len(self.annotations), _CHUNK)
        for start in track(
            starts,
            "checking annotations",
            show=None if len(self.annotations) >= 50_000 else False,
        ):
            for index in range(start, min(start + _CHUNK, len(self.annotations))):
                self._check_annotation(index)
            self._check_crossings()

    def _check_annotation(self, index: int) -> None:
        raw = self.annotations[index]
        report_problem = self._reporter(index)

        if not self._check_id(index, raw, report_problem):
            return
        if not self._check_references(raw, report_problem):
            return

        image = self.images[self.image_index[raw["image_id"]]]
        category = self.categories[raw["category_id"]]
        num_before = len(self.problems)
        annotation = read_annotation(
            raw,
            0,
            category,
            range(len(category.keypoints)),
            (image["height"], image["width"]),
            report_problem,
        )
        if annotation.empty and not any(p.is_error for p in self.problems[num_before:]):
            self.empty.append(index)
        self._polygons += [(index, points) for points in annotation.polygons or ()]
        self._check_copies(index, raw, report_problem)

    def _check_id(self, index: int, raw: Json, report_problem: ProblemReporter) -> bool:
        """Returns whether the entry has an id; reports ids that are missing, used twice or 0."""
        if not isinstance(raw, Mapping) or not _is_integer(raw.get("id")):
            report_problem(
                "annotation without id",
                shown(raw),
                "give each annotation a whole-number id of its own",
                True,
            )
            return False

        first = self._index_of_id.setdefault(raw["id"], index)
        if first != index:
            report_problem(
                "annotation id used twice",
                f"also that of annotations[{first}]",
                "give each annotation its own id",
                True,
            )
        if raw["id"] == 0:
            report_problem(
                "annotation with id 0",
                "pycocotools counts a match with it as no match",
                "number annotations from 1",
                False,
            )
        return True

    def _check_references(self, raw: JsonObject, report_problem: ProblemReporter) -> bool:
        """Returns whether the annotation's image and category exist; reports those that do not."""
        image_id = raw.get("image_id")
        if _is_integer(image_id) and image_id in self.broken_images:
            return False  # the image itself is already reported
        if not _is_integer(image_id) or image_id not in self.image_index:
            report_problem(
                "annotation of an unknown image",
                f"image_id is {shown(image_id)}",
                _add_entry("image", image_id),
                True,
            )
            return False

        category_id = raw.get("category_id")
        if not _is_integer(category_id) or category_id not in self.labels:
            unused = self.categories.get(category_id) if _is_integer(category_id) else None
            name = f' ("{unused.name}")' if unused else ""
            suggestion = _add_entry("category", category_id)
            if unused:
                suggestion = (
                    "the categories of the training data (categories=) lack it; "
                    "add it there, or drop the annotation"
                )
            report_problem(
                "annotation of an unknown category",
                f"category_id is {shown(category_id)}{name}",
                suggestion,
                True,
            )
            return False
        return True

    def _check_copies(self, index: int, raw: JsonObject, report_problem: ProblemReporter) -> None:
        """Warns of an annotation equal to an earlier one of the same image and category."""
        box, mask, keypoints = (raw.get(name) for name in ("bbox", "segmentation", "keypoints"))
        if not (box or mask or keypoints):
            return
        mask_key = "" if box else str(mask)
        key = (raw["image_id"], raw["category_id"], str(box), str(keypoints), mask_key)
        first = self._index_of_content.setdefault(key, index)
        if first == index:
            return

        other = self.annotations[first]
        if all(raw.get(name) == other.get(name) for name in ("segmentation", "iscrowd", "ignore")):
            report_problem(
                "annotation given twice",
                f"the same as annotation {other['id']}",
                "both are used; drop the copy",
                False,
            )
        else:
            report_problem(
                "same box used twice",
                f"also annotation {other['id']}",
                "both are used; is one a copy?",
                False,
            )

    def _check_crossings(self) -> None:
        """Warns of the polygons read since the last call that cross themselves."""
        crosses, is_searched = self_crossing([points for _, points in self._polygons])
        for (index, points), searched in zip(self._polygons, is_searched, strict=True):
            if not searched:
                self._reporter(index)(
                    "polygon not searched for crossings",
                    counted(len(points), "point"),
                    "it is used as it is; simplify it to have it checked",
                    False,
                )
        counts = Counter(
            index for (index, _), crossed in zip(self._polygons, crosses, strict=True) if crossed
        )
        self._polygons = []

        for index, count in counts.items():
            self._reporter(index)(
                "polygon crosses itself",
                f"{counted(count, 'polygon')} of the mask",
                "everything it winds around counts as inside; redraw it",
                False,
            )

    def _reporter(self, index: int) -> ProblemReporter:
        """Returns a function that records problems of one annotation."""
        raw = self.annotations[index]

        def report_problem(kind: str, detail: str, suggestion: str, is_error: bool) -> None:
            where = f"annotations[{index}]"
            if isinstance(raw, Mapping) and _is_integer(raw.get("id")):
                # files of other formats give their own location
                where = raw.get("where") or f"annotation {raw.get('original_id', raw['id'])}"
                image_id = raw.get("image_id")
                if _is_integer(image_id) and image_id in self.image_index:
                    where += f" ({self.images[self.image_index[image_id]]['file_name']})"
            self.problems.append(
                Problem(kind, where, detail, suggestion, is_error, annotation=index)
            )

        return report_problem


def _is_integer(value: Json) -> bool:
    """Whether a value is a whole number of 64 bits."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return is_whole and -(2**63) <= value < 2**63


def _add_entry(noun: str, given: Json) -> str:
    """What to do about an annotation whose image or category is not in the list."""
    if isinstance(given, str):
        return f"write the id of the {noun}, a whole number, not a name"
    return f"add the {noun} to the list, or drop the annotation"
