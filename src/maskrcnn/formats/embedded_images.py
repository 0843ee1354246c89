"""Images that an annotation file contains as base64 text: written to the cache folder once."""

from __future__ import annotations

import base64
import binascii
import hashlib
from pathlib import Path

from ..images.read import ImageError, image_size
from ..runtime.atomic_files import replacing
from ..runtime.cache import cache_folder

MOST_TEXT = 400 * 2**20
"""Bound of the characters of one image, which are 300 MiB of pixels as they are stored."""


def folder_of_extracted(source: Path) -> Path:
    """The folder in the cache for the images of a file or folder."""
    key = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / "embedded_images" / key


def extract(text: str, path: Path) -> None:
    """Writes an image that is given as base64 text, unless the file has the same content.

    Raises:
        ValueError: the text is not base64, too long or not an image, or cannot be written.
    """
    if len(text) > MOST_TEXT:
        raise ValueError(
            f"has {len(text):,} characters; at most {MOST_TEXT:,} are read; "
            "save the image as a file beside the annotations"
        )

    try:
        data = base64.b64decode(text.partition("base64,")[2] or text)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"is not base64: {error}") from None

    try:
        if not path.is_file() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                part.write_bytes(data)
        image_size(path)
    except ImageError as error:
        path.unlink()
        raise ValueError(f"holds no image: {error}") from None
    except OSError as error:
        raise ValueError(
            f"cannot be written to the cache folder {path.parent}: {error.strerror}; "
            "set MASKRCNN_HOME to another folder"
        ) from None
