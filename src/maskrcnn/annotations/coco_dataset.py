"""A data set in COCO's format: `CocoDataset("train.json", images="images/")`.

In: a COCO annotation file (or its content as a dict) and a folder of images.
Out: `dataset[i] -> Record` (an image's name, size and annotations), `dataset.image(i) -> uint8 [H, W, 3]`, `dataset.truth()` for the evaluation.

Polygons, both forms of RLE, keypoints, crowds, any category ids and images without objects are data. Everything is checked on opening; what is
wrong is reported at once. `check.py` and `annotations.py` say what counts as wrong and what is mended.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from ..config import Category
from ..images.read import read_image, read_values
from .annotation import KEYPOINT_OFFSET, Annotation, mask_bounds, read_annotation
from .categories import parse_categories
from .exhaustive import key_problems, labeled_ids
from .problems import DataError, DataWarning, Problem, check, describe

__all__ = ["Annotation", "CocoDataset", "DataError", "DataWarning", "Record"]

_FITTED_IMAGES, _FITTED_VALUES = (
    64,
    20_000,
)  # that the intensity range is fitted to; the second for each image
_FITTED_PERCENTILES = (0.1, 99.9)  # a hot or dead pixel does not set the range


@dataclass(frozen=True)
class Record:
    """One image and what is annotated in it."""

    image_id: int
    file_name: str
    path: Path
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    labeled: frozenset[int] | None = None
    """Labels of the categories whose every object in the image is annotated; None = all of them (see partial.py)."""


class CocoDataset:
    """Annotated images in COCO's format, checked when opened.

    Args:
        annotations: the JSON file, or its content.
        images: folder of the images. None: the folder of the annotation file if the images lie there, else the data set has no images
            (enough to evaluate results).
        categories: the categories wanted and their order, for example `model.config.categories`; they are found in the file by name. None = all
            that the file lists, by id.
        on_error: what to do about unusable annotations and images: raise an error that lists them all, or drop them with a warning that does.
        name: for messages, where `annotations` is no file.
        problems: what the reader of another format found wrong before (see `load_dataset`).

    Attributes:
        categories: with the ids of this file; a label is an index into them.
        notes: what looks wrong but does no harm; `describe_notes()` is the text.
        dropped: what was dropped, empty unless `on_error` is "drop".

    Raises:
        DataError: all problems at once, with file, annotation id and cure.
    """

    def __init__(
        self,
        annotations: str | Path | Mapping[str, Any],
        images: str | Path | None = None,
        *,
        categories: Sequence[Category] | None = None,
        on_error: Literal["raise", "drop"] = "raise",
        name: str = "annotations",
        problems: Sequence[Problem] = (),
    ) -> None:
        self.annotations_path = Path(annotations) if isinstance(annotations, str | Path) else None
        self.name = self.annotations_path.name if self.annotations_path else name
        content: Any = (
            _load(self.annotations_path, self.name) if self.annotations_path else annotations
        )
        _check_structure(content, self.name)
        content = _with_whole_numbers(content)
        self._content: Mapping[str, list[Any]] = content
        try:
            in_file = {c.id: c for c in parse_categories(content["categories"])}
        except ValueError as error:
            raise DataError(
                "\n  ".join(
                    [f"{self.name}: the categories cannot be used:", *str(error).splitlines()]
                )
            ) from None
        self.categories = (
            tuple(in_file.values())
            if categories is None
            else _chosen(categories, in_file, self.name)
        )
        self._in_file = in_file
        self._labels = {c.id: label for label, c in enumerate(self.categories) if c.id in in_file}
        self._keypoints = {
            c.id: _keypoint_places(c, in_file[c.id]) for c in self.categories if c.id in in_file
        }
        self.image_folder = _image_folder(images, self.annotations_path, content["images"])
        self._open(on_error, problems)
        self._range: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        objects = sum(len(self._annotations[p]) for p in self._places)
        return f"CocoDataset({self.name}: {len(self):,} images, {objects:,} annotations, {len(self.categories)} of {len(self._in_file)} categories)"

    def __getitem__(self, index: int) -> Record:
        image = self._content["images"][self._places[index]]
        size = (image["height"], image["width"])
        read = tuple(self._read(raw, size) for raw in self._annotations[self._places[index]])
        path = (self.image_folder or Path()) / image["file_name"]
        return Record(image["id"], image["file_name"], path, *size, read, self.labeled(index))

    def labeled(self, index: int) -> frozenset[int] | None:
        """Labels of the categories whose every object in an image is annotated; None = all. A category that the file does not have never is."""
        place = self._places[index]
        ids = labeled_ids(
            self._content["images"][place],
            {raw["category_id"] for raw in self._annotations[place]},
            self._labels,
        )
        found = frozenset(self._labels.values() if ids is None else (self._labels[i] for i in ids))
        return None if len(found) == len(self.categories) else found

    def labels(self, index: int) -> frozenset[int]:
        """Labels of the objects in an image, but for regions to ignore; reads nothing."""
        objects = (
            raw
            for raw in self._annotations[self._places[index]]
            if not (raw.get("iscrowd", 0) or raw.get("ignore", 0))
        )
        return frozenset(self._labels[raw["category_id"]] for raw in objects)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image; reads nothing."""
        image = self._content["images"][self._places[index]]
        return image["height"], image["width"]

    def image(
        self, index: int, intensity_range: tuple[float, float] | None = None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """An image as RGB; `intensity_range` are the values of a 16-bit one that become 0 and 255 (see `intensity_range()`)."""
        return read_image(self._path(self._content["images"][self._places[index]]), intensity_range)

    def intensity_range(self) -> tuple[float, float] | None:
        """The range of values that fits the 16-bit and floating-point images: nearly all of them lie in it. None if all images have 8 bits."""
        deep = [p for p in self._places if p in self._deep]
        if deep and self._range is None:
            chosen = [
                deep[i]
                for i in np.linspace(0, len(deep) - 1, min(len(deep), _FITTED_IMAGES)).astype(int)
            ]
            values = [
                read_values(self._path(self._content["images"][p])).reshape(-1) for p in chosen
            ]
            sample = np.concatenate([v[:: max(1, len(v) // _FITTED_VALUES)] for v in values])
            low, high = np.percentile(sample[np.isfinite(sample)], _FITTED_PERCENTILES)
            self._range = (float(low), float(high if high > low else low + 1))
        return self._range

    def subset(self, indices: Iterable[int]) -> CocoDataset:
        """The same data set with these images only, in this order.

        Raises:
            IndexError: there is no such image.
        """
        part, count = copy.copy(self), len(self)
        indices = list(indices)
        if outside := [i for i in indices if not -count <= i < count]:
            raise IndexError(
                f"{self.name}: image {outside[0]} is wanted, there are {count}, counted from 0"
            )
        part._places = [self._places[i] for i in indices]
        part._range = None
        return part

    def describe_notes(self) -> str:
        """What looks wrong but does no harm, as text."""
        return describe(self.name, self.notes, "note")

    def truth(self) -> dict[str, Any]:
        """COCO's dict for the evaluation: ids as in the file, keypoints in the order of `categories`; ignore regions are crowds; no field is missing."""
        images = [self._content["images"][p] for p in self._places]
        annotations = [
            self._complete(raw, image)
            for p, image in zip(self._places, images, strict=True)
            for raw in self._annotations[p]
        ]
        categories = []
        for category in self.categories:
            entry: dict[str, Any] = {"id": category.id, "name": category.name}
            if category.keypoints:
                entry |= {
                    "keypoints": list(category.keypoints),
                    "skeleton": [[a + 1, b + 1] for a, b in category.skeleton],
                }
            categories.append(entry)
        kept = ("id", "file_name", "height", "width")
        entries = [{k: i[k] for k in kept} for i in images]
        for n, entry in enumerate(entries):
            if (labels := self.labeled(n)) is not None:
                entry["labeled_categories"] = [
                    self.categories[label].id for label in sorted(labels)
                ]
        return {"images": entries, "annotations": annotations, "categories": categories}

    def _path(self, image: Mapping[str, Any]) -> Path:
        if self.image_folder is None:
            raise DataError(
                f'{self.name}: no folder of images; open it as CocoDataset("{self.name}", images="FOLDER")'
            )
        return self.image_folder / image["file_name"]

    @property
    def raw(self) -> Mapping[str, list[Any]]:
        """COCO's dict of everything that was opened, unusable entries included; `Problem.annotation` and `.image` are places in its lists."""
        return self._content

    def content(self) -> dict[str, Any]:
        """COCO's dict of the images and annotations in use, as the file has them, with all that it says besides."""
        annotations = [raw for place in self._places for raw in self._annotations[place]]
        return {
            **self._content,
            "images": [self._content["images"][p] for p in self._places],
            "annotations": annotations,
        }

    def _open(self, on_error: str, problems: Sequence[Problem]) -> None:
        """Checks everything, then sorts the usable annotations by image."""
        if on_error not in ("raise", "drop"):
            raise ValueError(f'on_error is {on_error!r}, must be "raise" or "drop"')
        images, annotations = self._content["images"], self._content["annotations"]
        checked = check(images, annotations, self._labels, self._in_file, self.image_folder)
        found = [*problems, *checked.problems, *key_problems(images, self._in_file)]
        is_error = [p for p in found if p.is_error]
        if is_error:
            text = describe(self.name, is_error)
            if on_error == "raise":
                raise DataError(
                    f'{text}\nTo leave these out, open the data with on_error="drop" (--on-error drop).'
                )
            warnings.warn(f"{text}\nThese were dropped.", DataWarning, stacklevel=3)
        self.notes = tuple(p for p in found if not p.is_error)
        self.dropped: tuple[Problem, ...] = tuple(is_error)
        self._deep = checked.deep
        lost_images, lost = (
            {p.image for p in is_error},
            {p.annotation for p in is_error} | checked.empty,
        )
        self._places = [place for place in range(len(images)) if place not in lost_images]
        self._annotations: dict[int, list[Any]] = {place: [] for place in self._places}
        place_of = {images[place]["id"]: place for place in self._places}
        for place, raw in enumerate(annotations):
            if place not in lost and raw["image_id"] in place_of:
                self._annotations[place_of[raw["image_id"]]].append(raw)

    def _read(self, raw: Mapping[str, Any], size: tuple[int, int]) -> Annotation:
        category = raw["category_id"]
        return read_annotation(
            raw,
            self._labels[category],
            self._in_file[category],
            self._keypoints[category],
            size,
            lambda *_: None,
        )

    def _complete(self, raw: Mapping[str, Any], image: Mapping[str, Any]) -> dict[str, Any]:
        """An annotation with every field that the metric reads."""
        read = self._read(raw, (image["height"], image["width"]))
        full = {
            "id": raw["id"],
            "image_id": raw["image_id"],
            "category_id": raw["category_id"],
            "iscrowd": int(read.ignore),
        }
        if read.polygons is not None or read.rle is not None:
            full["segmentation"] = read.rle or [
                part.reshape(-1).tolist() for part in read.polygons or ()
            ]
        keypoints = read.keypoints
        if self.categories[read.label].keypoints:
            shown = (
                np.zeros((len(self._keypoints[raw["category_id"]]), 3))
                if keypoints is None
                else keypoints
            )
            placed = shown[:, :2] - KEYPOINT_OFFSET * (shown[:, 2:] > 0)
            full["keypoints"] = np.concatenate([placed, shown[:, 2:]], axis=1).reshape(-1).tolist()
            full["num_keypoints"] = int((shown[:, 2] > 0).sum())
        box = mask_bounds(read) if read.box is None else None
        if read.box is None and box is None and keypoints is not None:
            seen = keypoints[keypoints[:, 2] > 0, :2]
            box = (*seen.min(axis=0).tolist(), *seen.max(axis=0).tolist())
        box_xywh = (
            list(raw["bbox"]) if box is None else [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        )
        measured = float(box_xywh[2] * box_xywh[3]) if read.mask_area is None else read.mask_area
        full["bbox"], full["area"] = box_xywh, measured if read.area is None else read.area
        return full


def _load(path: Path, name: str) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such annotation file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{name}: is not JSON: {error}; is it a COCO annotation file?") from None


def _check_structure(content: Any, name: str) -> None:
    if not isinstance(content, Mapping):
        raise DataError(
            f"{name}: holds a {type(content).__name__}, must be a COCO object with images, annotations and categories"
        )
    missing = [
        key
        for key in ("images", "annotations", "categories")
        if not isinstance(content.get(key), list)
    ]
    if missing:
        keys = ", ".join(content) or "none"
        raise DataError(
            f"{name}: has no list {' and no list '.join(missing)} (its keys: {keys}); it must be in COCO's format"
        )


def _with_whole_numbers(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same with ids and sizes such as 1.0 (pandas writes them) and "1" as whole numbers."""
    fields = {
        "images": ("id", "width", "height"),
        "annotations": ("id", "image_id", "category_id"),
        "categories": ("id",),
    }
    lists = {}
    for key, names in fields.items():
        if any(
            type(entry.get(name)) in (float, str)
            for entry in content[key]
            if isinstance(entry, Mapping)
            for name in names
        ):
            lists[key] = [
                {**entry, **{name: _whole(entry[name]) for name in names if name in entry}}
                if isinstance(entry, Mapping)
                else entry
                for entry in content[key]
            ]
    return {**content, **lists}


def _whole(value: Any) -> Any:
    if (isinstance(value, float) and value.is_integer()) or (
        isinstance(value, str) and value.isascii() and value.isdigit()
    ):
        return int(value)
    return value


def _chosen(
    wanted: Sequence[Category], in_file: Mapping[int, Category], name: str
) -> tuple[Category, ...]:
    """The wanted categories with the ids that they have in the file; one that is not there keeps an id that is free."""
    by_name = {c.name: c for c in in_file.values()}
    if not any(c.name in by_name for c in wanted):
        names = [", ".join(c.name for c in some) for some in (wanted, in_file.values())]
        raise DataError(
            f"{name}: none of the wanted categories is in the file. Wanted: {names[0]:.300}. In the file: {names[1]:.300}"
        )
    free = max([*in_file, *(c.id for c in wanted)]) + 1
    return tuple(
        replace(c, id=by_name[c.name].id if c.name in by_name else free + k)
        for k, c in enumerate(wanted)
    )


def _keypoint_places(wanted: Category, in_file: Category) -> list[int]:
    """For each wanted keypoint its place in the file's category, by name; -1 for one that is not there."""
    return [in_file.keypoints.index(j) if j in in_file.keypoints else -1 for j in wanted.keypoints]


def _image_folder(
    images: str | Path | None, annotations: Path | None, entries: Sequence[Any]
) -> Path | None:
    if images is not None:
        if not Path(images).is_dir():
            raise DataError(
                f"{images}: there is no such folder; images= must name the folder of the images"
            )
        return Path(images)
    if annotations is None:
        return None
    names = (
        e["file_name"]
        for e in entries
        if isinstance(e, Mapping) and isinstance(e.get("file_name"), str)
    )
    return annotations.parent if any((annotations.parent / n).is_file() for n in names) else None
