"""The data of a planned run: opened, with validation images split off where there are none.

In: annotations, and where to validate. Out: a `PlannedData`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..annotations.images_option import VAL_IMAGES, images_given_by
from ..annotations.split import split_dataset
from ..runtime.counted import counted
from .processes import Processes

if TYPE_CHECKING:
    from ..annotations.coco_dataset import CocoDataset

VAL_SHARE = 0.15  # of the images is split off for validation where there is no validation data


@dataclass(frozen=True)
class PlannedData:
    """The images to train on, and those to validate on."""

    training: CocoDataset
    validation: CocoDataset | None
    val_source: str
    """Where the validation data comes from, as text."""


def open_planned_data(
    given: str | Path | CocoDataset,
    val: str | Path | CocoDataset | Literal[False] | None,
    *,
    images: str | Path | None,
    val_images: str | Path | None,
    attribute: str | None,
    on_error: Literal["raise", "drop"],
    seed: int,
    progress: bool,
    processes: Processes,
) -> PlannedData:
    """Opens the data of a run; `plan_training` explains the arguments.

    Args:
        given: annotations to train on.
        val: annotations to validate on.
        images: folder of the images.
        val_images: folder of the validation images.
        attribute: the attribute that holds the category.
        on_error: how to handle unusable annotations.
        seed: of the images that are split off.
        progress: show the progress of splitting.
        processes: the main one alone compares the images.

    Raises:
        DataError: unusable annotations, or too few images to split.
    """
    from ..formats.load_dataset import load_dataset, validation_split

    data = given
    if isinstance(data, str | Path):
        data = load_dataset(data, images, attribute=attribute, on_error=on_error)
    if len(data):
        data.require_images()

    if val is False:
        return PlannedData(data, None, "none: the last model will be the result")
    if val is None and isinstance(given, str | Path):
        val = validation_split(given, images)

    if val is None:
        return _split(data, seed, progress, processes)
    if isinstance(val, str | Path):
        categories = data.categories
        with images_given_by(VAL_IMAGES):
            val = load_dataset(
                val, val_images, categories=categories, attribute=attribute, on_error=on_error
            )
    if len(val):
        val.require_images()
    return PlannedData(data, val, str(val))


def _split(data: CocoDataset, seed: int, progress: bool, processes: Processes) -> PlannedData:
    """Splits validation images off."""
    parts: tuple[CocoDataset, ...] = ()
    if processes.main:
        parts = split_dataset(data, VAL_SHARE, seed, progress=progress)
    training, validation = processes.from_main(
        [{part[i].image_id for i in range(len(part))} for part in parts]
    )

    indices = range(len(data))
    val = data.subset([i for i in indices if data[i].image_id in validation])
    text = (
        f"{counted(len(val), 'image')} split off, {VAL_SHARE:.0%} by seed {seed}, "
        "similar images kept together; --no-val trains on all"
    )
    return PlannedData(data.subset([i for i in indices if data[i].image_id in training]), val, text)
