"""What is wrong with a COCO data set, all at once, before the first step.

`check(images, annotations, ..)` reads every annotation and the header of every picture and gives a list of `Problem`s; `describe` makes them
readable. Harmful ones make an annotation or a picture unusable; the others are notes on what is mended while reading (annotations.py says how).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Category
from ..images import ImageError, read_header
from .annotations import Report, read_annotation

_SHOWN = 20  # of each kind


class DataError(ValueError):
    """Annotations that cannot be used: every problem, with file, annotation id and cure."""


class DataWarning(UserWarning):
    """Annotations that were dropped, and why."""


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one picture or annotation."""

    kind: str
    where: str
    detail: str
    cure: str
    harmful: bool
    annotation: int | None = None
    """Its place in the file's list."""
    image: int | None = None
    """The picture's place in the file's list, where the picture itself is unusable."""


@dataclass(frozen=True)
class Checked:
    """Everything that a look at the whole file gives."""

    problems: list[Problem]
    deep: frozenset[int]
    """Places of the pictures with more than 8 bits."""


def describe(name: str, problems: Sequence[Problem]) -> str:
    """The problems as text, grouped by kind: the cure once, then the first 20 places."""
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.kind, problem.cure), []).append(problem)
    lines = [f"{name}: {len(problems)} problem{'s' * (len(problems) != 1)}"]
    for (kind, cure), found in kinds.items():
        lines.append(f"  {kind} ({len(found)}): {cure}")
        lines += [f"    {p.where}: {p.detail}" for p in found[:_SHOWN]]
        if len(found) > _SHOWN:
            lines.append(f"    .. and {len(found) - _SHOWN} more")
    return "\n".join(lines)


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
        folder: of the pictures; None = their files are not looked at.
    """
    problems, sizes = _check_images(images)
    deep: set[int] = set()
    if folder is not None:
        problems += _check_files(images, {p.image for p in problems if p.harmful}, folder, deep)
    problems += _check_annotations(images, annotations, sizes, labels, categories)
    return Checked(problems, frozenset(deep))


def _check_images(images: Sequence[Any]) -> tuple[list[Problem], dict[int, int]]:
    """Problems of the entries themselves, and image id -> place of the usable ones."""
    problems: list[Problem] = []
    places: dict[int, int] = {}
    for place, image in enumerate(images):

        def tell(kind: str, detail: str, cure: str, place: int = place) -> None:
            problems.append(Problem(kind, f"images[{place}]", detail, cure, True, image=place))

        if not isinstance(image, Mapping) or not _is_whole(image.get("id")) or not isinstance(image.get("file_name"), str):
            tell("broken image entry", f"{image!r:.80}", 'write {"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}')
        elif not all(_is_whole(image.get(side)) and image[side] > 0 for side in ("width", "height")):
            tell("image without size", f"width {image.get('width')!r}, height {image.get('height')!r}", "write both, in pixels, as whole numbers > 0")
        elif image["id"] in places:
            tell("image id used twice", f"id {image['id']} is also that of images[{places[image['id']]}]", "give each image its own id")
        else:
            places[image["id"]] = place
    return problems, places


def _check_files(images: Sequence[Any], broken: set[int | None], folder: Path, deep: set[int]) -> list[Problem]:
    """Opens the header of every picture and compares its size with the annotated one."""
    from rich.progress import track

    problems: list[Problem] = []
    for place, image in track(list(enumerate(images)), "checking pictures", transient=True, disable=len(images) < 2000):
        if place in broken:
            continue
        wanted = (image["height"], image["width"])
        where = f"image {image['id']} ({image['file_name']})"
        try:
            header = read_header(folder / image["file_name"])
        except ImageError as error:
            problems.append(Problem("unreadable picture", where, str(error), "is images= the right folder? Else restore the file", True, image=place))
            continue
        if header.deep:
            deep.add(place)
        if header.size != wanted:
            detail = f"the file is {header.size[1]} x {header.size[0]}, annotated are {wanted[1]} x {wanted[0]} pixels"
            cure = "mend width and height, or take the picture that was annotated"
            if header.stored_size == wanted:
                cure = "the annotations ignore the file's EXIF rotation: remove that tag from the file, or annotate the upright picture"
            problems.append(Problem("picture of another size", where, detail, cure, True, image=place))
    return problems


def _check_annotations(
    images: Sequence[Any],
    annotations: Sequence[Any],
    places: Mapping[int, int],
    labels: Mapping[int, int],
    categories: Mapping[int, Category],
) -> list[Problem]:
    problems: list[Problem] = []
    ids: dict[int, int] = {}
    seen: dict[tuple[Any, ...], int] = {}
    for place, raw in enumerate(annotations):
        tell = _listener(problems, place, raw, images, places)
        if not isinstance(raw, Mapping) or not _is_whole(raw.get("id")):
            tell("annotation without id", f"{raw!r:.80}", "give each annotation a whole-number id of its own", True)
            continue
        if raw["id"] in ids:
            tell("annotation id used twice", f"also that of annotations[{ids[raw['id']]}]", "give each annotation its own id", True)
        ids.setdefault(raw["id"], place)
        if not _is_whole(raw.get("image_id")) or raw["image_id"] not in places:
            tell("annotation of an unknown image", f"image_id is {raw.get('image_id')!r}", "add the image to the list, or drop the annotation", True)
            continue
        if not _is_whole(raw.get("category_id")) or raw["category_id"] not in labels:
            known = categories.get(raw["category_id"]) if _is_whole(raw.get("category_id")) else None
            detail = f"category_id is {raw.get('category_id')!r}" + (f' ("{known.name}")' if known else "")
            tell("annotation of an unknown category", detail, "add the category to the list (or to categories=), or drop the annotation", True)
            continue
        image = images[places[raw["image_id"]]]
        category = categories[raw["category_id"]]
        read_annotation(raw, 0, category, range(len(category.keypoints)), (image["height"], image["width"]), tell)
        key = (raw["image_id"], raw["category_id"], str(raw.get("bbox")), str(raw.get("keypoints")))
        if raw.get("bbox") and seen.setdefault(key, place) != place:
            tell("the same box twice", f"also annotation {annotations[seen[key]]['id']}", "both are used; is one a copy?", False)
    return problems


def _listener(problems: list[Problem], place: int, raw: Any, images: Sequence[Any], places: Mapping[int, int]) -> Report:
    """Writes down what is told about one annotation."""

    def tell(kind: str, detail: str, cure: str, harmful: bool) -> None:
        where = f"annotations[{place}]"
        if isinstance(raw, Mapping) and _is_whole(raw.get("id")):
            where = raw.get("where") or f"annotation {raw['id']}"  # the place in a file of another format
            if _is_whole(raw.get("image_id")) and raw["image_id"] in places:
                where += f" ({images[places[raw['image_id']]]['file_name']})"
        problems.append(Problem(kind, where, detail, cure, harmful, annotation=place))

    return tell


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
