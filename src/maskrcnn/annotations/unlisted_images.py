"""Counts the images beside the listed ones that the annotations do not list: `unlisted_images`.

In:  the names that an annotation file lists, the folder of the images, and the annotation file.
Out: one note, or none.

Images of other splits do not count: every annotation file beside this one is searched for the names
that are left. These files are not parsed, because they can be large.
"""

from __future__ import annotations

import html
import json
import mmap
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from ..images.image_files import image_suffixes
from .image_names import ImageFinder
from .notes import Note, Notes

_SUFFIXES = (".json", ".xml", ".csv")
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # Label Studio's prefix of uploaded files
# Searched from its end: a file of polygons has far more quotation marks than names of images.
_QUOTED_END = re.compile(rb'(\.[A-Za-z0-9]{2,9})"')
_LONGEST = 1000  # bytes of a name
# One of these is in every annotation file, and in no file of predictions.
_MARKS = (b'"annotations"', b'"regions"', b'"shapes"', b"<annotation", b"region_attributes")


def unlisted_images(names: Iterable[str], folder: Path, annotations: Path) -> tuple[Note, ...]:
    """Returns a note on the images that lie beside the listed ones and are not listed.

    The folders of the listed images are searched, up to the one that all have in common, and one
    level below. If the annotation file lies in the common folder or below it, other things may lie
    there too, so that only folders with listed images are searched. Names that lead out of `folder`
    are ignored.

    Args:
        names: of the listed images, as the file has them.
        folder: of the images.
        annotations: the annotation file, or the folder of such files.
    """
    finder = ImageFinder(folder)
    listed = _located(names, finder)
    unlisted: set[str] = set()
    for start, levels in _searched(listed, folder, annotations):
        unlisted |= {os.path.normpath(start / name) for name in _images(folder / start, levels)}
    missing = listed - unlisted
    unlisted -= listed
    if unlisted:
        _remove(unlisted, missing, finder)
    for file in _annotation_files(annotations):
        if unlisted:
            _remove(unlisted, (name for name in _named_in(file) if name not in listed), finder)

    notes = Notes()
    for name in sorted(unlisted):
        what = "images in the image folder that the annotations do not list"
        notes.add(what, "not part of this data set", Path(name).as_posix())
    return notes.all()


def _located(names: Iterable[str], finder: ImageFinder) -> set[str]:
    """The names; those with folders that do not exist as the finder knows them."""
    exists: dict[str, bool] = {}
    located: set[str] = set()
    for name in names:
        parent = os.path.dirname(name)
        if parent not in exists:
            exists[parent] = os.path.isdir(finder.folder / parent)  # False for a name too long
        found = [] if exists[parent] else finder.find(name)
        located.update(map(os.path.normpath, found or [name]))
    return located


def _searched(listed: set[str], folder: Path, annotations: Path) -> list[tuple[Path, int]]:
    """The folders to search, relative to `folder`, each with the levels below it."""
    parents = {Path(name).parent for name in listed}
    parents = {p for p in parents if not p.is_absolute() and ".." not in p.parts}
    parents = {p for p in parents if os.path.isdir(folder / p)}
    if not parents:
        return []
    common = Path(os.path.commonpath(parents))
    home = annotations if annotations.is_dir() else annotations.parent
    if home.resolve().is_relative_to((folder / common).resolve()):
        return [(parent, 0) for parent in parents]
    deepest = max(len(parent.parts) for parent in parents) - len(common.parts)
    return [(common, deepest + 1)]


def _images(folder: Path, levels: int) -> Iterator[str]:
    """The images in a folder and `levels` levels below it, relative to it."""
    suffixes = image_suffixes()
    for entry in _entries(folder):
        if os.path.splitext(entry.name)[1].lower() in suffixes and os.path.isfile(entry):
            yield entry.name
        elif levels and os.path.isdir(entry):
            below = _images(folder / entry.name, levels - 1)
            yield from (os.path.join(entry.name, name) for name in below)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []


def _remove(unlisted: set[str], names: Iterable[str], finder: ImageFinder) -> None:
    """Removes the images that the names refer to, however they are written."""
    endings = {name.rpartition(".")[2].lower() for name in unlisted}
    for name in names:
        if name in unlisted:
            unlisted.discard(name)
        elif name.rpartition(".")[2].lower() in endings:
            base = name.replace("\\", "/").rpartition("/")[2]
            found = finder.find(name) or finder.find(_UPLOADED.sub("", base))
            unlisted.difference_update(map(os.path.normpath, found))


def _annotation_files(annotations: Path) -> Iterator[Path]:
    """The annotation files of this data set: the given one, those beside it, and other splits."""
    home = annotations if annotations.is_dir() else annotations.parent
    for folder in (home, home / "annotations"):
        paths = (Path(entry.path) for entry in _entries(folder))
        yield from sorted(path for path in paths if path.suffix.lower() in _SUFFIXES)
    if annotations.is_file():  # train/via.json and val/via.json
        beside = (entry for entry in _entries(home.resolve().parent) if os.path.isdir(entry))
        yield from sorted(Path(entry.path, annotations.name) for entry in beside)


def _named_in(file: Path) -> Iterator[str]:
    """The names of images in an annotation file: what is quoted, and the first cells of a table."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
            if not any(m.find(mark) >= 0 for mark in _MARKS):
                return
            yield from _quoted(m)

            if file.suffix.lower() == ".csv":
                endings = "|".join(re.escape(suffix) for suffix in sorted(image_suffixes()))
                cells = re.compile(rb'^([^",\r\n]{1,1000}(?:%s)),' % endings.encode(), re.M | re.I)
                yield from (match[1].decode(errors="replace") for match in cells.finditer(m))
    except (OSError, ValueError):  # not a file, no permission, or empty
        return


def _quoted(content: mmap.mmap) -> Iterator[str]:
    """The names of images between quotation marks."""
    suffixes = image_suffixes()
    for match in _QUOTED_END.finditer(content):
        if match[1].decode().lower() in suffixes:
            start = content.rfind(b'"', max(0, match.start() - _LONGEST), match.start()) + 1
            written = content[start : match.end() - 1]
            if start and not re.search(rb"[\r\n]", written):
                yield _plain(written)


def _plain(written: bytes) -> str:
    """A name without the escapes of JSON and XML."""
    text = written.decode(errors="replace")
    if "\\" in text:
        with suppress(ValueError):
            text = json.loads(f'"{text}"')
    return html.unescape(text)
