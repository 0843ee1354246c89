"""The dictionaries of COCO's JSON files, typed: annotations, categories, images and results.

Readers of other formats produce these dictionaries and writers consume them. Optional keys of a
file are in the `total=False` half of a type.

Source: cocodataset.org, "Data format" and "Results format".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

Json = Any
"""A value of a JSON file that is not checked yet: anything that JSON can hold."""
JsonObject = Mapping[str, Json]
"""An object of a JSON file whose values are not checked yet."""


class RLE(TypedDict):
    """A run-length encoded mask."""

    size: list[int]
    """Height and width of the image."""
    counts: str | list[int]
    """Lengths of runs of 0 and 1 in turn, column by column; a string is compressed."""


class _ImageKeys(TypedDict):
    id: int
    file_name: str
    width: int
    height: int


class CocoImage(_ImageKeys, total=False):
    """One entry of the list `images`."""

    original_id: str
    """The id in the file, where it is text that is not a number."""
    labeled_categories: list[int]
    """Ids of the categories whose every object is annotated; without this key all."""
    neg_category_ids: list[int]
    """LVIS: categories that were searched for and are absent."""
    not_exhaustive_category_ids: list[int]
    """LVIS: categories of which some objects are not annotated."""


class _CategoryKeys(TypedDict):
    id: int
    name: str


class CocoCategory(_CategoryKeys, total=False):
    """One entry of the list `categories`."""

    supercategory: str
    original_id: str
    """The id in the file, where it is text that is not a number."""
    keypoints: list[str]
    skeleton: list[list[int]]
    """Limbs as pairs of indices into `keypoints`, counted from 1."""
    flip: list[int]
    """For each keypoint the one it becomes in a mirror image, counted from 0."""
    flip_pairs: list[list[str] | list[int]]
    """Pairs of keypoints that change sides in a mirror image, by name or counted from 0."""
    sigmas: list[float]
    """OKS standard deviation of each keypoint."""


class _AnnotationKeys(TypedDict):
    id: int
    image_id: int
    category_id: int


class CocoAnnotation(_AnnotationKeys, total=False):
    """One entry of the list `annotations`."""

    bbox: list[float]
    """x, y, width, height in pixels."""
    segmentation: list[list[float]] | RLE
    """Polygons as flat lists x, y, x, y, ...; or one RLE."""
    keypoints: list[float]
    """x, y, visibility for each keypoint of the category: 0 unlabeled, 1 hidden, 2 visible."""
    num_keypoints: int
    point_coords: list[list[float]]
    """Whole-pixel indices x, y of points that are labeled instead of a mask."""
    point_labels: list[int]
    """For each of these points 1 if it is on the object, 0 if it is not."""
    area: float
    iscrowd: int
    ignore: int
    score: float
    """Confidence, where the entry is a prediction to be corrected by hand."""
    original_id: str
    """The id in the file, where it is text that is not a number."""
    where: str
    """Location in a file of another format that this entry was read from."""


class CocoContent(TypedDict):
    """A whole annotation file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class _ResultKeys(TypedDict):
    image_id: int
    category_id: int
    score: float


class CocoResult(_ResultKeys, total=False):
    """One predicted object of a results file."""

    file_name: str
    category_name: str
    bbox: list[float]
    segmentation: RLE | list[list[float]]
    keypoints: list[float]
