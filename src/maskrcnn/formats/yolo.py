"""YOLO (Ultralytics): data.yaml, a folder of images per split, and a text file of labels per image.

Each line of a text file is an object, in fractions of the image's width and height:

    segmentation    class x y x y ...
    detection       class cx cy w h
    pose            class cx cy w h x y [v] ...

A line of eight numbers is a polygon of four points, which is also what an oriented box is. A folder
with images/ and labels/ takes its names from its own data.yaml, or from one above it.

This module finds the images and their labels; yolo_settings.py reads data.yaml, yolo_lines.py the
lines, and yolo_writing.py writes.

Source: docs.ultralytics.com, "Instance segmentation datasets" and "Pose estimation datasets".
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..annotations.problems import DataError
from ..images.image_files import images_in, list_images, no_images
from ..runtime.counted import counted
from .annotation_source import AnnotationSource, with_slashes
from .bounded_files import read_text
from .format import Format
from .reading import Annotated, DatasetBuilder, MissingSplit, report_left_out, tracked
from .yolo_lines import YoloLines
from .yolo_settings import (
    SPLITS,
    YoloSettings,
    class_keypoints,
    class_names,
    find_yaml,
    load_settings,
    report_names,
    settings_above,
)
from .yolo_writing import write_yolo

_LONGEST_LINE = 20_000_000  # characters; more words than that would fill the memory
_NOT_LABELS = ("classes", "labels", "readme", "license", "train", "val", "valid", "test")
"""Beginnings of the names of text files that are no labels."""


def recognize(source: AnnotationSource, images: str | Path | None = None) -> bool:
    """Whether there is a data.yaml, or labels beside images."""
    if find_yaml(source) is not None:
        return True
    return source.first("labels/**/*.txt") is not None and (source.path / "images").is_dir()


def splits(source: AnnotationSource) -> list[str]:
    """The splits that data.yaml lists."""
    yaml = find_yaml(source)
    return [] if yaml is None else [split for split in SPLITS if load_settings(yaml).get(split)]


def read(source: AnnotationSource, images: str | Path | None, split: str) -> Annotated:
    """Reads one split; without a data.yaml, all images.

    Raises:
        MissingSplit: the split has no images.
    """
    yaml = find_yaml(source)
    settings = load_settings(yaml) if yaml is not None else settings_above(source)
    root = _root(source, yaml, settings)
    builder = DatasetBuilder(f"{source.name}:{split}" if split else source.name, root)
    if yaml is None:
        found = _list_folder(root / "images")
    else:
        _report_path(settings, yaml, root, builder)
        found = _find_images(settings.get(split), root, yaml, images, builder)
    if not found.images:
        raise MissingSplit(f"{builder.name}: {found.why_empty()}")

    names = class_names(settings, source)
    for index, name in enumerate(names):
        keypoints, flip = class_keypoints(settings, index, yaml or source.path)
        builder.category(name, keypoints, flip=flip)
    report_names(settings, names, builder)
    _report_labels(found, builder)
    report_left_out(builder, found.folders, deep=True)

    dimensions = int(settings["kpt_shape"][1]) if settings.get("kpt_shape") else 0
    lines = YoloLines(builder, names, dimensions)
    for image_path in tracked(found.images, "reading labels"):
        _read_image(image_path, root, builder, lines)
    return builder.build()


def _read_image(image: Path, root: Path, builder: DatasetBuilder, lines: YoloLines) -> None:
    """Adds an image and the objects of its text file, if it has one."""
    labels = _labels(image)
    image_id = builder.image(Path(os.path.relpath(image, root)).as_posix())
    if image_id is None or not labels.is_file():
        return
    try:
        text = read_text(labels)
    except DataError as error:
        builder.problem("broken file", labels.name, str(error), "restore the file")
        return

    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{labels.name}, line {number}"
        if len(line) > _LONGEST_LINE:
            detail = f"expected at most {_LONGEST_LINE:,} characters, got {len(line):,}"
            builder.problem("line too long", where, detail, "simplify the polygon")
        elif line.strip():
            lines.add(image_id, line.split(), where)


def _root(source: AnnotationSource, yaml: Path | None, settings: YoloSettings) -> Path:
    """The folder that the splits are relative to: `path` of data.yaml, or the file's own."""
    if yaml is None:
        return source.path.resolve()
    given = yaml.parent / str(settings.get("path") or "")
    return (given if given.is_dir() else yaml.parent).resolve()


def _report_path(settings: YoloSettings, yaml: Path, root: Path, builder: DatasetBuilder) -> None:
    """Reports a `path` that does not exist; Ultralytics has its own folder of data sets for it."""
    given = str(settings.get("path") or "")
    if not (yaml.parent / given).is_dir():
        builder.problem(
            "path of data.yaml not found",
            builder.name,
            f"path is {given[:100]}",
            f"{root}, the folder of data.yaml, is used instead",
            False,
        )


@dataclass
class _FoundImages:
    """The images of a split, and where they were looked for."""

    images: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    """Those that were listed; empty where text files name the images."""
    searched: list[str] = field(default_factory=list)
    """For each folder and text file what it holds instead of images."""

    def why_empty(self) -> str:
        """Why there are no images."""
        return "; ".join(self.searched) or "no images"


def _list_folder(folder: Path) -> _FoundImages:
    """All images of a folder."""
    images = [Path(os.path.normpath(path)) for path in images_in(folder)]
    searched = [] if images else [f"{folder}: {no_images(list_images(folder))}"]
    return _FoundImages(images, [folder], searched)


def _report_labels(found: _FoundImages, builder: DatasetBuilder) -> None:
    """Reports images without a text file, text files without an image, and shared text files.

    Images without a text file are examples without objects. If no image has one, the labels are
    somewhere else, and that is an error.
    """
    expected = Counter(_labels(image) for image in found.images)
    missing = [labels for labels in expected if not labels.is_file()]
    shared = [labels for labels, count in expected.items() if count > 1 and labels.is_file()]
    extra = _extra_labels(found, expected)
    if len(missing) == len(expected):
        builder.problem(
            "no labels",
            builder.name,
            f"none of {counted(len(found.images), 'image')} has a text file; "
            f"the first would be {missing[0]}",
            "name the label folder like the image folder, with labels/ instead of images/",
        )
    elif missing:
        builder.problem(
            "images without a text file",
            builder.name,
            f"{len(missing)} of {len(found.images)}; the first would be {missing[0]}",
            "they are used as examples without objects",
            False,
        )

    if extra:
        builder.problem(
            "text files without an image",
            builder.name,
            f"{len(extra):,}, such as {', '.join(path.name for path in extra[:3])}",
            "their objects are left out; add the images, or delete the files",
            False,
        )
    for labels in shared:
        builder.problem(
            "images that share a text file",
            labels.name,
            f"{expected[labels]} images have this name with different endings",
            "each gets the same objects; give each image a name of its own",
            False,
        )


def _extra_labels(found: _FoundImages, expected: Iterable[Path]) -> list[Path]:
    """The text files in the label folders that belong to no image."""
    folders = {_labels(folder / "any.png").parent for folder in found.folders}
    texts = {path for folder in folders for path in folder.rglob("*.txt") if path.is_file()}
    texts = {Path(os.path.normpath(path)) for path in texts} - set(expected)
    return sorted(path for path in texts if not path.name.lower().startswith(_NOT_LABELS))


def _find_images(
    entry: Any,
    root: Path,
    yaml: Path,
    images: str | Path | None,
    builder: DatasetBuilder,
) -> _FoundImages:
    """The images of a split: folders, text files of paths, or lists of either.

    Raises:
        MissingSplit: a folder or file does not exist.
    """
    bases = [*([Path(images)] if images is not None else []), root, yaml.parent.resolve()]
    found = _FoundImages()
    for given in map(str, entry if isinstance(entry, list) else [entry]):
        location = _location(given, bases, yaml, builder)
        part = _list_folder(location) if location.is_dir() else _listed(location, root)
        found.images += part.images
        found.folders += part.folders
        found.searched += part.searched
    return found


def _listed(file: Path, root: Path) -> _FoundImages:
    """The images that a text file lists, one path a line."""
    folders = (file.parent, root)
    found = _FoundImages()
    for line in read_text(file).splitlines():
        if name := line.strip():
            name = with_slashes(name, folders)
            existing = (f / name for f in folders if (f / name).is_file())
            found.images.append(Path(os.path.normpath(next(existing, root / name))))
    if not found.images:
        found.searched.append(f"{file}: lists no images")
    return found


def _location(given: str, bases: Sequence[Path], yaml: Path, builder: DatasetBuilder) -> Path:
    """The folder or file that a split's entry means."""
    entry = given
    if not any((base / given).exists() for base in bases):
        given = given.replace("\\", "/")
    # Roboflow writes ../train/images for train/images.
    candidates = [base / part for base in bases for part in (given, given.removeprefix("../"))]
    location = next((path for path in candidates if path.exists()), None)
    if location is None:
        searched = ", ".join(map(str, dict.fromkeys(candidates)))
        raise MissingSplit(
            f"{yaml.name}: no folder or file {given}; searched {searched}; "
            f"correct path: or {given!r}"
        )

    if location not in [base / entry for base in bases]:
        handled = "found where the tools that write them mean"
        builder.notes.add("entries of data.yaml that are other paths", handled, entry)
    return location


def _labels(image: Path) -> Path:
    """The labels of an image: in labels/ for the last images/ of its path, else beside it."""
    parts = list(image.parts)
    if "images" in parts[:-1]:
        parts[len(parts) - 2 - parts[-2::-1].index("images")] = "labels"
    return Path(*parts).with_suffix(".txt")


YOLO = Format(
    name="yolo",
    description=(
        "YOLO: a data.yaml with names and train/val, or its folder, "
        "or a folder with images/ and labels/*.txt"
    ),
    written_as=("yolo-seg", "yolo-pose"),
    recognize=recognize,
    splits=splits,
    read=read,
    write=write_yolo,
    needs_images_beside=True,
    one_folder_for_all_splits=True,
    holds_scores=False,
)
