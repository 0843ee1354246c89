"""What training would refuse, found before it is started.

In:  the data to train on.
Out: problems: no images, no objects, no images to split off for validation.

Training also refuses validation data with other categories; check_dataset.py opens these as
training does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import NO_OBJECT, Problem
from ..runtime.counted import counted
from .decode_images import DecodedImage, without_copies


def find_refusals(data: CocoDataset) -> list[Problem]:
    """Reports data without an image or an object to train on.

    Nothing is added where errors of the images and annotations themselves are the reason.
    """
    if data.dropped:
        return []
    if not len(data):
        suggestion = "training needs at least one"
        return [Problem("no image to learn from", data.name, "0 images", suggestion, True)]
    if any(data.labels(index) for index in range(len(data))):
        return []
    ignored = [p for p in data.warnings if p.kind == NO_OBJECT]
    if ignored:
        return [replace(p, is_error=True) for p in ignored]
    detail = f"{counted(len(data), 'image')} without an object"
    return [Problem(NO_OBJECT, data.name, detail, "annotate at least one", True)]


def find_split_refusal(data: CocoDataset, images: Sequence[DecodedImage]) -> list[Problem]:
    """Reports data of which no validation images can be split off.

    Args:
        data: the data to train on, which come without validation data.
        images: its decoded images; without any, nothing is reported.
    """
    if not images or not len(data) or len(without_copies(images)) > 1:
        return []
    detail = counted(len(data), "image")
    if len(data) > 1:
        detail += ", which are one image and its copies"
    suggestion = "training splits images off to validate on; add images, or use --val or --no-val"
    return [Problem("no validation images", data.name, detail, suggestion, True)]
