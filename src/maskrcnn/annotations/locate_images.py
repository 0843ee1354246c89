"""Gives every image entry the name of its file: `locate_images(entries, folder)`.

In:  the list `images` of a file, and the folder of the images.
Out: the entries with names that the folder has, and a note of how many were written differently
     (image_names.py). A name that fits several files, and a file that two names fit, are errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .coco_types import Json
from .image_names import ImageFinder
from .images_option import images_option
from .notes import Note, Notes
from .problems import DataError, Problem


@dataclass(frozen=True)
class LocatedImages:
    """Image entries whose names are those of their files."""

    images: list[Json]
    notes: tuple[Note, ...]
    problems: tuple[Problem, ...]


def check_image_folder(images: str | Path | None) -> None:
    """Checks the folder that the user gave.

    Raises:
        DataError: it does not exist, or is a file.
    """
    if images is None or Path(images).is_dir():
        return
    what = "expected a folder, got a file" if Path(images).exists() else "folder not found"
    raise DataError(f"{images}: {what}; {images_option()} must be the folder of the images")


def locate_images(entries: list[Json], folder: Path | None) -> LocatedImages:
    """Returns image entries with the names of their files.

    Args:
        entries: the list `images`; a name without a file stays as it is.
        folder: of the images; None leaves all names.
    """
    if folder is None:
        return LocatedImages(entries, (), ())
    finder = ImageFinder(folder)
    notes = Notes()
    problems: list[Problem] = []
    images: list[Json] = []
    by_file: dict[str, list[int]] = {}

    for index, raw in enumerate(entries):
        name = raw.get("file_name") if isinstance(raw, Mapping) else None
        found = finder.find(name) if isinstance(name, str) and name else []
        if len(found) > 1:
            detail = f"{name} could be {' or '.join(found)}"
            problems.append(_ambiguous(index, detail, "write the name of the file exactly"))
        if len(found) == 1:
            by_file.setdefault(found[0], []).append(index)
        if len(found) == 1 and found[0] != name:
            what = "image names written differently"
            notes.add(what, "found", f"{name} as {found[0]}", is_rewritten=True)
            raw = {**raw, "file_name": found[0]}
        images.append(raw)

    for file, indices in by_file.items():
        names = list(dict.fromkeys(entries[i]["file_name"] for i in indices))
        if len(names) > 1:
            detail = f"{file} is the only file for {' and '.join(names[:4])}"
            suggestion = "add the missing image, or correct the names"
            problems += [_ambiguous(index, detail, suggestion) for index in indices]
    return LocatedImages(images, notes.all(), tuple(problems))


def _ambiguous(index: int, detail: str, suggestion: str) -> Problem:
    where = f"images[{index}]"
    return Problem("ambiguous image name", where, detail, suggestion, True, image=index)
