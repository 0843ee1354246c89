"""What readers give and writers take: annotations as a COCO dict, and where their images are.

A reader hands its shapes to a `Builder`, which makes ids and categories. What cannot be read becomes a `Problem`, beside those that `CocoDataset`
finds itself; every annotation carries its place in the file as "where", so that a problem found later names it. parts.py serves the writers.

Coordinates are COCO's: continuous pixels, but whole-number keypoints are the indices of pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..annotations.coco_dataset import CocoDataset
from ..annotations.contours import Polygon, fill, union
from ..annotations.problems import DataError, Problem, describe
from ..config import Category
from ..images.read import ImageError, image_size

Box = tuple[float, float, float, float]
_SIDES = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
_EMPTY = "no object is annotated, and no category named; annotate at least one"
COCO_PERSON = ("nose", *(f"{side}_{name}" for name in _SIDES for side in ("left", "right")))


class MissingSplit(DataError):
    """A split that the data set lists, but whose images are not there."""


@dataclass
class Annotated:
    """Annotations in memory."""

    content: dict[str, Any]
    """COCO's images, annotations and categories."""
    images: Path | None
    """The folder that the images' file names start from."""
    name: str
    """Of the file or folder, for messages."""
    problems: list[Problem] = field(default_factory=list)
    """What could not be read."""

    def dataset(
        self,
        categories: Sequence[Category] | None = None,
        on_error: Literal["raise", "drop"] = "raise",
    ) -> CocoDataset:
        """The same, checked.

        Raises:
            DataError: what `CocoDataset` finds wrong, and what could not be read.
        """
        if not self.content.get("categories", True):
            raise DataError(
                describe(self.name, self.problems) + "\nNothing else is annotated."
                if self.problems
                else f"{self.name}: {_EMPTY}"
            )
        return CocoDataset(
            self.content,
            self.images,
            categories=categories,
            on_error=on_error,
            name=self.name,
            problems=self.problems,
        )


@dataclass
class Drawn:
    """Shapes that together are one object."""

    category: str
    where: str
    """File and place in it."""
    boxes: list[Box] = field(default_factory=list)
    """xyxy."""
    polygons: list[Polygon] = field(default_factory=list)
    rles: list[dict[str, Any]] = field(default_factory=list)
    keypoints: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    """Name -> x, y, visibility."""
    ignore: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    def parts(self, size: tuple[int, int]) -> dict[str, Any]:
        """bbox, segmentation, iscrowd of a COCO annotation."""
        entry: dict[str, Any] = {"where": self.where, "iscrowd": int(self.ignore), **self.extra}
        if self.boxes:
            x0, y0 = np.min(self.boxes, axis=0)[:2].tolist()
            x1, y1 = np.max(self.boxes, axis=0)[2:].tolist()
            entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        if self.rles:
            entry["segmentation"] = union(
                [*self.rles, *([fill(self.polygons, size)] if self.polygons else [])], size
            )
        elif self.polygons:
            entry["segmentation"] = [
                np.asarray(p, dtype=float).reshape(-1).tolist() for p in self.polygons
            ]
        return entry


class Builder:
    """Collects images and objects into an `Annotated`.

    Args:
        name: of the file or folder.
        images: the folder that file names start from.
    """

    def __init__(self, name: str, images: Path | None) -> None:
        self.name, self.folder = name, images
        self.problems: list[Problem] = []
        self._images: list[dict[str, Any]] = []
        self._objects: list[tuple[int, Drawn]] = []
        self._categories: dict[str, dict[str, Any]] = {}

    def category(self, name: str, keypoints: Iterable[str] = (), **more: Any) -> None:
        """Declares a category; the order of declaring is that of the ids. Others are added as objects name them, sorted by name."""
        entry = self._categories.setdefault(name, {"name": name})
        entry |= {
            key: value for key, value in {"keypoints": list(keypoints), **more}.items() if value
        }

    def adopt(self, category: str, other: str) -> None:
        """Gives a category the keypoints and limbs of another, which goes if it has no object of its own."""
        skeleton = {key: value for key, value in self._categories[other].items() if key != "name"}
        self._categories[category] = skeleton | self._categories.get(category, {"name": category})
        if all(drawn.category != other for _, drawn in self._objects):
            del self._categories[other]

    def image(
        self, file_name: str, size: tuple[int, int] | None = None, where: str = ""
    ) -> int | None:
        """Adds an image; its size is read from the file if not given. None, and a problem, if that fails."""
        if size is None and self.folder is None:
            self.problem(
                "no folder of images",
                where or file_name,
                f"{file_name} was not found",
                "give their folder: images= (--images)",
            )
            return None
        if size is None:
            try:
                size = image_size((self.folder or Path()) / file_name)
            except ImageError as error:
                suggestion = "is images= (--images) the right folder? Else restore the file"
                self.problem("unreadable image", where or file_name, str(error), suggestion)
                return None
        self._images.append(
            {
                "id": len(self._images) + 1,
                "file_name": file_name,
                "height": size[0],
                "width": size[1],
            }
        )
        return len(self._images)

    def size(self, image: int) -> tuple[int, int]:
        """(height, width) of an image added."""
        entry = self._images[image - 1]
        return entry["height"], entry["width"]

    def keypoints(self, category: str) -> list[str]:
        """Those declared for a category."""
        return self._categories[category].get("keypoints", [])

    def add(self, image: int, drawn: Drawn) -> None:
        """Adds an object."""
        self._objects.append((image, drawn))

    def problem(
        self, kind: str, where: str, detail: str, suggestion: str, is_error: bool = True
    ) -> None:
        """Notes what is wrong; harmful = something is left out."""
        self.problems.append(Problem(kind, where, detail, suggestion, is_error))

    def done(self) -> Annotated:
        """Everything, with ids."""
        found: dict[str, list[list[str]]] = {}
        for _, drawn in self._objects:
            found.setdefault(drawn.category, []).append(list(drawn.keypoints))
        for name in sorted(found.keys() - self._categories.keys()):
            self.category(name)
        for name, lists in found.items():
            if any(lists) and not self._categories[name].get("keypoints"):
                self._categories[name]["keypoints"] = _keypoint_order(lists)
        categories = {
            name: {"id": n, **entry}
            for n, (name, entry) in enumerate(self._categories.items(), start=1)
        }
        annotations = [
            self._entry(n, image, drawn, categories[drawn.category])
            for n, (image, drawn) in enumerate(self._objects, start=1)
        ]
        content = {
            "images": self._images,
            "annotations": annotations,
            "categories": list(categories.values()),
        }
        return Annotated(content, self.folder, self.name, self.problems)

    def _entry(
        self, number: int, image: int, drawn: Drawn, category: Mapping[str, Any]
    ) -> dict[str, Any]:
        entry = {
            "id": number,
            "image_id": image,
            "category_id": category["id"],
            **drawn.parts(self.size(image)),
        }
        if drawn.keypoints:
            names = category.get("keypoints", [])
            for keypoint in drawn.keypoints.keys() - set(names):
                suggestion = (
                    f"its keypoints are {', '.join(names) or 'none'}: rename it, or declare it"
                )
                self.problem(
                    "unknown keypoint",
                    drawn.where,
                    f'"{keypoint}" is no keypoint of category "{category["name"]}"',
                    suggestion,
                )
            entry["keypoints"] = [v for name in names for v in drawn.keypoints.get(name, (0, 0, 0))]
        return entry


def _keypoint_order(lists: list[list[str]]) -> list[str]:
    """COCO's order for its keypoints; else as in the object with the most, the others behind."""
    names = {keypoint: None for found in sorted(lists, key=len, reverse=True) for keypoint in found}
    return (
        [j for j in COCO_PERSON if j in names] if names.keys() <= set(COCO_PERSON) else list(names)
    )


def image_folder(
    images: str | Path | None, candidates: Iterable[Path], names: Sequence[str]
) -> Path | None:
    """The folder given, or the first candidate in which one of the images is; else the first, None if it does not exist."""
    if images is not None:
        return Path(images)
    folders = list(candidates)
    return folder_with(names, folders) or (folders[0] if folders[0].is_dir() else None)


def folder_with(names: Sequence[str], candidates: Iterable[Path]) -> Path | None:
    """The first candidate in which one of the images is; None if there is none."""
    return next((f for f in candidates if any((f / name).is_file() for name in names)), None)


def relative(path: Path, folder: Path) -> str:
    """A path as it is written in a file of another folder, with slashes."""
    return Path(os.path.relpath(path, folder)).as_posix()


def tracked(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The same items, with a progress bar where there are many."""
    from rich.progress import track

    return track(items, what, transient=True, disable=len(items) < 500)
