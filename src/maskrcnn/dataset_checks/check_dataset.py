"""`check_dataset`: every problem of annotated images, with file, annotation and suggestion.

In: a data set of any known format, perhaps with its validation set.
Out: a `CheckReport`; on request a fixed COCO file and an HTML page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import JsonObject
from ..annotations.images_option import VAL_IMAGES, images_given_by
from ..annotations.problems import DataError, DataWarning, Problem
from ..config import Category
from ..formats.load_dataset import load_dataset, locate
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
from .fix_dataset import fix_dataset, refuse_inputs
from .left_right import find_swapped
from .training_refusals import find_refusals, find_split_refusal
from .whole_dataset import ObjectTable, find_box_format, find_problems, object_table

DataSource = str | Path | JsonObject | CocoDataset


def check_dataset(
    data: DataSource,
    images: str | Path | None = None,
    *,
    val: DataSource | Literal[False] | None = None,
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
        val: data to validate on; checked too, with the categories of `data` as in training, and
            compared with it. None: training would split some images off. False: it would not
            validate.
        val_images: its image folder; by default `images`.
        attribute: the attribute that holds the category, as for `load_dataset`.
        decode_images: False reads image headers only.
        fix: COCO file to write, in which every problem with an unambiguous fix is fixed;
            `CheckReport.fixed` lists the changes. The validation data are fixed too, into a second
            file: "fixed_val.json" beside "fixed.json".
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
    for option, path in (("--fix", fix), ("--html", html)):
        if path is not None and Path(path).is_dir():
            raise DataError(f"{path}: expected a file name for {option}, got a folder")
    opened = _open(data, images, attribute)
    files = _files_to_write(fix, data, val)
    decoded = decode(opened, progress) if decode_images else []
    problems = [
        *_without_images(opened, data),
        *undecodable(decoded),
        *find_duplicates(decoded),
        *find_refusals(opened),
    ]

    validation = None
    if val is None:
        problems += find_split_refusal(opened, decoded)
    elif val is not False:
        with images_given_by(VAL_IMAGES):
            other, refused = _open_validation(val, val_images or images, attribute, opened)
        problems += refused
        if other is not None:
            own = decode(other, progress) if decode_images else []
            leaks = find_leaks(decoded, own) if own else find_shared_files(opened, other)
            found = [
                *_without_images(other, val),
                *undecodable(own),
                *find_duplicates(own),
                *leaks,
            ]
            validation = _report(
                other, found, undecodable(own), fix=files is not None, is_validation=True
            )

    report = _report(
        opened, problems, undecodable(decoded), fix=files is not None, validation=validation
    )
    report = _with_files(report, files)
    if html is not None:
        from .check_page import write_page

        write_page(report, Path(html))
    return report


def _files_to_write(
    fix: str | Path | None, data: DataSource, val: DataSource | Literal[False] | None
) -> tuple[Path, Path] | None:
    """The fixed files of the data and of the validation data.

    Raises:
        DataError: one of them is an input.
    """
    if fix is None:
        return None
    path = Path(fix)
    files = (path, path.with_name(f"{path.stem}_val{path.suffix}"))
    refuse_inputs(files, [_path_of(data), _path_of(val)])
    return files


def _with_files(report: CheckReport, files: tuple[Path, Path] | None) -> CheckReport:
    """Writes what was fixed; returns the report with the names of the files."""
    if files is None or report.fixed is None:
        return report
    validation = report.validation
    report.fixed.write(files[0])
    if validation is not None and validation.fixed is not None:
        validation.fixed.write(files[1])
        validation = replace(validation, fixed_file=files[1])
    return replace(report, fixed_file=files[0], validation=validation)


def _open_validation(
    source: DataSource, images: str | Path | None, attribute: str | None, data: CocoDataset
) -> tuple[CocoDataset | None, list[Problem]]:
    """Opens the data to validate on with the categories of the training data, as training does.

    Where that is impossible, the problem says why, and the data are opened with their own.
    """
    try:
        return _open(source, images, attribute, data.categories), []
    except MissingSplit as error:
        suggestion = "correct the path, or remove the split from the list"
        missing = Problem("no validation images", data.name, str(error), suggestion, True)
        return None, [missing]
    except DataError as error:
        own = _open(source, images, attribute)  # raises the same error if the file is at fault
        suggestion = "training refuses it; use the same names in both"
        detail = str(error).removeprefix(f"{own.name}: ")
        differ = Problem("categories do not match", own.name, detail, suggestion, True)
        return own, [differ]


def _open(
    source: DataSource,
    images: str | Path | None,
    attribute: str | None,
    categories: Sequence[Category] | None = None,
) -> CocoDataset:
    if isinstance(source, CocoDataset):
        return source.with_categories(categories) if categories else source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the report contains them
        if isinstance(source, Mapping):
            return CocoDataset(source, images, categories=categories, on_error="drop")
        return load_dataset(
            source, images, categories=categories, attribute=attribute, on_error="drop"
        )


def _path_of(source: DataSource | Literal[False] | None) -> str | Path | None:
    """The file that a source was read from."""
    if isinstance(source, str | Path):
        return locate(source)[0].path
    return source.annotations_path if isinstance(source, CocoDataset) else None


def _without_images(data: CocoDataset, source: DataSource) -> list[Problem]:
    """Reports that none of the images that an annotation file names exists."""
    entries = data.raw["images"]
    if data.image_folder is not None or not entries or isinstance(source, Mapping | CocoDataset):
        return []
    name = entries[0].get("file_name") if isinstance(entries[0], Mapping) else entries[0]
    suggestion = f"pass their folder as {data.images_option}"
    if isinstance(name, str) and "\\" in name:
        suggestion += "; the file names contain backslashes, write /"
    detail = f"none of {len(entries)} exists, such as {name!r:.80}"
    return [Problem("no image found", data.name, detail, suggestion, True)]


def _report(
    data: CocoDataset,
    found: Sequence[Problem],
    not_decoded: Sequence[Problem],
    *,
    fix: bool,
    validation: CheckReport | None = None,
    is_validation: bool = False,
) -> CheckReport:
    """Collects the problems of one data set, and fixes its annotations if there are errors."""
    model = maskrcnn_r18_small(data.categories)
    objects = object_table(data)

    # Rare categories and object sizes matter in the data to train on only.
    of_set = find_box_format(data) if is_validation else find_problems(data, objects, model)

    raised = {(p.kind, p.where) for p in found}  # a warning of the reader can be an error here
    problems = [
        *data.dropped,
        *(p for p in data.warnings if (p.kind, p.where) not in raised),
        *found,
        *of_set,
        *_swapped_keypoints(data, objects),
    ]
    return CheckReport(
        data,
        tuple(sorted(problems, key=lambda p: not p.is_error)),
        objects,
        model,
        validation,
        fix_dataset(data, not_decoded) if fix or data.dropped else None,
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
