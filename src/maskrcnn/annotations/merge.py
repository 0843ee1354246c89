"""Merges data sets, each annotated for its own categories: `merge_datasets([cells, nuclei])`.

In:  data sets, opened in any way.
Out: one data set with all their categories, matched by name. Every image records which of them its
     data set annotates (labeled_categories.py). So training does not treat the others' objects as
     background, and the evaluation does not count them as mistakes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ..config import Category
from ..runtime.counted import counted
from .categories import category_to_coco, unspaced
from .coco_dataset import CocoDataset, require_datasets
from .coco_types import Json, JsonObject
from .labeled_categories import KEYS, labeled_ids
from .notes import Note, Notes
from .problems import DataError


def merge_datasets(datasets: Sequence[CocoDataset]) -> CocoDataset:
    """Merges the images of several data sets into one.

    Categories with the same name become one category. Categories, images and annotations get new
    ids, counted from 1. An image that several data sets share (one file, each with its own
    categories) becomes one image with the annotations of all. `file_name` becomes the path relative
    to the folder that contains all images.

    Args:
        datasets: at least one. What was dropped from one of them, or left out by `subset`, stays
            out.

    Returns:
        The merged data set. Its name is that of all parts, joined by " + ".

    Raises:
        DataError: one category name has different skeletons; two data sets annotate the same
            category in one image, or give it different sizes; only some of the data sets have
            images.
        ValueError: `datasets` is empty.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> first = mr.CocoDataset(write_scenes("a", count=2, seed=0), "a/images")
        >>> second = mr.CocoDataset(write_scenes("b", count=3, seed=1), "b/images")
        >>> merged = mr.merge_datasets([first, second])
        >>> len(merged)
        5
        >>> merged[2].file_name
        'b/images/00001.png'
        >>> len(merged.categories) == len(first.categories)
        True
    """
    if not datasets:
        raise ValueError("merge_datasets: expected at least one data set, got none")
    if isinstance(datasets, str | Path | CocoDataset):
        raise TypeError("datasets: expected a list of data sets, got one; pass them as [a, b]")
    require_datasets(**{f"datasets[{i}]": data for i, data in enumerate(datasets)})
    categories = _merge_categories(datasets)
    folder, file_names = _merged_file_names(datasets)

    merged_ids = {name: category.id for name, category in categories.items()}
    images: dict[str, dict[str, Json]] = {}
    annotations: list[dict[str, Json]] = []
    for data, names in zip(datasets, file_names, strict=True):
        new_ids = {c.id: merged_ids[c.name] for c in _used_categories(data)}
        for index, file_name in enumerate(names):
            raw_annotations = data._raw_annotations(index)
            annotated = {raw["category_id"] for raw in raw_annotations}
            entry = data._image_entry(index)
            image = _merge_image(images, file_name, data, entry, annotated, new_ids)
            for raw in raw_annotations:
                new = {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": new_ids[raw["category_id"]],
                }
                annotations.append({**raw, **new})

    content = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": [category_to_coco(c) for c in categories.values()],
    }
    merged = CocoDataset(content, folder, name=" + ".join(d.name for d in datasets))
    merged.notes = (*(note for d in datasets for note in d.notes), *_similar_names(categories))
    return merged


def _used_categories(data: CocoDataset) -> list[Category]:
    """Returns the categories in use as the file defines them."""
    return [data._in_file[c.id] for c in data.categories if c.id in data._in_file]


def _merge_categories(datasets: Sequence[CocoDataset]) -> dict[str, Category]:
    """Returns name -> category, with ids from 1 in the order in which the names first appear."""
    merged: dict[str, Category] = {}
    origin: dict[str, str] = {}
    for data in datasets:
        for category in _used_categories(data):
            name = category.name
            new_id = merged[name].id if name in merged else len(merged) + 1
            new = replace(category, id=new_id)
            first = merged.setdefault(name, new)
            origin.setdefault(name, data.name)

            if first != new:
                raise DataError(
                    f'category "{name}": its skeletons in {origin[name]} and {data.name} differ: '
                    f"{_describe_keypoints(first):.200} and {_describe_keypoints(new):.200}. "
                    "Keypoints, skeleton, flip and sigmas must be equal. "
                    "Rename one category, or make them equal"
                )
    return merged


def _similar_names(names: Iterable[str]) -> tuple[Note, ...]:
    """Returns a note on names that differ only in case and spaces, which stay two categories."""
    notes = Notes()
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(unspaced(name), name)
        if other != name:
            what = "category names that are nearly equal"
            notes.add(what, "kept apart; rename one to join them", f'"{other}" and "{name}"')
    return notes.all()


def _describe_keypoints(category: Category) -> str:
    names = ", ".join(category.keypoints) or "none"
    return f"{counted(len(category.keypoints), 'keypoint')} ({names})"


def _merged_file_names(datasets: Sequence[CocoDataset]) -> tuple[Path | None, list[list[str]]]:
    """Returns the folder that contains all images, and their names relative to it."""
    names_of = [[data._image_entry(i)["file_name"] for i in range(len(data))] for data in datasets]
    folders = [data.image_folder for data in datasets]
    if all(folder is None for folder in folders):
        numbered = enumerate(names_of, start=1)
        return None, [[f"{number}/{name}" for name in names] for number, names in numbered]
    if without := [data.name for data in datasets if data.image_folder is None]:
        raise DataError(
            f"{', '.join(without)}: no folder of images, but other data sets have one; "
            "open with images="
        )

    resolved = [Path(folder).resolve() for folder in folders if folder is not None]
    pairs = list(zip(resolved, names_of, strict=True))
    try:
        shared = Path(os.path.commonpath(resolved))
    except ValueError:  # different drives
        return resolved[0], [[str(folder / name) for name in names] for folder, names in pairs]
    return shared, [
        [Path(os.path.relpath(folder / name, shared)).as_posix() for name in names]
        for folder, names in pairs
    ]


def _merge_image(
    images: dict[str, dict[str, Json]],
    file_name: str,
    data: CocoDataset,
    raw: JsonObject,
    annotated: set[int],
    new_ids: Mapping[int, int],
) -> dict[str, Json]:
    """Adds an image to `images`, or its labeled categories to the image of the same file.

    Args:
        images: file name -> entry of the merged file; changed in place.
        file_name: the merged name.
        data: the data set that the image comes from.
        raw: its entry there.
        annotated: category ids of its annotations there.
        new_ids: category id there -> merged category id.

    Returns:
        The merged entry.
    """
    ids = labeled_ids(raw, annotated, new_ids)
    labeled = {new_ids[i] for i in (new_ids if ids is None else ids)}

    kept = {key: value for key, value in raw.items() if key not in KEYS}
    new = {"id": len(images) + 1, "file_name": file_name, "labeled_categories": []}
    image = images.setdefault(file_name, {**kept, **new})

    if (image["height"], image["width"]) != (raw["height"], raw["width"]):
        raise DataError(
            f"{file_name}: {raw['width']} x {raw['height']} pixels in {data.name}, "
            f"{image['width']} x {image['height']} in another data set; fix the wrong one"
        )
    if twice := sorted(labeled.intersection(image["labeled_categories"])):
        names = ", ".join(c.name for c in data.categories if new_ids.get(c.id) in twice)
        raise DataError(
            f"{file_name}: two of the data sets annotate {names}, the second is {data.name}; "
            "leave the image out of one of them (subset)"
        )

    image["labeled_categories"] = sorted({*image["labeled_categories"], *labeled})
    return image
