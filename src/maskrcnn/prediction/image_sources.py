"""What a `Predictor` is given, as sources: each image with the id and the name of its results.

In:  one image or several, of any kind that `image_input` reads.
Out: `ImageSource`s; a folder or a pattern, which is not an image, is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..images.image_files import is_pattern
from ..images.remote import is_url, refuse_other_schemes, url_name
from .image_input import ImageInput, check_input


@dataclass(frozen=True)
class ImageSource:
    """An image to be read, with the id and the name that its predictions carry."""

    image: ImageInput
    image_id: int | None = None
    file_name: str | None = None


def one_source(image: Any) -> ImageSource:
    """The source of one image; a file gets the id 1 and its own name.

    Raises:
        ValueError: it is a folder or a pattern.
        TypeError: it is not an image.
    """
    if isinstance(image, ImageSource):
        return image
    check_input(image, "image")
    if isinstance(image, str | Path):
        refuse_other_schemes(image)
    if isinstance(image, str | Path) and (Path(image).is_dir() or _is_pattern(image)):
        raise ValueError(several_expected(image))
    name = _name(image)
    return ImageSource(image) if name is None else ImageSource(image, 1, name)


def _name(image: Any) -> str | None:
    if isinstance(image, str) and is_url(image):
        return url_name(image)
    return Path(image).name if isinstance(image, str | Path) else None


def _is_pattern(path: str | Path) -> bool:
    return not is_url(path) and is_pattern(path)


def several_expected(path: str | Path) -> str:
    """What to do with a path in place of images."""
    is_folder = Path(path).is_dir()
    if not is_folder and not _is_pattern(path):
        return f"{path}: expected several images, got one path; pass a list"
    return (
        f"{path} is a {'folder' if is_folder else 'pattern'}, expected images. "
        f'Pass the list mr.image_files("{path}"), or write result files with mr.predict_files.'
    )


def several_frames(shown: Sequence[ImageSource], count: int) -> str:
    """What is not used of images with several frames."""
    names = ", ".join(str(source.file_name or "the image") for source in shown)
    if count == 1:
        return f"{names}: several frames, the first is used"
    more = ", ..." if count > len(shown) else ""
    return f"{count:,} images have several frames, the first of each is used: {names}{more}"


def image_sources(images: Iterable[ImageInput | ImageSource]) -> Iterator[ImageSource]:
    """The sources of several images, whose ids count from 1.

    Raises:
        TypeError: an entry is not an image; the message has its index.
    """
    for number, image in enumerate(images, start=1):
        if isinstance(image, ImageSource):
            yield image
        else:
            check_input(image, f"images[{number - 1}]")
            yield ImageSource(image, number, _name(image))
