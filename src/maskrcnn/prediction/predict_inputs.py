"""What `maskrcnn predict` is given, as a list of images with unique names.

In:  files, folders, wildcard patterns, http(s) URLs, and "-" for standard input.
Out: a list of images, each with the name that its results carry, and the files left out.

A file of a name wins over the pattern of that name, so that `[1].jpg` is a file where it exists.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from ..images.image_files import (
    ImageListing,
    images_in,
    is_pattern,
    list_images,
    matching_images,
    no_images,
    pattern_folder,
)
from ..images.open_image import ImageError, read_bounded
from ..images.remote import is_url, refuse_other_schemes, url_name
from ..runtime.counted import counted

STDIN = ("-", "/dev/stdin")
"""Inputs that stand for standard input."""


@dataclass(frozen=True)
class NamedImage:
    """An image to predict."""

    image: Path | str | bytes
    """A file, a URL, or the bytes of a file."""
    name: str
    """Its unique name, with "/" between folders."""

    @property
    def path(self) -> Path | None:
        """The file; None for a URL and standard input."""
        return self.image if isinstance(self.image, Path) else None


@dataclass
class PredictInputs:
    """The images to predict, and what is left out."""

    images: list[NamedImage] = field(default_factory=list)
    """Sorted by file; URLs and standard input follow in their order."""
    left_out: list[Path] = field(default_factory=list)
    """Files in folders and among the matches of patterns that are not images by their ending."""


def find_inputs(inputs: Sequence[str | Path], out: Path) -> PredictInputs:
    """Lists all images that are given.

    Names are relative to the input folder of the file, or, where such names collide, to the folder
    that all files have in common.

    Args:
        inputs: files, folders, patterns, URLs, and "-".
        out: folder of the results; images below it are not read.

    Raises:
        FileNotFoundError: an input does not exist.
        ValueError: there are no images.
        ImageError: standard input cannot be read, or a URL has another scheme.
    """
    files: dict[Path, str] = {}
    others: list[NamedImage] = []
    left_out: list[Path] = []

    for given in inputs:
        if isinstance(given, str) and is_url(given):
            others.append(NamedImage(given, url_name(given)))
        elif str(given) in STDIN:
            others.append(NamedImage(_standard_input(), "stdin"))
        else:
            refuse_other_schemes(given)
            listing, base = _listed(given, out)
            left_out += listing.left_out
            for path in listing.images:
                files[path] = path.name if base is None else path.relative_to(base).as_posix()

    unique = {path.resolve(): NamedImage(path, name) for path, name in files.items()}
    images = sorted(unique.values(), key=lambda image: image.path or Path())
    if not images and not others:
        given_names = ", ".join(map(str, inputs)) or "no inputs given"
        raise ValueError(f"no images to predict: {given_names}")
    if len({image.name for image in images}) < len(images):
        images = _named_from_common_folder(images)
    return PredictInputs(images + _apart(others, images), left_out)


def _listed(given: str | Path, out: Path) -> tuple[ImageListing, Path | None]:
    """The images of one input, and the folder that their names are relative to.

    Raises:
        FileNotFoundError: nothing has this name, or nothing matches this pattern.
        ValueError: a folder has no images.
    """
    path = Path(given)
    if is_pattern(path):
        listing = matching_images(str(given))
        base = pattern_folder(str(given))
        if not listing.images and not listing.left_out:
            raise FileNotFoundError(f"{given}: nothing matches this pattern{_images_of(base)}")
    elif path.is_dir():
        listing = list_images(path)
        base = path
    elif os.path.lexists(path):  # a broken link is reported when it is read
        return ImageListing([path]), None
    else:
        raise FileNotFoundError(f"{path}: file or folder not found")

    if not listing.images:
        raise ValueError(f"{given}: {no_images(listing)}")
    if _inside(out, base):
        images = [image for image in listing.images if not _inside(image, out)]
        left_out = [file for file in listing.left_out if not _inside(file, out)]
        listing = ImageListing(images, left_out)
    return listing, base


def _images_of(folder: Path) -> str:
    """How many images are in the folder of a pattern that nothing matches."""
    images = images_in(folder, deep=False) if folder.is_dir() else []
    if not images:
        return ""
    return f"; {folder} holds {counted(len(images), 'image')}, such as {images[0].name}"


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path is strictly below a folder."""
    return folder.resolve() in path.resolve().parents


def _named_from_common_folder(images: Sequence[NamedImage]) -> list[NamedImage]:
    paths = [image.path.absolute() for image in images if image.path is not None]
    root = Path(os.path.commonpath([path.parent for path in paths]))
    return [
        replace(image, name=path.relative_to(root).as_posix())
        for image, path in zip(images, paths, strict=True)
    ]


def _apart(others: Sequence[NamedImage], images: Sequence[NamedImage]) -> list[NamedImage]:
    """URLs and standard input with names of their own.

    Where names collide, a URL also has its host in its name, and numbers make the rest unique.
    """
    counts = Counter(image.name for image in (*images, *others))
    taken = {image.name for image in images}
    named: list[NamedImage] = []

    for one in others:
        name = one.name
        if counts[name] > 1 and isinstance(one.image, str):
            host = urlsplit(one.image).hostname or "host"
            plain = "".join(c if c.isalnum() or c in ".-" else "_" for c in host).strip(".")
            name = f"{plain or 'host'}/{name}"
        number = 2
        unique = name
        while unique in taken:
            unique = f"{number}-{name}".replace("/", "-")
            number += 1
        taken.add(unique)
        named.append(replace(one, name=unique))
    return named


def _standard_input() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None or sys.stdin.isatty():
        raise ImageError("-: expected an image on standard input, got a terminal")
    try:
        data = read_bounded(stream)
    except ImageError as error:
        raise ImageError(f"-: {error}") from None
    if not data:
        raise ImageError("-: expected an image on standard input, got nothing")
    return data
