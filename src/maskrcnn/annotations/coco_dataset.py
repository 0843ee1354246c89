"""A data set in COCO's format: `CocoDataset("train.json", images="images/")`.

In:  a COCO annotation file (or its content as a dict) and a folder of images.
Out: `dataset[i] -> Record` (an image's name, size and annotations), `dataset.image(i) -> uint8 [H,
     W, 3]`, `dataset.truth()` for the evaluation.

Polygons, compressed and uncompressed RLE, keypoints, crowds, any category ids and images without
objects are supported. Everything is checked on opening, and all problems are reported at once.
problems.py and annotation.py define what counts as an error or a warning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import numpy as np
from jaxtyping import UInt8

from ..config import Category
from ..images.read import read_image, read_values
from ..runtime.counted import counted
from .annotation import KEYPOINT_OFFSET, Annotation, BoxXYXY, mask_bounds, read_annotation
from .categories import (
    are_numbered,
    category_to_coco,
    parse_categories,
    plain_keypoint,
    similar_names,
)
from .coco_types import CocoAnnotation, CocoCategory, CocoContent, CocoImage, Json, JsonObject
from .image_names import file_names, first_folder
from .images_option import images_option
from .interpretation import interpret
from .json_file import encoding_notes, read_json
from .labeled_categories import find_key_problems, labeled_ids
from .locate_images import check_image_folder, locate_images
from .notes import Note, Notes, describe_notes
from .problems import (
    DataError,
    DataWarning,
    Problem,
    describe,
    find_problems,
    summary,
    without_images,
    without_objects,
)
from .shown_values import shown
from .structure import check_structure
from .unlisted_images import unlisted_images

__all__ = ["Annotation", "CocoDataset", "DataError", "DataWarning", "Record"]

_HOW_TO_GO_ON = (
    'Repair what has one right answer with check_dataset(..., fix="fixed.json") '
    "(maskrcnn check --fix fixed.json), or leave these out: "
    'open the data with on_error="drop".'
)
# Percentiles that the intensity range is fitted to. A hot or dead pixel does not set the range.
_FITTED_IMAGES = 64
_FITTED_VALUES = 20_000  # per image
_FITTED_PERCENTILES = (0.1, 99.9)


@dataclass(frozen=True)
class Record:
    """One image and its annotations."""

    image_id: int
    file_name: str
    path: Path
    height: int
    width: int
    annotations: tuple[Annotation, ...]
    labeled: frozenset[int] | None = None
    """Labels of the categories whose every object in the image is annotated.

    None = all of them (see labeled_categories.py).
    """


class UnusableEntries(DataError):
    """Annotations or images that cannot be used.

    Args:
        problems: every problem.
        usable: the data set without these entries, whose `dropped` lists them.
        advice: what the caller can do.
    """

    def __init__(self, problems: str, usable: CocoDataset | None = None, advice: str = "") -> None:
        super().__init__(f"{problems}\n{advice}" if advice else problems)
        self.problems = problems
        self.usable = usable


class CocoDataset:
    """Annotated images in COCO's format, checked when opened.

    Args:
        annotations: the JSON file, or its content.
        images: folder of the images. None uses the folder of the annotation file if the images are
            there. Otherwise the data set has no images, which is enough to evaluate results.
        categories: the categories to read, in the order of the labels, for example
            `model.config.categories`. They are looked up in the file by name. None reads all
            categories of the file, sorted by id.
        on_error: how to handle unusable annotations and images: "raise" an error that lists them
            all, or "drop" them with a warning that lists them.
        name: name for messages if `annotations` is not a file.
        problems: problems that the reader of another format has already reported (see
            `load_dataset`).
        notes: what that reader has counted.

    Attributes:
        categories: the categories with the ids of this file; a label is an index into them.
        warnings: problems that leave the data usable; `describe_warnings()` returns them as text.
        dropped: the errors whose annotations and images were dropped, empty unless `on_error` is
            "drop".
        notes: what is read differently than written, and what is in the data and not used, each
            with its count; `describe_notes()` returns them as text.
        images_option: the argument and the option that errors name for the folder of the images.

    Raises:
        DataError: all problems at once, with file, annotation id and suggestion.
        ValueError: `on_error` is neither "raise" nor "drop".

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> path = write_scenes("scenes", count=3)
        >>> data = mr.CocoDataset(path, "scenes/images")
        >>> len(data)
        3
        >>> data[0].file_name
        '00001.png'
        >>> data.image(0).shape
        (160, 160, 3)
        >>> [len(record.annotations) > 0 for record in data]
        [True, True, True]
    """

    def __init__(
        self,
        annotations: str | Path | JsonObject,
        images: str | Path | None = None,
        *,
        categories: Sequence[Category] | None = None,
        on_error: Literal["raise", "drop"] = "raise",
        name: str = "annotations",
        problems: Sequence[Problem] = (),
        notes: Sequence[Note] = (),
    ) -> None:
        self.annotations_path = Path(annotations) if isinstance(annotations, str | Path) else None
        self.name = self.annotations_path.name if self.annotations_path else name
        self.images_option = images_option()

        content: Json = annotations
        if self.annotations_path:
            content = read_json(self.annotations_path)
            notes = (*notes, *encoding_notes(self.annotations_path))
        check_structure(content, self.name)
        interpreted = interpret(content)
        content = interpreted.content

        # the categories of the file, and those of them that are used
        try:
            in_file = {c.id: c for c in parse_categories(content["categories"])}
        except ValueError as error:
            lines = [f"{self.name}: the categories cannot be used:", *str(error).splitlines()]
            raise DataError("\n  ".join(lines)) from None
        self._in_file = in_file
        if categories is None:
            self._use_categories(tuple(in_file.values()))
        else:
            self._use_categories(_select_categories(categories, in_file, self.name))

        self.image_folder = _find_image_folder(images, self.annotations_path, content["images"])
        if self.annotations_path and self.image_folder:
            names = file_names(content["images"])
            notes = (*notes, *unlisted_images(names, self.image_folder, self.annotations_path))
        located = locate_images(content["images"], self.image_folder)
        self._content: Mapping[str, list[Json]] = {**content, "images": located.images}
        self.notes = (*notes, *interpreted.notes, *located.notes, *self._notes_on_categories())

        self._check(on_error, [*problems, *interpreted.problems, *located.problems])
        self._range: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return f"CocoDataset({self})"

    def __str__(self) -> str:
        objects = sum(len(self._annotations[i]) for i in self._indices)
        categories = f"{len(self.categories)} of {counted(len(self._in_file), 'category')}"
        return (
            f"{self.name}: {counted(len(self), 'image')}, "
            f"{counted(objects, 'annotation')}, {categories}"
        )

    def __getitem__(self, index: int) -> Record:
        image = self._image_entry(index)
        size = (image["height"], image["width"])
        return Record(
            image_id=image["id"],
            file_name=image["file_name"],
            path=(self.image_folder or Path()) / image["file_name"],
            height=size[0],
            width=size[1],
            annotations=tuple(self._read(raw, size) for raw in self._raw_annotations(index)),
            labeled=self.labeled(index),
        )

    def labeled(self, index: int) -> frozenset[int] | None:
        """Returns the labels of the categories whose every object in an image is annotated.

        None = all. A category that the file does not define is never among them.
        """
        annotated = {raw["category_id"] for raw in self._raw_annotations(index)}
        ids = labeled_ids(self._image_entry(index), annotated, self._labels)
        if ids is None:
            labels = frozenset(self._labels.values())
        else:
            labels = frozenset(self._labels[i] for i in ids)
        return None if len(labels) == len(self.categories) else labels

    def labels(self, index: int) -> frozenset[int]:
        """Returns the labels of the objects in an image, without regions to ignore."""
        return frozenset(
            self._labels[raw["category_id"]]
            for raw in self._raw_annotations(index)
            if not (raw.get("iscrowd", 0) or raw.get("ignore", 0))
        )

    def size(self, index: int) -> tuple[int, int]:
        """Returns (height, width) of an image; reads no file."""
        image = self._image_entry(index)
        return image["height"], image["width"]

    def image(
        self, index: int, intensity_range: tuple[float, float] | None = None
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Reads an image as RGB.

        Args:
            index: of the image.
            intensity_range: the values of a 16-bit image that become 0 and 255 (see
                `intensity_range()`).

        Raises:
            DataError: the data set has no folder of images.
            ImageError: the file is missing or cannot be read.
        """
        return read_image(self._path(self._image_entry(index)), intensity_range)

    def intensity_range(self) -> tuple[float, float] | None:
        """Returns a range that contains nearly all values of 16-bit and floating-point images.

        None if all images have 8 bits.
        """
        deep = [i for i in self._indices if i in self._deep_images]
        if deep and self._range is None:
            spread = np.linspace(0, len(deep) - 1, min(len(deep), _FITTED_IMAGES)).astype(int)
            entries = [self._content["images"][deep[i]] for i in spread]
            values = [read_values(self._path(entry)).reshape(-1) for entry in entries]
            sample = np.concatenate([v[:: max(1, len(v) // _FITTED_VALUES)] for v in values])

            low, high = np.percentile(sample[np.isfinite(sample)], _FITTED_PERCENTILES)
            self._range = (float(low), float(high if high > low else low + 1))
        return self._range

    def subset(self, indices: Iterable[int]) -> CocoDataset:
        """Returns a data set of these images only, in this order.

        Args:
            indices: of the images; negative ones count from the end.

        Raises:
            IndexError: an index is out of range.
        """
        indices = list(indices)
        count = len(self)
        if outside := [i for i in indices if not -count <= i < count]:
            raise IndexError(
                f"{self.name}: image index {outside[0]} is out of range "
                f"for {counted(count, 'image')}"
            )

        part = copy.copy(self)
        part._indices = [self._indices[i] for i in indices]
        part._range = None
        return part

    def describe_warnings(self) -> str:
        """Returns the warnings as text, grouped by kind."""
        return describe(self.name, self.warnings, "warning")

    def describe_notes(self) -> str:
        """Returns the notes as text, one a line."""
        return describe_notes(self.name, self.notes)

    def remarks(self) -> list[str]:
        """Returns what to know about the data, one a line: the warnings in short, and the notes.

        Every command that uses data prints them.
        """
        lines = [f"{self.name}: {note}" for note in self.notes]
        if self.warnings:
            lines.insert(0, f"{summary(self.name, self.warnings)}; maskrcnn check lists them")
        return lines

    def with_categories(self, categories: Sequence[Category]) -> CocoDataset:
        """Returns the same images with their categories in another order, matched by name.

        Args:
            categories: the same names, for example `model.config.categories`. Their order is that
                of the labels; their ids do not matter.

        Raises:
            DataError: the names are not those of this data set.
        """
        names = [c.name for c in categories]
        if sorted(names) != sorted(c.name for c in self.categories):
            raise DataError(
                f"{self.name}: expected the categories {', '.join(names):.300}, "
                f"got {', '.join(c.name for c in self.categories):.300}"
            )
        part = copy.copy(self)
        part._use_categories(_select_categories(categories, self._in_file, self.name))
        return part

    def truth(self) -> CocoContent:
        """Returns complete COCO annotations for the evaluation.

        Ids are those of the file and keypoints are in the order of `categories`. Regions to ignore
        are crowds, and every field that pycocotools reads is present.
        """
        images: list[CocoImage] = []
        annotations: list[CocoAnnotation] = []
        for index in range(len(self)):
            raw_image = self._image_entry(index)
            keys = ("id", "file_name", "height", "width", "original_id")
            image = {key: raw_image[key] for key in keys if key in raw_image}
            if (labels := self.labeled(index)) is not None:
                image["labeled_categories"] = [self.categories[i].id for i in sorted(labels)]
            images.append(cast(CocoImage, image))

            size = self.size(index)
            annotations += [self._complete(raw, size) for raw in self._raw_annotations(index)]

        original = {
            entry["id"]: entry["original_id"]
            for entry in self._content["categories"]
            if "original_id" in entry
        }
        categories = [_category_for_evaluation(category) for category in self.categories]
        for entry in categories:
            if entry["id"] in original:
                entry["original_id"] = original[entry["id"]]
        return {"images": images, "annotations": annotations, "categories": categories}

    @property
    def raw(self) -> Mapping[str, list[Json]]:
        """The content of the file as opened, unusable entries included.

        `Problem.annotation` and `Problem.image` are indices into its lists.
        """
        return self._content

    def content(self) -> dict[str, Json]:
        """Returns the content of the file with only the images and annotations in use."""
        return {
            **self._content,
            "images": [self._content["images"][i] for i in self._indices],
            "annotations": [raw for i in self._indices for raw in self._annotations[i]],
        }

    def _use_categories(self, categories: tuple[Category, ...]) -> None:
        """Sets the categories, whose order is that of the labels."""
        self.categories = categories
        used = [(label, c) for label, c in enumerate(categories) if c.id in self._in_file]
        self._labels = {c.id: label for label, c in used}
        self._keypoint_order = {
            c.id: _keypoint_order(c, self._in_file[c.id], self.name) for _, c in used
        }

    def _notes_on_categories(self) -> tuple[Note, ...]:
        """Returns notes on requested categories and keypoints that the file does not define, and on
        keypoints of the file that are not requested.
        """
        notes = Notes()
        for category in self.categories:
            if category.id not in self._in_file:
                what = "requested categories that the file does not define"
                notes.add(what, "excluded from the loss and the metric here", category.name)
                continue

            order = self._keypoint_order[category.id]
            in_file = self._in_file[category.id].keypoints
            for name, index in zip(category.keypoints, order, strict=True):
                if index < 0 and in_file:
                    what = "requested keypoints that the file does not define"
                    notes.add(what, "unlabeled here", f"{category.name}: {name}")
            for index, name in enumerate(in_file):
                if index not in order:
                    what = "keypoints that are not requested"
                    notes.add(what, "not used", f"{category.name}: {name}")
        return notes.all()

    def _image_entry(self, index: int) -> JsonObject:
        return self._content["images"][self._indices[index]]

    def _raw_annotations(self, index: int) -> list[Json]:
        return self._annotations[self._indices[index]]

    def require_images(self) -> Path:
        """Returns the folder of the images.

        Raises:
            DataError: it is unknown, because none of the images was found.
        """
        if self.image_folder is None:
            names = (e.get("file_name") for e in self._content["images"] if isinstance(e, Mapping))
            such_as = f", such as {shown(name)}" if (name := next(names, None)) else ""
            raise DataError(
                f"{self.name}: none of its images ({len(self._content['images']):,}) is found"
                f"{such_as}; pass their folder as {self.images_option}"
            )
        return self.image_folder

    def _path(self, image: JsonObject) -> Path:
        return self.require_images() / image["file_name"]

    def _check(self, on_error: str, earlier: Sequence[Problem]) -> None:
        """Checks everything, then groups the usable annotations by image."""
        if on_error not in ("raise", "drop"):
            raise ValueError(f'on_error: expected "raise" or "drop", got {on_error!r}')

        images = self._content["images"]
        annotations = self._content["annotations"]
        unnamed = {p.image for p in earlier if p.is_error}
        result = find_problems(
            images, annotations, self._labels, self._in_file, self.image_folder, unnamed
        )
        problems = [*earlier, *result.problems, *find_key_problems(images, self._in_file)]
        errors = [p for p in problems if p.is_error]
        if errors:
            text = describe(self.name, errors)
            if on_error == "drop":
                warnings.warn(f"{text}\nThese were dropped.", DataWarning, stacklevel=3)
        self.dropped: tuple[Problem, ...] = tuple(errors)
        self._deep_images = result.deep_images

        dropped_images = {p.image for p in errors}
        dropped_annotations = {p.annotation for p in errors} | result.empty_annotations
        self._indices = [i for i in range(len(images)) if i not in dropped_images]
        """Index into the file's list for each image of the data set."""
        self._annotations: dict[int, list[Json]] = {i: [] for i in self._indices}
        image_index = {images[i]["id"]: i for i in self._indices}
        for index, raw in enumerate(annotations):
            if index not in dropped_annotations and raw["image_id"] in image_index:
                self._annotations[image_index[raw["image_id"]]].append(raw)

        used = [raw for entries in self._annotations.values() for raw in entries]
        problems += without_images(self.name, images, len(annotations))
        problems += without_objects(self.name, len(annotations), used)
        self.warnings = tuple(p for p in problems if not p.is_error)
        if errors and on_error == "raise":
            raise UnusableEntries(text, self, _HOW_TO_GO_ON)

    def _read(self, raw: JsonObject, size: tuple[int, int]) -> Annotation:
        category_id = raw["category_id"]
        return read_annotation(
            raw,
            self._labels[category_id],
            self._in_file[category_id],
            self._keypoint_order[category_id],
            size,
            lambda *_: None,  # problems were reported on opening
        )

    def _complete(self, raw: JsonObject, size: tuple[int, int]) -> CocoAnnotation:
        """Returns an annotation with every field that the metric reads."""
        annotation = self._read(raw, size)
        complete: CocoAnnotation = {
            "id": raw["id"],
            "image_id": raw["image_id"],
            "category_id": raw["category_id"],
            "iscrowd": int(annotation.ignore),
        }
        if annotation.rle is not None:
            complete["segmentation"] = annotation.rle
        elif annotation.polygons is not None:
            complete["segmentation"] = [p.reshape(-1).tolist() for p in annotation.polygons]

        if annotation.points is not None:
            xy = annotation.points[:, :2] - KEYPOINT_OFFSET
            complete["point_coords"] = xy.tolist()
            complete["point_labels"] = annotation.points[:, 2].astype(int).tolist()

        if self.categories[annotation.label].keypoints:
            keypoints = annotation.keypoints
            if keypoints is None:
                keypoints = np.zeros((len(self._keypoint_order[raw["category_id"]]), 3))
            labeled = keypoints[:, 2:] > 0
            xy = keypoints[:, :2] - KEYPOINT_OFFSET * labeled
            values = np.concatenate([xy, keypoints[:, 2:]], axis=1)
            complete["keypoints"] = values.reshape(-1).tolist()
            complete["num_keypoints"] = int(labeled.sum())

        bounds = _bounds_without_box(annotation)
        if bounds is None:
            bbox = list(raw["bbox"])
        else:
            x0, y0, x1, y1 = bounds
            bbox = [x0, y0, x1 - x0, y1 - y0]
        complete["bbox"] = bbox

        if annotation.area is not None:
            complete["area"] = annotation.area
        elif annotation.mask_area is not None:
            complete["area"] = annotation.mask_area
        else:
            complete["area"] = float(bbox[2] * bbox[3])
        return complete


def require_datasets(**given: object) -> None:
    """Checks that arguments are opened data sets; None is left to the caller.

    Raises:
        TypeError: one is something else, such as the name of a file.
    """
    for name, data in given.items():
        if data is not None and not isinstance(data, CocoDataset):
            shown_data = repr(str(data)) if isinstance(data, str | Path) else type(data).__name__
            raise TypeError(
                f"{name}: expected a CocoDataset, got {shown_data:.80}; open it with load_dataset"
            )


def _bounds_without_box(annotation: Annotation) -> BoxXYXY | None:
    """Returns the bounds of the mask, else of the keypoints; None for an annotation with a box."""
    if annotation.box is not None:
        return None
    bounds = mask_bounds(annotation)
    if bounds is None and annotation.keypoints is not None:
        labeled = annotation.keypoints[annotation.keypoints[:, 2] > 0, :2]
        bounds = (*labeled.min(axis=0).tolist(), *labeled.max(axis=0).tolist())
    return bounds


def _category_for_evaluation(category: Category) -> CocoCategory:
    """Returns a category with the keys of COCO's own files only."""
    entry = category_to_coco(category)
    entry.pop("flip", None)
    entry.pop("sigmas", None)
    return entry


def _select_categories(
    requested: Sequence[Category], in_file: Mapping[int, Category], name: str
) -> tuple[Category, ...]:
    """Returns the requested categories with their ids in the file, or an unused id."""
    by_name = {c.name: c for c in in_file.values()}
    if similar := similar_names([c.name for c in requested], by_name):
        raise DataError(
            f'{name}: expected the category "{similar[0]}", got "{similar[1]}"; '
            "give both the same spelling"
        )

    if not any(c.name in by_name for c in requested):
        names = ", ".join(c.name for c in requested)
        file_names = ", ".join(by_name)
        raise DataError(
            f"{name}: none of the requested categories is in the file. "
            f"Requested: {names:.300}. In the file: {file_names:.300}"
        )

    unused_id = max([*in_file, *(c.id for c in requested)]) + 1
    return tuple(
        replace(c, id=by_name[c.name].id if c.name in by_name else unused_id + k)
        for k, c in enumerate(requested)
    )


def _keypoint_order(requested: Category, in_file: Category, name: str) -> list[int]:
    """Returns for each requested keypoint its index in the file's category, -1 if missing.

    Names decide; case and separators do not matter. Where one side has numbers instead, the order
    decides.

    Raises:
        DataError: both have keypoints, and none of the same name.
    """
    index_of = {plain_keypoint(n): i for i, n in enumerate(in_file.keypoints)}
    index_of |= {n: i for i, n in enumerate(in_file.keypoints)}
    order = [index_of.get(n, index_of.get(plain_keypoint(n), -1)) for n in requested.keypoints]
    if not order or not in_file.keypoints or max(order) >= 0:
        return order

    numbered = are_numbered(requested.keypoints) or are_numbered(in_file.keypoints)
    if numbered and len(order) == len(in_file.keypoints):
        return [*range(len(order))]
    raise DataError(
        f'{name}: category "{requested.name}": expected the keypoints '
        f"{', '.join(requested.keypoints):.200}, got {', '.join(in_file.keypoints):.200}; "
        "give both the same names"
    )


def _find_image_folder(
    images: str | Path | None, annotations: Path | None, entries: Sequence[Json]
) -> Path | None:
    check_image_folder(images)
    if images is not None:
        return Path(images)
    if annotations is None:
        return None

    return first_folder(file_names(entries), [annotations.parent])
