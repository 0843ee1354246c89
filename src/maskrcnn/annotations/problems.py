"""What is wrong with a COCO data set, all at once, before the first step.

`check(images, annotations, ..)` reads every annotation and the header of every image and gives a list of `Problem`s; `describe` makes them
readable. Harmful ones make an annotation or an image unusable; the others are notes on what is mended while reading (annotations.py says how).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Category
from ..images.read import ImageError, read_header
from .annotation import Report, read_annotation
from .crossings import self_crossing

_SHOWN = 20  # of each kind
_TOGETHER = 2000  # annotations whose polygons are searched for crossings at once


class DataError(ValueError):
    """Annotations that cannot be used: every problem, with file, annotation id and cure."""


class DataWarning(UserWarning):
    """Annotations that were dropped, and why."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one image or annotation."""

    kind: str
    where: str
    detail: str
    suggestion: str
    is_error: bool
    annotation: int | None = None
    """Its place in the file's list."""
    image: int | None = None
    """The image's place in the file's list, where the image itself is unusable."""


@dataclass(frozen=True)
class Checked:
    """Everything that a look at the whole file gives."""

    problems: list[Problem]
    deep: frozenset[int]
    """Places of the images with more than 8 bits."""
    empty: frozenset[int]
    """Places of the annotations of which nothing is left to use, though nothing harmful is wrong with them."""


def describe(
    name: str, problems: Sequence[Problem], noun: str = "problem", most: int | None = _SHOWN
) -> str:
    """The problems as text, grouped by kind: the cure once, then the first 20 places (None: all)."""
    return "\n".join(
        [f"{name}: {len(problems):,} {noun}{'s' * (len(problems) != 1)}", *listed(problems, most)]
    )


def listed(problems: Sequence[Problem], most: int | None = _SHOWN) -> list[str]:
    """The lines of `describe` without the first."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.kind, problem.suggestion), []).append(problem)
    lines = []
    for (kind, suggestion), found in kinds.items():
        lines.append(f"  {kind} ({len(found)}): {suggestion}")
        lines += [f"    {p.where}: {p.detail}" for p in found[:most]]
        if most is not None and len(found) > most:
            lines.append(f"    .. and {len(found) - most} more")
    return lines


def summary(name: str, problems: Sequence[Problem]) -> str:
    """The problems in one line: how many of each kind."""
    kinds = Counter(p.kind for p in problems)
    return f"{name}: {len(problems)} note{'s' * (len(problems) != 1)}: {', '.join(f'{kind} ({count})' for kind, count in kinds.most_common())}"


def check(
    images: Sequence[Any],
    annotations: Sequence[Any],
    labels: Mapping[int, int],
    categories: Mapping[int, Category],
    folder: Path | None,
) -> Checked:
    """Looks at everything.

    Args:
        images: the list `images` of the file.
        annotations: the list `annotations` of the file.
        labels: category id -> label, for the categories in use.
        categories: category id -> category as the file has it.
        folder: of the images; None = their files are not looked at.
    """
    problems, places = _check_images(images)
    deep: set[int] = set()
    if folder is not None:
        problems += _check_files(images, {p.image for p in problems if p.is_error}, folder, deep)
    pass_over = _Annotations(images, annotations, places, labels, categories)
    pass_over.run()
    return Checked(problems + pass_over.problems, frozenset(deep), frozenset(pass_over.empty))


def _check_images(images: Sequence[Any]) -> tuple[list[Problem], dict[int, int]]:
    """Problems of the entries themselves, and image id -> place of the usable ones."""
    problems: list[Problem] = []
    places: dict[int, int] = {}
    files: dict[str, int] = {}
    for place, image in enumerate(images):

        def tell(
            kind: str, detail: str, suggestion: str, is_error: bool = True, place: int = place
        ) -> None:
            problems.append(
                Problem(kind, f"images[{place}]", detail, suggestion, is_error, image=place)
            )

        if (
            not isinstance(image, Mapping)
            or not _is_whole(image.get("id"))
            or not isinstance(image.get("file_name"), str)
        ):
            tell(
                "broken image entry",
                f"{image!r:.80}",
                'write {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}',
            )
        elif not all(
            _is_whole(image.get(side)) and image[side] > 0 for side in ("width", "height")
        ):
            tell(
                "image without size",
                f"width {image.get('width')!r}, height {image.get('height')!r}",
                "write both, in pixels, as whole numbers > 0",
            )
        elif image["id"] in places:
            tell(
                "image id used twice",
                f"id {image['id']} is also that of images[{places[image['id']]}]",
                "give each image its own id",
            )
        else:
            places[image["id"]] = place
            if files.setdefault(image["file_name"], place) != place:
                tell(
                    "image listed twice",
                    f"{image['file_name']} is also images[{files[image['file_name']]}]",
                    "list each image once",
                    False,
                )
    return problems, places


def _check_files(
    images: Sequence[Any], broken: set[int | None], folder: Path, deep: set[int]
) -> list[Problem]:
    """Opens the header of every image and compares its size with the annotated one."""
    from rich.progress import track

    problems: list[Problem] = []
    for place, image in track(
        list(enumerate(images)), "checking images", transient=True, disable=len(images) < 2000
    ):
        if place in broken:
            continue
        wanted = (image["height"], image["width"])
        where = f"image {image['id']} ({image['file_name']})"
        try:
            header = read_header(folder / image["file_name"])
        except ImageError as error:
            problems.append(
                Problem(
                    "unreadable image",
                    where,
                    str(error),
                    "is images= the right folder? Else restore the file",
                    True,
                    image=place,
                )
            )
            continue
        if header.deep:
            deep.add(place)
        if header.size != wanted:
            detail = f"the file is {header.size[1]} x {header.size[0]}, annotated are {wanted[1]} x {wanted[0]} pixels"
            suggestion = "mend width and height, or take the image that was annotated"
            if header.stored_size == wanted:
                suggestion = "the annotations ignore the file's EXIF rotation: remove that tag from the file, or annotate the upright image"
            problems.append(
                Problem("image of another size", where, detail, suggestion, True, image=place)
            )
    return problems


class _Annotations:
    """One pass over the annotations of a file; gathers `problems` and the places of the `empty` ones."""

    def __init__(
        self,
        images: Sequence[Any],
        annotations: Sequence[Any],
        places: Mapping[int, int],
        labels: Mapping[int, int],
        categories: Mapping[int, Category],
    ) -> None:
        self.images, self.annotations, self.places = images, annotations, places
        self.labels, self.categories = labels, categories
        listed = (image.get("id") for image in images if isinstance(image, Mapping))
        self.broken = {i for i in listed if _is_whole(i) and i not in places}
        self.problems: list[Problem] = []
        self.empty: list[int] = []
        self.ids: dict[int, int] = {}
        self.seen: dict[tuple[Any, ...], int] = {}
        self.polygons: list[tuple[int, np.ndarray]] = []

    def run(self) -> None:
        from rich.progress import track

        starts = range(0, len(self.annotations), _TOGETHER)
        for start in track(
            starts, "checking annotations", transient=True, disable=len(self.annotations) < 50_000
        ):
            for place in range(start, min(start + _TOGETHER, len(self.annotations))):
                self.look_at(place)
            self.look_at_polygons()

    def look_at(self, place: int) -> None:
        raw = self.annotations[place]
        tell = self.listener(place)
        if not isinstance(raw, Mapping) or not _is_whole(raw.get("id")):
            tell(
                "annotation without id",
                f"{raw!r:.80}",
                "give each annotation a whole-number id of its own",
                True,
            )
            return
        if self.ids.setdefault(raw["id"], place) != place:
            tell(
                "annotation id used twice",
                f"also that of annotations[{self.ids[raw['id']]}]",
                "give each annotation its own id",
                True,
            )
        if raw["id"] == 0:
            tell(
                "annotation with id 0",
                "pycocotools takes a match with it for none",
                "number annotations from 1",
                False,
            )
        if _is_whole(raw.get("image_id")) and raw["image_id"] in self.broken:
            return  # of which everything is said
        if not _is_whole(raw.get("image_id")) or raw["image_id"] not in self.places:
            tell(
                "annotation of an unknown image",
                f"image_id is {raw.get('image_id')!r}",
                "add the image to the list, or drop the annotation",
                True,
            )
            return
        if not _is_whole(raw.get("category_id")) or raw["category_id"] not in self.labels:
            known = (
                self.categories.get(raw["category_id"])
                if _is_whole(raw.get("category_id"))
                else None
            )
            detail = f"category_id is {raw.get('category_id')!r}" + (
                f' ("{known.name}")' if known else ""
            )
            tell(
                "annotation of an unknown category",
                detail,
                "add the category to the list (or to categories=), or drop the annotation",
                True,
            )
            return
        image = self.images[self.places[raw["image_id"]]]
        category = self.categories[raw["category_id"]]
        before = len(self.problems)
        read = read_annotation(
            raw,
            0,
            category,
            range(len(category.keypoints)),
            (image["height"], image["width"]),
            tell,
        )
        if read.empty and not any(p.is_error for p in self.problems[before:]):
            self.empty.append(place)
        self.polygons += [(place, points) for points in read.polygons or ()]
        self.look_for_copies(place, raw, tell)

    def look_for_copies(self, place: int, raw: Mapping[str, Any], tell: Report) -> None:
        box, mask, keypoints = (raw.get(name) for name in ("bbox", "segmentation", "keypoints"))
        key = (
            raw["image_id"],
            raw["category_id"],
            str(box),
            str(keypoints),
            "" if box else str(mask),
        )
        first = self.seen.setdefault(key, place) if box or mask or keypoints else place
        if first == place:
            return
        other = self.annotations[first]
        if all(raw.get(name) == other.get(name) for name in ("segmentation", "iscrowd", "ignore")):
            tell(
                "annotation given twice",
                f"the same as annotation {other['id']}",
                "both are used; drop the copy",
                False,
            )
        else:
            tell(
                "the same box twice",
                f"also annotation {other['id']}",
                "both are used; is one a copy?",
                False,
            )

    def look_at_polygons(self) -> None:
        """Which of the polygons read since the last time cross themselves."""
        crossing = self_crossing([points for _, points in self.polygons])
        parts = Counter(
            place for (place, _), crosses in zip(self.polygons, crossing, strict=True) if crosses
        )
        self.polygons = []
        for place, count in parts.items():
            detail = f"{count} polygon{'s' * (count != 1)} of the mask"
            self.listener(place)(
                "polygon crosses itself",
                detail,
                "all that it winds around is taken as inside; draw it again",
                False,
            )

    def listener(self, place: int) -> Report:
        """Writes down what is told about one annotation."""
        raw = self.annotations[place]

        def tell(kind: str, detail: str, suggestion: str, is_error: bool) -> None:
            where = f"annotations[{place}]"
            if isinstance(raw, Mapping) and _is_whole(raw.get("id")):
                where = (
                    raw.get("where") or f"annotation {raw['id']}"
                )  # the place in a file of another format
                if _is_whole(raw.get("image_id")) and raw["image_id"] in self.places:
                    where += f" ({self.images[self.places[raw['image_id']]]['file_name']})"
            self.problems.append(
                Problem(kind, where, detail, suggestion, is_error, annotation=place)
            )

        return tell


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
