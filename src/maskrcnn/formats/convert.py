"""Converts any annotation format to any other.

In:  whatever `load_dataset` reads, with all of its splits.
Out: a new file or folder, and a `ConversionReport`, which lists what the format cannot represent.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast, get_args

from ..annotations.categories import mirrored_keypoints, parse_categories
from ..annotations.coco_dataset import CocoDataset
from ..annotations.coco_types import CocoAnnotation, CocoCategory, CocoContent
from ..annotations.images_option import VAL_IMAGES, images_given_by
from ..annotations.labeled_categories import labeled_ids
from ..annotations.point_labels import with_points
from ..annotations.problems import DataWarning
from ..runtime.counted import counted
from .all_formats import format_named
from .format import Format
from .load_dataset import locate, read_split, recognized_format
from .reading import Annotated, MissingSplit
from .writing import ConversionTarget, ImageFiles, Unrepresentable, by_image, label_of


@dataclass(frozen=True)
class ConversionReport:
    """What `convert_annotations` wrote; `str(report)` is the text that the command prints."""

    out: Path
    """The new file or folder."""
    format: str
    images: int
    """Number of images, with and without annotations."""
    annotations: int
    """Number of annotations that were handed to the format's writer."""
    lost: Unrepresentable
    """What the format cannot represent, with counts and locations; false if nothing was lost."""
    remarks: tuple[str, ...] = ()
    """What is in the source and was read differently than written, or is not used."""

    def __str__(self) -> str:
        lost = f"the format cannot represent:\n{self.lost}" if self.lost else "nothing lost"
        counts = f"{counted(self.images, 'image')}, {counted(self.annotations, 'annotation')}"
        return f"{self.out}: {counts} written as {self.format}; {lost}"


def convert_annotations(
    source: str | Path | CocoDataset,
    out: str | Path,
    format: str,
    *,
    images: str | Path | None = None,
    val: str | Path | CocoDataset | None = None,
    val_images: str | Path | None = None,
    attribute: str | None = None,
    image_files: ImageFiles | None = None,
    simplify: float = 0.0,
    points: int = 0,
    on_error: Literal["raise", "drop"] = "raise",
    progress: bool = False,
) -> ConversionReport:
    """Writes annotations in another format, and reports anything that it cannot represent.

    Args:
        source: a data set, or what `load_dataset` reads. All splits are written unless one is named
            ("data.yaml:val").
        out: the new folder; for coco, via and cvat also a file (.json, .xml). It must not exist.
        format: coco, yolo-seg, yolo-pose, labelme, via, cvat, voc, png (one file per image) or
            png-each (one file per object).
        images: folder of the images; by default where the format says they are.
        val: a second source, written as the split "val".
        val_images: folder of its images; by default `images`.
        attribute: as for `load_dataset`.
        image_files: copy or link the images into `out`, or reference them where they are. By
            default they are copied for yolo, voc and png, which need them beside the annotations,
            and referenced for the others.
        simplify: tolerance in pixels of polygons traced from masks. Larger values give fewer points
            to edit by hand; 0 = exact.
        points: replace each mask by this many labeled points (coco only); 0 = keep the masks.
        on_error: how to handle unusable annotations. "raise" raises one error that lists them all;
            "drop" leaves them out, with a warning.
        progress: show progress bars.

    Returns:
        A report to print: how much was written, and what the format cannot represent (`lost`,
        false if there is nothing).

    Raises:
        FileExistsError: `out` exists.
        ValueError: annotations are unusable (DataError), the format is unknown, or images are
            missing or cannot be referenced.

    Example:
        >>> import maskrcnn as mr
        >>> from maskrcnn.synthetic.scenes import write_scenes
        >>> file = write_scenes("scenes", count=2)
        >>> report = mr.convert_annotations(file, "labelme", "labelme")
        >>> print(report)
        labelme: 2 images, 4 annotations written as labelme; the format cannot represent:
        limbs of skeletons (1): figure
        >>> bool(report.lost)
        True
        >>> len(mr.load_dataset("labelme"))
        2
    """
    check_new(Path(out), format)
    parts = _all_splits(source, images, attribute, on_error)
    if val is not None:
        with images_given_by(VAL_IMAGES):
            val_parts = _all_splits(val, val_images or images, attribute, on_error)
        parts = {"train": _only_split(source, parts), "val": _only_split(val, val_parts)}
    if points:
        if format != "coco":
            raise ValueError(f'points: expected the format "coco", got "{format}"')
        parts = {
            split: replace(part, content=with_points(part.content, points))
            for split, part in parts.items()
        }

    lost = write_all(
        parts, out, format, image_files=image_files, simplify=simplify, progress=progress
    )
    return ConversionReport(
        out=Path(out),
        format=format,
        images=sum(len(part.content["images"]) for part in parts.values()),
        annotations=sum(len(part.content["annotations"]) for part in parts.values()),
        lost=lost,
        remarks=tuple(remark for part in parts.values() for remark in part.remarks),
    )


def _only_split(source: str | Path | CocoDataset, parts: Mapping[str, Annotated]) -> Annotated:
    """The one split of a source that is written beside another source."""
    if len(parts) > 1:
        raise ValueError(
            f"{source}: has the splits {', '.join(parts)}; "
            f"to add a second source, name one of them, as in {source}:{next(iter(parts))}"
        )
    return next(iter(parts.values()))


def _all_splits(
    path: str | Path | CocoDataset,
    images: str | Path | None,
    attribute: str | None,
    on_error: Literal["raise", "drop"],
) -> dict[str, Annotated]:
    """Every split of a source by name, checked; {"": ...} for a source that is not divided.

    A split whose images are missing is left out with a warning, unless there is no other.
    """
    if isinstance(path, CocoDataset):
        content = cast("CocoContent", path.content())
        annotated = Annotated(content, path.image_folder, path.name, remarks=path.remarks())
        return {"": replace(annotated, images_option=path.images_option)}

    source, split = locate(path, attribute)
    known = recognized_format(source, images)
    names = [split] if split else _distinct(known.splits(source)) or [""]
    parts: dict[str, Annotated] = {}
    for name in names:
        try:
            annotated = read_split(known, source, images, name)
        except MissingSplit as error:
            if not parts and name == names[-1]:
                raise
            warnings.warn(f'{error}\nThe split "{name}" was left out.', DataWarning, stacklevel=3)
            continue
        dataset = annotated.dataset(on_error=on_error)
        content = cast("CocoContent", dataset.content())
        parts[name] = Annotated(
            content, dataset.image_folder, annotated.name, remarks=dataset.remarks()
        )
    return parts


def _distinct(splits: Sequence[str]) -> list[str]:
    """The splits without VOC's trainval, the union of two others, if those are there."""
    if {"train", "val"} <= set(splits):
        return [name for name in splits if name != "trainval"]
    return list(splits)


def write_all(
    parts: dict[str, Annotated],
    out: str | Path,
    format: str,
    *,
    image_files: ImageFiles | None = None,
    simplify: float = 0.0,
    progress: bool = False,
) -> Unrepresentable:
    """Writes one or more splits into a new file or folder, which appears once it is complete.

    Args:
        parts: name of the split -> annotations; "" for a source that is not divided.
        out: as for `convert_annotations`, like the other arguments.
        format: name of the format.
        image_files: what happens to the images.
        simplify: by how many pixels traced polygons may be off.
        progress: show progress bars.

    Returns:
        What the format cannot represent.

    Raises:
        FileExistsError: `out` exists.
        ValueError: an argument is invalid, or the format needs the images beside it.
    """
    out = Path(out)
    known = format_named(format)
    image_files = image_files or ("copy" if known.needs_images_beside else "reference")
    _check_options(format, image_files, simplify)
    check_new(out, format)
    is_file = bool(known.suffix) and out.suffix.lower() == known.suffix
    if is_file and (len(parts) > 1 or image_files != "reference"):
        reason = "several splits" if len(parts) > 1 else "the images"
        raise ValueError(f"{out}: expected a folder for {reason}, got a single file")

    lost = Unrepresentable()
    parts = {split: _with_names(annotated) for split, annotated in parts.items()}
    for annotated in parts.values():
        _add_losses(annotated, known, lost)
    if known.one_folder_for_all_splits:
        parts = _united(parts)

    # Everything is written beside `out` first, so that an error leaves nothing behind.
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = out.parent / f".{out.name}.part"
    staging.mkdir()
    one_folder_each = len(parts) > 1 and not known.suffix and not known.one_folder_for_all_splits
    try:
        for split, annotated in parts.items():
            subfolder = split if one_folder_each else ""
            folder = staging / subfolder
            file_name = out.name if is_file else f"{split or 'annotations'}{known.suffix}"
            target = ConversionTarget(
                format=format,
                annotated=annotated,
                folder=folder,
                home=out.parent if is_file else out / subfolder,
                file=folder / file_name,
                split=split,
                image_files=image_files,
                tolerance=simplify,
                progress=progress,
            )
            assert known.write is not None, format  # it has a name to be written by
            known.write(annotated, target, lost)
        if out.is_dir():
            out.rmdir()
        (staging / out.name if is_file else staging).rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return lost


def _check_options(format: str, image_files: str, simplify: float) -> None:
    """Raises an error if an option is invalid for the format."""
    if image_files not in get_args(ImageFiles):
        raise ValueError(
            f"image_files: expected {', '.join(get_args(ImageFiles))}, got {image_files!r}"
        )
    if format_named(format).needs_images_beside and image_files == "reference":
        raise ValueError(
            f"{format}: the images must be beside the annotations; "
            'use image_files="copy" or "link" (--image-files)'
        )
    if simplify < 0:
        raise ValueError(f"simplify: expected 0 or more pixels, got {simplify}")


def _with_names(annotated: Annotated) -> Annotated:
    """The same annotations with a name, as text, for every category."""
    content = annotated.content
    names = {c.id: c.name for c in parse_categories(content["categories"])}
    categories: list[CocoCategory] = [
        {**entry, "name": names[entry["id"]]} for entry in content["categories"]
    ]
    return replace(annotated, content={**content, "categories": categories})


def _add_losses(annotated: Annotated, known: Format, lost: Unrepresentable) -> None:
    """Adds what only COCO can represent, and what writers of other formats do not look at."""
    if known.holds_everything:
        return
    content = annotated.content
    category_ids = [c["id"] for c in content["categories"]]
    for image, raws in by_image(content):
        if labeled_ids(image, {raw["category_id"] for raw in raws}, category_ids) is not None:
            lost.add(
                "lists of the annotated categories (labeled_categories)",
                image["file_name"],
            )
        for raw in raws:
            if "point_coords" in raw:
                lost.add("labeled points", label_of(raw, image))
        for raw in raws if not known.holds_scores else ():
            if "score" in raw:
                lost.add("scores", label_of(raw, image))

    for category in parse_categories(content["categories"]):
        sides = mirrored_keypoints(category.keypoints)
        if known.sides_from_names and category.mirrored != sides:
            kind = "left and right keypoints (flip) that their names do not show"
            lost.add_category(kind, category.name)
        if category.oks_sigmas != replace(category, sigmas=()).oks_sigmas:
            lost.add_category("sigmas of keypoints", category.name)


def _united(parts: dict[str, Annotated]) -> dict[str, Annotated]:
    """The same splits with one list of categories, matched by name, and ids counted from 1.

    For formats that list the categories once.

    Raises:
        ValueError: two splits give a category different keypoints.
    """
    united: dict[str, CocoCategory] = {}
    for split, annotated in parts.items():
        for entry in sorted(annotated.content["categories"], key=lambda c: c["id"]):
            new: CocoCategory = {**entry, "id": len(united) + 1}
            before = _keypoint_names(united.setdefault(entry["name"], new))
            keypoints = _keypoint_names(entry)
            if keypoints != before:
                raise ValueError(
                    f'category "{entry["name"]}": its keypoints in {split} are {keypoints}, '
                    f"in another split {before}; convert the splits separately"
                )

    categories = list(united.values())
    renumbered: dict[str, Annotated] = {}
    for split, annotated in parts.items():
        ids = {c["id"]: united[c["name"]]["id"] for c in annotated.content["categories"]}
        annotations: list[CocoAnnotation] = [
            {**raw, "category_id": ids[raw["category_id"]]}
            for raw in annotated.content["annotations"]
        ]
        content: CocoContent = {
            **annotated.content,
            "annotations": annotations,
            "categories": categories,
        }
        renumbered[split] = replace(annotated, content=content)
    return renumbered


def _keypoint_names(category: CocoCategory) -> str:
    return ", ".join(map(str, category.get("keypoints") or ())) or "none"


def check_new(out: Path, format: str) -> None:
    """Checks that annotations can be written to a new file or folder.

    Raises:
        FileExistsError: `out` exists, and is not an empty folder.
        ValueError: the format is unknown.
    """
    format_named(format)
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise FileExistsError(
            f"{out}: already exists; nothing was written. Choose another name, or remove it"
        )
