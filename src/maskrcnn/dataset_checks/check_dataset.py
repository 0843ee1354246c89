"""`check`: everything that is wrong with annotated images, with file, annotation and cure.

In: a data set of any known format, perhaps its validation part. Out: a `Report`; on request the mended annotations and an HTML page.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..annotations.coco_dataset import CocoDataset
from ..annotations.problems import DataWarning, Problem, describe, listed
from ..config import ModelConfig
from ..formats.reading import MissingSplit
from ..presets import maskrcnn_r18_small
from .fix_dataset import Fixed, fixed
from .image_files import broken, copies, decode, leaks, listed_twice
from .left_right import suspicious
from .whole_dataset import Objects, findings, objects_of, other_form

Source = str | Path | Mapping[str, Any] | CocoDataset


@dataclass(frozen=True)
class Report:
    """What a check found."""

    data: CocoDataset
    """What can be used of the data set."""
    problems: tuple[Problem, ...]
    """Everything, the harmful ones first. Harmful: unusable as it is, or it spoils the result; the others are notes."""
    objects: Objects = field(repr=False)
    model: ModelConfig = field(repr=False)
    """The model whose anchors and number of detections the objects were compared with."""
    validation: Report | None = None
    fixed: Fixed | None = None
    """What was mended, if asked for."""

    @property
    def is_error(self) -> tuple[Problem, ...]:
        """Those that are more than notes, validation included."""
        return tuple(
            p
            for p in (*self.problems, *(self.validation.problems if self.validation else ()))
            if p.is_error
        )

    @property
    def counts(self) -> str:
        """What there is, in a line."""
        problems = sum(p.is_error for p in self.problems)
        notes = len(self.problems) - problems
        return (
            f"{self.data.name}: {len(self.data.raw['images']):,} images, {len(self.data.raw['annotations']):,} annotations, "
            f"{len(self.data.categories)} categor{'y' if len(self.data.categories) == 1 else 'ies'}; "
            f"{problems:,} problem{'s' * (problems != 1)}, {notes:,} note{'s' * (notes != 1)}"
        )

    def describe(self, most: int | None = 20) -> str:
        """Everything as text: each kind with its count, its cure and the first places (None: all)."""
        lines = [self.counts]
        for title, is_error in (
            ("problems", True),
            ("notes (mended while reading, or worth a look)", False),
        ):
            found = [p for p in self.problems if p.is_error == is_error]
            lines += [f" {title}", *listed(found, most)] if found else []
        if self.fixed is not None:
            lines.append(describe("mended", self.fixed.done, "change", most))
            is_error = [p for p in self.fixed.left if p.is_error]
            lines.append(describe("left to mend by hand", is_error, most=most))
        return "\n".join(lines + ([self.validation.describe(most)] if self.validation else []))

    def __str__(self) -> str:
        return self.describe()


def check_dataset(
    data: Source,
    images: str | Path | None = None,
    *,
    validation: Source | None = None,
    validation_images: str | Path | None = None,
    decode_images: bool = True,
    fix: str | Path | None = None,
    html: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Looks for everything that is wrong with annotated images.

    Every annotation is read, every image's header compared, every image decoded to the end (once: what is found out about an unchanged file is
    kept in the cache folder), and images are compared with each other, and with those of the validation.

    Args:
        data: an annotation file or folder of any known format (see `load_dataset`), COCO's dict, or a data set opened with on_error="drop".
        images: folder of the images; by default where the annotations have them. Of COCO's dict without a folder only the annotations are checked.
        validation: the data to judge by, checked as well, and compared.
        validation_images: folder of its images; by default `images`.
        decode_images: False reads headers only.
        fix: writes a COCO file with everything mended that has one right answer; `Report.fixed` says what.
        html: writes a page with counts, sizes, problems and drawn samples.
        progress: show bars.

    Raises:
        DataError: the annotations cannot be read at all, or `fix` would overwrite them.
    """
    opened = _opened(data, images)
    judged, lost = None, []
    try:
        judged = None if validation is None else _opened(validation, validation_images or images)
    except MissingSplit as error:
        lost = [
            Problem(
                "no validation images",
                opened.name,
                str(error),
                "mend the path, or take the split out of the list",
                True,
            )
        ]
    decoded = {
        id(d): decode(d, progress) if decode_images else []
        for d in (opened, judged)
        if d is not None
    }
    judged_report = None
    if judged is not None:
        leaked = (
            leaks(decoded[id(opened)], decoded[id(judged)])
            if decode_images
            else listed_twice(opened, judged)
        )
        judged_report = _report(
            judged,
            [*broken(decoded[id(judged)]), *copies(decoded[id(judged)]), *leaked],
            to_learn=False,
        )
    mended = None
    if fix is not None:
        mended = fixed(opened, broken(decoded[id(opened)]))
        mended.write(
            Path(fix),
            *(
                s if isinstance(s, str | Path) else getattr(s, "annotations_path", None)
                for s in (data, validation)
            ),
        )
    own = [
        *lost,
        *_without_images(opened, data),
        *broken(decoded[id(opened)]),
        *copies(decoded[id(opened)]),
    ]
    report = _report(opened, own, mended, judged_report)
    if html is not None:
        from .check_page import write_page

        write_page(report, Path(html))
    return report


def _opened(source: Source, images: str | Path | None) -> CocoDataset:
    if isinstance(source, CocoDataset):
        return source
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the report has it all
        if isinstance(source, Mapping):
            return CocoDataset(source, images, on_error="drop")
        from ..formats.load_dataset import load_dataset

        return load_dataset(source, images, on_error="drop")


def _without_images(data: CocoDataset, source: Source) -> list[Problem]:
    """That none of the images was found: of all the files that a file of annotations names, not one."""
    if (
        data.image_folder is not None
        or not data.raw["images"]
        or isinstance(source, Mapping | CocoDataset)
    ):
        return []
    first = data.raw["images"][0]
    name = first.get("file_name") if isinstance(first, Mapping) else first
    slashes = (
        "; the names have backslashes, write /" if isinstance(name, str) and "\\" in name else ""
    )
    suggestion = f"name their folder as --images (images=){slashes}"
    return [
        Problem(
            "no image found",
            data.name,
            f"none of {len(data.raw['images'])}, such as {name!r:.80}",
            suggestion,
            True,
        )
    ]


def _report(
    data: CocoDataset,
    more: Sequence[Problem],
    mended: Fixed | None = None,
    validation: Report | None = None,
    to_learn: bool = True,
) -> Report:
    model = maskrcnn_r18_small(data.categories)
    objects = objects_of(data)
    found = findings(data, objects, model) if to_learn else other_form(data)
    problems = [*data.dropped, *data.warnings, *more, *found, *_swapped_sides(data, objects)]
    return Report(
        data,
        tuple(sorted(problems, key=lambda p: not p.is_error)),
        objects,
        model,
        validation,
        mended,
    )


def _swapped_sides(data: CocoDataset, objects: Objects) -> list[Problem]:
    """Objects whose left and right keypoints contradict those of the others of their category."""
    problems = []
    suggestion = "look at it: are left and right the object's own sides, all of them?"
    for label, category in enumerate(data.categories):
        if not category.keypoints:
            continue
        rows = [
            row
            for row in np.flatnonzero(objects.labels == label)
            if any(_keypoints(data, objects, row))
        ]
        keypoints = np.array(
            [_keypoints(data, objects, row) for row in rows], dtype=np.float64
        ).reshape(-1, len(category.keypoints), 3)
        for n, names in suspicious(keypoints, category.mirrored).items():
            pairs = ", ".join(
                f"{category.keypoints[a]} / {category.keypoints[category.mirrored[a]]}"
                for a in names
            )
            place = int(objects.places[rows[n]])
            problems.append(
                Problem(
                    "left and right look swapped",
                    objects.names[rows[n]],
                    pairs,
                    suggestion,
                    False,
                    annotation=place,
                )
            )
    return problems


def _keypoints(data: CocoDataset, objects: Objects, row: int) -> Sequence[float]:
    return data.raw["annotations"][objects.places[row]].get("keypoints") or ()
