"""What readers return and writers take: annotations as COCO dictionaries, and the image folder.

A reader hands its shapes to a `DatasetBuilder`, which assigns ids and categories. Anything that
cannot be read becomes a `Problem`, listed with those that `CocoDataset` finds itself. Every
annotation carries its location in the original file as "where", so that problems reported later can
name it.

Coordinates are COCO's: continuous pixels, except that whole-number keypoints are pixel indices.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..annotations import rle as coco_rle
from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import RLE, CocoAnnotation, CocoCategory, CocoContent, CocoImage
from ..annotations.contours import Polygon, fill, union
from ..annotations.images_option import images_option
from ..annotations.notes import Note, Notes, describe_notes
from ..annotations.problems import DataError, Problem, describe
from ..config import Category
from ..images.image_files import describe_left_out, images_in, list_images
from ..images.read import ImageError, image_size
from ..runtime.counted import counted
from ..runtime.progress import track

BoxXYXY = tuple[float, float, float, float]
_SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_EMPTY = "no object is annotated and no category is named; annotate at least one object"
MOST_PIXELS = 1e7
"""Bound of coordinates and of the sides of an image; the largest slides have 300,000 pixels."""
MOST_POINTS = 1_000_000
"""Bound of the points of one object's polygons."""
COCO_PERSON = ("nose", *(f"{side}_{name}" for name in _SIDES for side in ("left", "right")))


class MissingSplit(DataError):
    """A split that the dataset lists, but whose images are missing."""


@dataclass
class Annotated:
    """Annotations in memory."""

    content: CocoContent
    """COCO's images, annotations and categories."""
    images: Path | None
    """The folder that the images' file names are relative to; None = unknown."""
    name: str
    """Name of the file or folder in messages."""
    problems: list[Problem] = field(default_factory=list)
    """What could not be read."""
    notes: tuple[Note, ...] = ()
    """What is in the files and is not used, or is read in a way that nobody may expect."""
    remarks: list[str] = field(default_factory=list)
    """What to know about annotations that are checked already (see `CocoDataset.remarks`)."""
    images_option: str = field(default_factory=images_option)
    """The argument and the option that errors name for the folder of the images."""

    def dataset(
        self,
        categories: Sequence[Category] | None = None,
        on_error: Literal["raise", "drop"] = "raise",
    ) -> CocoDataset:
        """The same annotations, checked.

        Raises:
            DataError: some annotations are unusable or could not be read.
        """
        if not self.content.get("categories", True) and not self.content.get("annotations"):
            counted = describe_notes(self.name, self.notes) if self.notes else ""
            if not self.problems:
                raise DataError("\n".join(filter(None, [f"{self.name}: {_EMPTY}", counted])))
            problems = describe(self.name, self.problems)
            parts = [problems, "Nothing else is annotated.", counted]
            raise DataError("\n".join(filter(None, parts)))

        return CocoDataset(
            self.content,
            self.images,
            categories=categories,
            on_error=on_error,
            name=self.name,
            problems=self.problems,
            notes=self.notes,
        )


@dataclass
class AnnotatedObject:
    """One object: all shapes that belong to it."""

    category: str
    where: str
    """The file, and the location in it."""
    boxes: list[BoxXYXY] = field(default_factory=list)
    polygons: list[Polygon] = field(default_factory=list)
    rles: list[RLE] = field(default_factory=list)
    keypoints: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    """Name -> x, y, visibility."""
    ignore: bool = False
    score: float | None = None
    """Confidence, if the object is a prediction."""
    is_cut: bool = False
    """Whether a part of a mask lay beyond the image."""

    def add_crop(self, crop: np.ndarray, left: int, top: int, size: tuple[int, int]) -> None:
        """Adds a mask that is given for a part of the image.

        Args:
            crop: bool [h, w].
            left: column of the image at which it starts; may be negative.
            top: row of the image at which it starts; may be negative.
            size: (height, width) of the image.
        """
        height, width = crop.shape
        self.is_cut |= min(left, top) < 0 or left + width > size[1] or top + height > size[0]
        self.rles.append(coco_rle.encode_crop(crop, left, top, size))

    def bbox(self) -> list[float]:
        """COCO's bbox around all boxes; there must be one."""
        x0, y0 = np.min(self.boxes, axis=0)[:2].tolist()
        x1, y1 = np.max(self.boxes, axis=0)[2:].tolist()
        return [x0, y0, x1 - x0, y1 - y0]

    def segmentation(self, size: tuple[int, int]) -> list[list[float]] | RLE | None:
        """COCO's segmentation of the union of all polygons and RLEs; None without any."""
        if self.rles:
            filled = [fill(self.polygons, size)] if self.polygons else []
            return union([*self.rles, *filled], size)
        if self.polygons:
            return [np.asarray(p, dtype=float).reshape(-1).tolist() for p in self.polygons]
        return None


class DatasetBuilder:
    """Collects images and objects into an `Annotated`.

    Args:
        name: name of the file or folder in messages.
        images: the folder that file names are relative to.
    """

    def __init__(self, name: str, images: Path | None) -> None:
        self.name = name
        self.folder = images
        self.problems: list[Problem] = []
        self.notes = Notes()
        self._images: list[CocoImage] = []
        self._objects: list[tuple[int, AnnotatedObject]] = []
        self._categories: dict[str, CocoCategory] = {}

    def category(
        self,
        name: str,
        keypoints: Iterable[str] = (),
        skeleton: Sequence[list[int]] = (),
        flip: Sequence[int] = (),
    ) -> None:
        """Declares a category.

        Ids follow the order of declaration. Categories that only objects name come last, sorted.

        Args:
            name: the category's name.
            keypoints: names of its keypoints.
            skeleton: limbs as pairs of indices into `keypoints`, counted from 1.
            flip: for each keypoint the one it becomes in a mirror image, counted from 0.
        """
        entry = self._categories.setdefault(name, {"id": 0, "name": name})
        if keypoints := list(keypoints):
            entry["keypoints"] = keypoints
        if skeleton:
            entry["skeleton"] = list(skeleton)
        if flip:
            entry["flip"] = list(flip)

    def adopt(self, category: str, other: str) -> None:
        """Gives a category the keypoints and limbs of another, unless it has its own.

        The other category is removed if it has no objects.
        """
        own = self._categories.get(category, {"id": 0, "name": category})
        self._categories[category] = {**self._categories[other], **own}
        if all(instance.category != other for _, instance in self._objects):
            del self._categories[other]

    def image(
        self, file_name: str, size: tuple[int, int] | None = None, where: str = ""
    ) -> int | None:
        """Adds an image and returns its id.

        Args:
            file_name: path below the image folder.
            size: (height, width); None = read it from the file.
            where: location to name in a problem; by default the file name.

        Returns:
            The id; None, with a problem added, if the size cannot be read.
        """
        if size is not None and not 0 < min(size) <= max(size) <= MOST_PIXELS:
            self.problem(
                "size of the image is wrong",
                where or file_name,
                f"expected a width and height of 1 to {MOST_PIXELS:,.0f} pixels, "
                f"got {size[1]} x {size[0]}",
                "write the size of the image file",
            )
            return None
        if size is not None and size[0] * size[1] > coco_rle.MOST_PIXELS:
            detail = f"expected at most {coco_rle.MOST_PIXELS:,} pixels, got {size[1]} x {size[0]}"
            self.problem("image too large", where or file_name, detail, "cut it into tiles")
            return None
        if size is None and self.folder is None:
            self.problem(
                "no folder of images",
                where or file_name,
                f"image {file_name} not found",
                f"pass the image folder: {images_option()}",
            )
            return None

        if size is None:
            try:
                size = image_size((self.folder or Path()) / file_name)
            except ImageError as error:
                folder = f"check that {images_option()} is the right folder, or restore it"
                suggestion = error.advice or folder
                self.problem("unreadable image", where or file_name, error.reason, suggestion)
                return None

        image_id = len(self._images) + 1
        height, width = size
        self._images.append(
            {"id": image_id, "file_name": file_name, "height": height, "width": width}
        )
        return image_id

    def size(self, image_id: int) -> tuple[int, int]:
        """(height, width) of an image that was added."""
        entry = self._images[image_id - 1]
        return entry["height"], entry["width"]

    def keypoints(self, category: str) -> list[str]:
        """The keypoints declared for a category."""
        return self._categories[category].get("keypoints", [])

    def add(self, image_id: int, annotated: AnnotatedObject) -> None:
        """Adds an object to an image; a problem instead if it exceeds a bound."""
        if annotated.is_cut:
            kind = "mask reaches beyond the image"
            height, width = self.size(image_id)
            detail = f"the image is {width} x {height}"
            self.problem(kind, annotated.where, detail, "the mask is clipped", False)

        count = sum(len(polygon) for polygon in annotated.polygons)
        values = [np.asarray(p, dtype=float).reshape(-1) for p in annotated.polygons]
        values += [np.array(box, dtype=float) for box in annotated.boxes]
        values += [np.array(xyv[:2], dtype=float) for xyv in annotated.keypoints.values()]
        # NaN is reported later, with the file name, unless the polygons are filled before.
        nan = np.inf if annotated.rles else 0.0
        magnitudes = [np.nan_to_num(np.abs(part), nan=nan, posinf=np.inf) for part in values]
        wrong = [v for part in magnitudes for v in part[part > MOST_PIXELS].tolist()]
        if wrong:
            self.problem(
                "coordinate out of bounds",
                annotated.where,
                f"expected numbers within +-{MOST_PIXELS:,.0f} pixels, got {wrong[0]:g}",
                "draw it again",
            )
        elif count > MOST_POINTS:
            self.problem(
                "too many points",
                annotated.where,
                f"expected at most {MOST_POINTS:,} points, got {count:,}",
                "simplify the polygon",
            )
        else:
            self._objects.append((image_id, annotated))

    def add_group(self, image_id: int, annotated: AnnotatedObject, group: str) -> None:
        """Adds an object whose shapes a group joins; names it if that united several masks or
        boxes, which also happens where different objects got the same group by accident.
        """
        count = max(len(annotated.polygons) + len(annotated.rles), len(annotated.boxes))
        if count > 1:
            self.problem(
                "shapes united to one object",
                annotated.where,
                f'{count} shapes "{annotated.category}" share {group}',
                "they are one object; if they are several, give each its own group",
                False,
            )
        self.add(image_id, annotated)

    def left_out_images(self, used: Collection[str], companion: str) -> None:
        """Warns about image files in the folders of these images that have no annotation file.

        Args:
            used: the names of the images that have one.
            companion: what they lack.
        """
        folders = {(self.folder or Path()) / Path(name).parent for name in used}
        listed = {p for f in folders if f.is_dir() for p in images_in(f, deep=False)}
        missing = sorted(listed - {(self.folder or Path()) / name for name in used})
        if missing:
            self.problem(
                "images without annotations",
                self.name,
                f"{counted(len(missing), 'image')} without {companion}, such as {missing[0].name}",
                "they are left out; an image without objects needs one, too",
                False,
            )

    def unused(self, what: str, where: str = "", count: int = 1) -> None:
        """Counts something in the files that is not used."""
        self.notes.add(what, "not used", where, count)

    def problem(
        self, kind: str, where: str, detail: str, suggestion: str, is_error: bool = True
    ) -> None:
        """Records a problem; an error means that something cannot be used."""
        self.problems.append(Problem(kind, where, detail, suggestion, is_error))

    def build(self) -> Annotated:
        """Returns everything that was added, with ids."""
        keypoints_of_objects: dict[str, list[list[str]]] = {}
        for _, annotated in self._objects:
            lists = keypoints_of_objects.setdefault(annotated.category, [])
            lists.append(list(annotated.keypoints))

        # Categories and keypoints that no header declared come from the objects.
        for name in sorted(keypoints_of_objects.keys() - self._categories.keys()):
            self.category(name)
        for name, lists in keypoints_of_objects.items():
            if any(lists) and not self._categories[name].get("keypoints"):
                self._categories[name]["keypoints"] = _keypoint_order(lists)

        for category_id, category in enumerate(self._categories.values(), start=1):
            category["id"] = category_id
        annotations = [
            self._annotation(number, image_id, annotated)
            for number, (image_id, annotated) in enumerate(self._objects, start=1)
        ]
        content: CocoContent = {
            "images": self._images,
            "annotations": annotations,
            "categories": list(self._categories.values()),
        }
        return Annotated(content, self.folder, self.name, self.problems, self.notes.all())

    def _annotation(self, number: int, image_id: int, annotated: AnnotatedObject) -> CocoAnnotation:
        category = self._categories[annotated.category]
        entry: CocoAnnotation = {
            "id": number,
            "image_id": image_id,
            "category_id": category["id"],
            "where": annotated.where,
            "iscrowd": int(annotated.ignore),
        }
        if annotated.score is not None:
            entry["score"] = annotated.score

        if annotated.boxes:
            entry["bbox"] = annotated.bbox()
        segmentation = annotated.segmentation(self.size(image_id))
        if segmentation is not None:
            entry["segmentation"] = segmentation
        if annotated.keypoints:
            entry["keypoints"] = self._keypoint_values(annotated, category)
        return entry

    def _keypoint_values(self, annotated: AnnotatedObject, category: CocoCategory) -> list[float]:
        """x, y, visibility for each keypoint of the category; reports names it does not have."""
        names = category.get("keypoints", [])
        for keypoint in annotated.keypoints.keys() - set(names):
            self.problem(
                "unknown keypoint",
                annotated.where,
                f'category "{category["name"]}" has no keypoint "{keypoint}"',
                f"its keypoints are {', '.join(names) or 'none'}: rename it, or declare it",
            )
        return [v for name in names for v in annotated.keypoints.get(name, (0, 0, 0))]


def _keypoint_order(lists: list[list[str]]) -> list[str]:
    """COCO's order for COCO's keypoints; else that of the object with the most, then the others."""
    longest_first = sorted(lists, key=len, reverse=True)
    names = {keypoint: None for keypoints in longest_first for keypoint in keypoints}
    if names.keys() <= set(COCO_PERSON):
        return [name for name in COCO_PERSON if name in names]
    return list(names)


def image_folder(
    images: str | Path | None, candidates: Iterable[Path], names: Sequence[str]
) -> Path | None:
    """The folder of the images.

    Args:
        images: the folder that the user gave, which is returned as it is.
        candidates: folders to search otherwise; at least one.
        names: file names of the images.

    Returns:
        The first candidate that contains one of the images; else the first candidate, or None if
        that does not exist.
    """
    if images is not None:
        return Path(images)
    folders = list(candidates)
    return folder_with(names, folders) or (folders[0] if folders[0].is_dir() else None)


def report_left_out(builder: DatasetBuilder, folders: Iterable[Path], deep: bool) -> None:
    """Warns about files in the folders of images that are not read, for their ending.

    Args:
        builder: gets the warning.
        folders: those that are searched for images.
        deep: whether their subfolders are searched too.
    """
    listings = [list_images(f, deep) for f in sorted(set(folders)) if f.is_dir()]
    left_out = [path for listing in listings for path in listing.unexpected()]
    if left_out:
        builder.problem(
            "files that are not images",
            ", ".join(folder.name for folder in sorted({path.parent for path in left_out})),
            describe_left_out(left_out),
            "they are not used",
            False,
        )


def folder_with(names: Sequence[str], candidates: Iterable[Path]) -> Path | None:
    """The first candidate that contains one of the images; None if no candidate does."""
    return next((f for f in candidates if any((f / name).is_file() for name in names)), None)


def written_size(width: str | None, height: str | None) -> tuple[int, int] | None:
    """(height, width) of XML that has both; some tools write them with a decimal point.

    Raises:
        ValueError: they are not numbers.
    """
    if not height or not width:
        return None
    try:
        return int(float(height)), int(float(width))
    except (ValueError, OverflowError):
        raise ValueError(
            f"expected width and height in pixels, got {width:.20} and {height:.20}"
        ) from None


def relative(path: Path, folder: Path) -> str:
    """A path as a file in another folder refers to it, with slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def tracked(items: Sequence[Any], description: str) -> Iterable[Any]:
    """The same items, with a progress bar if there are many."""
    return track(items, description, show=None if len(items) >= 500 else False)
