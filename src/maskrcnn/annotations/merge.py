"""Several data sets as one, each annotated for its own categories: `merge([cells, nuclei])`.

In:  data sets, opened in any way.
Out: one whose categories are all of theirs, united by name. Every image says which of them its data set looked for (partial.py), so that training
     does not take the others' objects for background and the evaluation does not count them as mistakes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import Category
from .coco_dataset import CocoDataset
from .exhaustive import KEYS, labeled_ids
from .problems import DataError


def merge_datasets(datasets: Sequence[CocoDataset]) -> CocoDataset:
    """One data set of all the images of several.

    Categories of one name are one category; ids of categories, images and annotations are counted anew, from 1. An image that several data sets
    have (one file, each with its own categories) becomes one with the annotations of all. `file_name` is the path from the folder that all share.

    Args:
        datasets: what was dropped from one of them, or left out by `subset`, stays out.

    Raises:
        DataError: one name with different skeletons; an image in which two data sets annotate the same category, or have different sizes; data
            sets with and without images together.
        ValueError: no data set.
    """
    if not datasets:
        raise ValueError("merge needs at least one data set, got none")
    categories = _united(datasets)
    folder, names = _file_names(datasets)
    ids = {name: c.id for name, c in categories.items()}
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for data, files in zip(datasets, names, strict=True):
        own = {c.id: ids[c.name] for c in data.categories if c.id in data._in_file}
        for place, file_name in zip(data._places, files, strict=True):
            given = data._annotations[place]
            image = _image(
                images,
                file_name,
                data,
                data._content["images"][place],
                {a["category_id"] for a in given},
                own,
            )
            for raw in given:
                annotations.append(
                    {
                        **raw,
                        "id": len(annotations) + 1,
                        "image_id": image["id"],
                        "category_id": own[raw["category_id"]],
                    }
                )
    everything = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [_entry(c) for c in categories.values()],
    }
    return CocoDataset(everything, folder, name=" + ".join(d.name for d in datasets))


def _united(datasets: Sequence[CocoDataset]) -> dict[str, Category]:
    """Name -> category, with ids from 1 in the order in which the names first appear."""
    found: dict[str, Category] = {}
    homes: dict[str, str] = {}
    for data in datasets:
        for category in (data._in_file[c.id] for c in data.categories if c.id in data._in_file):
            new = replace(
                category, id=found[category.name].id if category.name in found else len(found) + 1
            )
            first = found.setdefault(category.name, new)
            homes.setdefault(category.name, data.name)
            if first != new:
                skeletons = [
                    f"{len(c.keypoints)} ({', '.join(c.keypoints) or 'none'})" for c in (first, new)
                ]
                raise DataError(
                    f'category "{category.name}": its skeleton in {homes[category.name]} is not that in {data.name}: keypoints {skeletons[0]:.200} '
                    f"against {skeletons[1]:.200}; keypoints, skeleton, flip and sigmas must be equal. Rename one, or make them equal"
                )
    return found


def _file_names(datasets: Sequence[CocoDataset]) -> tuple[Path | None, list[list[str]]]:
    """The folder that all images share, and the name of each image in it."""
    listed = [
        [data._content["images"][place]["file_name"] for place in data._places] for data in datasets
    ]
    folders = [data.image_folder for data in datasets]
    if all(folder is None for folder in folders):
        return None, [
            [f"{number}/{name}" for name in names] for number, names in enumerate(listed, start=1)
        ]
    if without := [data.name for data in datasets if data.image_folder is None]:
        raise DataError(
            f"{', '.join(without)}: no folder of images, which the other data sets have; open with images="
        )
    resolved = [Path(folder).resolve() for folder in folders if folder is not None]
    try:
        shared = Path(os.path.commonpath(resolved))
    except ValueError:  # different drives
        return resolved[0], [
            [str(folder / name) for name in names]
            for folder, names in zip(resolved, listed, strict=True)
        ]
    return shared, [
        [Path(os.path.relpath(folder / n, shared)).as_posix() for n in names]
        for folder, names in zip(resolved, listed, strict=True)
    ]


def _image(
    images: dict[str, dict[str, Any]],
    file_name: str,
    data: CocoDataset,
    raw: dict[str, Any],
    annotated: set[int],
    own: dict[int, int],
) -> dict[str, Any]:
    """The entry of an image, new or already there, which from now on vouches for this data set's categories as well."""
    looked_for = labeled_ids(raw, annotated, own)
    labeled = {own[i] for i in (own if looked_for is None else looked_for)}
    kept = {k: v for k, v in raw.items() if k not in KEYS}
    image = images.setdefault(
        file_name, {**kept, "id": len(images) + 1, "file_name": file_name, "labeled_categories": []}
    )
    if (image["height"], image["width"]) != (raw["height"], raw["width"]):
        size = f"{raw['width']} x {raw['height']} pixels in {data.name}, {image['width']} x {image['height']} in another"
        raise DataError(f"{file_name}: {size}; mend the wrong one")
    if twice := sorted(labeled.intersection(image["labeled_categories"])):
        names = ", ".join(c.name for c in data.categories if own.get(c.id) in twice)
        raise DataError(
            f"{file_name}: two of the data sets annotate {names} in it, the second is {data.name}; leave the image out of one (subset)"
        )
    image["labeled_categories"] = sorted({*image["labeled_categories"], *labeled})
    return image


def _entry(category: Category) -> dict[str, Any]:
    """As in a COCO file."""
    entry: dict[str, Any] = {"id": category.id, "name": category.name}
    if category.keypoints:
        skeleton = [[a + 1, b + 1] for a, b in category.skeleton]
        entry |= {
            "keypoints": list(category.keypoints),
            "skeleton": skeleton,
            "flip": list(category.mirrored),
            "sigmas": list(category.sigmas),
        }
    return entry
