"""The image files of a folder: one list of endings, and what is left out because of its ending.

In:  a folder, or a wildcard pattern.
Out: the files that Pillow opens, recognized by ending in any case, and the files left out.

The endings come from Pillow's registry, so that a plugin adds its own (pillow-heif adds .heic).
"""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..runtime.counted import counted

NOT_IMAGES = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
"""Formats in Pillow's registry that are never read as images.

Pillow only recognizes BUFR, GRIB, HDF5, MPEG and WMF. EPS is a program that Ghostscript would run,
and IPTC is a record of captions.
"""
COMPANIONS = frozenset({".csv", ".html", ".json", ".md", ".txt", ".xml", ".yaml", ".yml"})
"""Endings of annotations and texts, which are expected beside images."""
_SHOWN = 3  # names per ending


class ImageWarning(UserWarning):
    """Something in the images that is not used: files left out, frames after the first."""


@dataclass(frozen=True)
class ImageListing:
    """The files of a folder."""

    images: list[Path] = field(default_factory=list)
    """Files with an ending that Pillow opens, sorted."""
    left_out: list[Path] = field(default_factory=list)
    """All other files, broken links, and folders that cannot be read, sorted."""

    def unexpected(self) -> list[Path]:
        """The files left out that are not annotations or texts."""
        return [path for path in self.left_out if path.suffix.lower() not in COMPANIONS]


def image_suffixes() -> frozenset[str]:
    """Returns the endings of all images that Pillow opens, in lower case, with their dots."""
    from PIL import Image

    Image.init()
    listed = {
        suffix
        for suffix, name in Image.registered_extensions().items()
        if name in Image.OPEN and name not in NOT_IMAGES
    }
    return frozenset(listed | {".mpo"})  # opened by the JPEG reader, registered for writing alone


def image_files(folder: str | Path) -> list[Path]:
    """Lists all images under a folder, sorted, recognized by ending.

    All formats that Pillow opens are listed. Hidden files and folders are skipped. Linked folders
    are followed. An `ImageWarning` names files that are left out, except annotations and texts.

    Args:
        folder: a folder, or a pattern such as "photos/*.jpg" or "photos/**/*.png".

    Raises:
        ValueError: the folder contains no images, or nothing matches the pattern.

    Example:
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> import maskrcnn as mr
        >>> Path("photos").mkdir()
        >>> Image.new("RGB", (8, 8)).save("photos/a.png")
        >>> [path.name for path in mr.image_files("photos")]
        ['a.png']
    """
    listing = matching_images(str(folder)) if is_pattern(folder) else list_images(Path(folder))
    if not listing.images:
        raise ValueError(f"{folder}: {no_images(listing)}")
    if unexpected := listing.unexpected():
        warnings.warn(f"{folder}: {describe_left_out(unexpected)}", ImageWarning, stacklevel=2)
    return listing.images


def list_images(folder: Path, deep: bool = True, hidden: bool = False) -> ImageListing:
    """Lists the files of a folder.

    Args:
        folder: to list.
        deep: also list its subfolders; a linked folder is followed once.
        hidden: also list files and folders whose name starts with a dot.
    """
    suffixes = image_suffixes()
    listing = ImageListing()

    for path in _files(folder, deep, listing.left_out):
        if not hidden and any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        is_image = path.suffix.lower() in suffixes and path.is_file()
        (listing.images if is_image else listing.left_out).append(path)

    listing.images.sort()
    listing.left_out.sort()
    return listing


def images_in(folder: Path, deep: bool = True) -> list[Path]:
    """Lists the images of a folder, sorted; with `deep`, also those of its subfolders."""
    return list_images(folder, deep, hidden=True).images


def is_pattern(path: str | Path) -> bool:
    """Whether a path is a wildcard pattern. A file or folder of this name is no pattern."""
    return glob.has_magic(str(path)) and not os.path.lexists(path)


def matching_images(pattern: str) -> ImageListing:
    """Lists what matches a pattern, in which `**` matches any number of folders.

    Folders that match are listed as `list_images` does. Where the pattern does not fix the ending,
    files with other endings than those of images are left out.
    """
    suffixes = image_suffixes()
    ending = os.path.splitext(pattern)[1]
    fixed = bool(ending) and not glob.has_magic(ending)
    listing = ImageListing()
    images: set[Path] = set()
    left_out: set[Path] = set()

    folder = pattern_folder(pattern)
    below = Path(pattern).parts[len(folder.parts) :]
    full = os.path.join(glob.escape(str(folder)) if folder.parts else "", *below)
    for path in map(Path, glob.iglob(full, recursive=True)):
        if path.is_dir():
            inside = list_images(path)
            images.update(inside.images)
            left_out.update(inside.left_out)
        elif path.is_file() and (fixed or path.suffix.lower() in suffixes):
            images.add(path)
        else:
            left_out.add(path)

    listing.images.extend(sorted(images))
    listing.left_out.extend(sorted(left_out - images))
    return listing


def pattern_folder(pattern: str) -> Path:
    """Returns the folder in which a pattern begins: all leading parts that exist as folders.

    They stand for themselves, also where their names look like wildcards (`photos[1]`).
    """
    folder = Path()
    for part in Path(pattern).parts[:-1]:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder


def describe_left_out(paths: Sequence[Path]) -> str:
    """Returns the number of files left out, their endings and some names."""
    counts = Counter(_ending(path) for path in paths)
    parts = []
    for ending, count in counts.most_common():
        names = [path.name for path in paths if _ending(path) == ending]
        more = ", ..." if count > _SHOWN else ""
        parts.append(f"{count} {ending} ({', '.join(names[:_SHOWN])}{more})")

    advice = "; save them as JPEG, PNG or TIFF" if set(counts) & _CONVERTIBLE else ""
    return f"left out {counted(len(paths), 'file')} not read as images: {', '.join(parts)}{advice}"


_CONVERTIBLE = frozenset({".heic", ".heif", ".jxl", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".svg"})


def no_images(listing: ImageListing) -> str:
    """Returns that a folder or pattern has no images, and what it has instead."""
    found = f"; {describe_left_out(listing.left_out)}" if listing.left_out else "; it is empty"
    return f"no images in this folder{found}"


def _ending(path: Path) -> str:
    if path.is_dir():
        return "unreadable folder"
    if not path.exists():
        return "broken link"
    if path.suffix.lower() in image_suffixes():
        return "special file"
    return path.suffix.lower() or "without ending"


def _files(folder: Path, deep: bool, unreadable: list[Path]) -> Iterator[Path]:
    """All entries that are not folders; adds folders that cannot be read to `unreadable`."""
    seen = {os.path.realpath(folder)}

    def note(error: OSError) -> None:
        if Path(error.filename) != folder:
            unreadable.append(Path(error.filename))
        elif not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    for parent, folders, names in os.walk(folder, onerror=note, followlinks=True):
        yield from (Path(parent, name) for name in names)
        new = []
        for name in folders if deep else ():
            real = os.path.realpath(os.path.join(parent, name))
            if real not in seen:
                seen.add(real)
                new.append(name)
        folders[:] = new
