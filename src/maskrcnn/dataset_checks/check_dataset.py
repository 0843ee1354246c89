"""`check_dataset`: every problem of annotated images, with file, annotation and suggestion.

In: a data set of any known format, perhaps with its validation set.
Out: a `CheckReport`; on request a fixed COCO file and an HTML page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import JsonObject
from ..annotations.problems import DataWarning, Problem
from ..config import Category
from ..formats.reading import MissingSplit
from ..presets import maskrcnn_r18_small
from .check_report import CheckReport
from .decode_images import (
    decode,
    find_duplicates,
    find_leaks,
    find_shared_files,
    undecodable,
)
from .fix_dataset import FixedDataset, fix_dataset
from .left_right import find_swapped
from .whole_dataset import ObjectTable, find_box_format, find_problems, object_table

DataSource = str | Path | JsonObject | CocoDataset


def check_dataset(
    data: DataSource,
    images: str | Path | None = None,
    *,
    val: DataSource | None = None,
    val_images: str | Path | None = None,
    attribute: str | None = None,
    decode_images: bool = True,
    fix: str | Path | None = None,
    html: str | Path | None = None,
    progress: bool = True,
) -> CheckReport:
    """Checks annotated images and reports every problem.

    Reads every annotation, compares every image header with its entry, decodes every image, and
    looks for duplicates, also between training and validation. The results of decoding are cached:
    an unchanged file is decoded only once.

    Args:
        data: annotation file or folder of any known format (see `load_dataset`), COCO content as a
            dict, or a data set opened with on_error="drop".
        images: image folder; by default where the annotations say it is. For a dict without a
            folder, only the annotations are checked.
        val: data to validate on; checked too, and compared with `data`.
        val_images: its image folder; by default `images`.
        attribute: the attribute that holds the category, as for `load_dataset`.
        decode_images: False reads image headers only.
        fix: COCO file to write, in which every problem with an unambiguous fix is fixed;
            `CheckReport.fixed` lists the changes.
        html: HTML page to write with counts, sizes, problems and drawn samples.
        progress: show progress bars.

    Returns:
        All problems, and the usable annotations as arrays.

    Raises:
        DataError: the annotations cannot be read at all, or `fix` would overwrite them.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> annotations = write_scenes("scenes", count=4)
        >>> report = mr.check_dataset(annotations, "scenes/images", progress=False)
        >>> report.errors
        ()
        >>> len(report.data)
        4
    """
    opened, validation_opened, missing = _open_both(data, images, val, val_images, attribute)
    decoded = decode(opened, progress) if decode_images else []
    fixed = None
    validation_report = None

    if validation_opened is not None:
        validation_decoded = decode(validation_opened, progress) if decode_images else []
        leaks = (
            find_leaks(decoded, validation_decoded)
            if decode_images
            else find_shared_files(opened, validation_opened)
        )
        problems = [
            *undecodable(validation_decoded),
            *find_duplicates(validation_decoded),
            *leaks,
        ]
        validation_report = _report(validation_opened, problems, is_validation=True)

    if fix is not None:
        fixed = fix_dataset(opened, undecodable(decoded))
        fixed.write(Path(fix), _path_of(data), _path_of(val))

    problems = [
        *missing,
        *_without_images(opened, data),
        *undecodable(decoded),
        *find_duplicates(decoded),
    ]
    report = _report(opened, problems, fixed, validation_report)
    if html is not None:
        from .check_page import write_page

        write_page(report, Path(html))
    return report


def _open_both(
    data: DataSource,
    images: str | Path | None,
    val: DataSource | None,
    val_images: str | Path | None,
    attribute: str | None,
) -> tuple[CocoDataset, CocoDataset | None, list[Problem]]:
    """Opens the data and the validation set; a missing validation split is a problem."""
    opened = _open(data, images, attribute)
    if val is None:
        return opened, None, []
    try:
        return opened, _open(val, val_images or images, attribute), []
    except MissingSplit as error:
        suggestion = "correct the path, or remove the split from the list"
        missing = Problem("no validation images", opened.name, str(error), suggestion, True)
        return opened, None, [missing]


def _open(source: DataSource, images: str | Path | None, attribute: str | None) -> CocoDataset:
    if isinstance(source, CocoDataset):
        return source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the report contains them
        if isinstance(source, Mapping):
            return CocoDataset(source, images, on_error="drop")
        from ..formats.load_dataset import load_dataset

        return load_dataset(source, images, attribute=attribute, on_error="drop")


def _path_of(source: DataSource | None) -> str | Path | None:
    """The file that a source was read from."""
    if isinstance(source, str | Path):
        return source
    return source.annotations_path if isinstance(source, CocoDataset) else None


def _without_images(data: CocoDataset, source: DataSource) -> list[Problem]:
    """Reports that none of the images that an annotation file names exists."""
    entries = data.raw["images"]
    if data.image_folder is not None or not entries or isinstance(source, Mapping | CocoDataset):
        return []
    name = entries[0].get("file_name") if isinstance(entries[0], Mapping) else entries[0]
    suggestion = "pass their folder as --images (images=)"
    if isinstance(name, str) and "\\" in name:
        suggestion += "; the file names contain backslashes, write /"
    detail = f"none of {len(entries)} exists, such as {name!r:.80}"
    return [Problem("no image found", data.name, detail, suggestion, True)]


def _report(
    data: CocoDataset,
    image_problems: Sequence[Problem],
    fixed: FixedDataset | None = None,
    validation: CheckReport | None = None,
    is_validation: bool = False,
) -> CheckReport:
    model = maskrcnn_r18_small(data.categories)
    objects = object_table(data)

    # Rare categories and object sizes matter in the data to train on only.
    of_set = find_box_format(data) if is_validation else find_problems(data, objects, model)

    problems = [
        *data.dropped,
        *data.warnings,
        *image_problems,
        *of_set,
        *_swapped_keypoints(data, objects),
    ]
    return CheckReport(
        data,
        tuple(sorted(problems, key=lambda p: not p.is_error)),
        objects,
        model,
        validation,
        fixed,
    )


def _swapped_keypoints(data: CocoDataset, objects: ObjectTable) -> list[Problem]:
    """Objects whose left and right keypoints contradict those of the rest of their category."""
    problems = []
    for label, category in enumerate(data.categories):
        if not category.keypoints:
            continue
        rows = [
            int(row)
            for row in np.flatnonzero(objects.labels == label)
            if any(_raw_keypoints(data, objects, row))
        ]
        values = [_raw_keypoints(data, objects, row) for row in rows]
        keypoints = np.array(values, dtype=np.float64).reshape(-1, len(category.keypoints), 3)

        for n, pairs in find_swapped(keypoints, category.mirrored).items():
            problems.append(
                Problem(
                    "left and right look swapped",
                    objects.names[rows[n]],
                    _pair_names(category, pairs),
                    "check it: left and right are the object's own sides",
                    False,
                    annotation=int(objects.annotation_indices[rows[n]]),
                )
            )
    return problems


def _pair_names(category: Category, pairs: Sequence[int]) -> str:
    names = category.keypoints
    return ", ".join(f"{names[a]} / {names[category.mirrored[a]]}" for a in pairs)


def _raw_keypoints(data: CocoDataset, objects: ObjectTable, row: int) -> Sequence[float]:
    index = objects.annotation_indices[row]
    return data.raw["annotations"][index].get("keypoints") or ()
