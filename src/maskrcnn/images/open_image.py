"""Opens image files safely: the pixel limit, the formats that are read, errors that name the file.

In:  a file, bytes, or a binary file object.
Out: a seekable binary file, and the Pillow image in it, not yet decoded.

Pillow's own limit of pixels is one setting for the whole process. Here each call has its own.
"""

from __future__ import annotations

import copy
import io
import os
import stat
import struct
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol, Self, runtime_checkable

from PIL import Image, ImageFile

from .file_kind import BYTES, FileKind, Use, begun_image, kind_of
from .image_files import NOT_IMAGES

MAX_PIXELS = 500_000_000
"""Largest width x height that is decoded, unless the caller or MASKRCNN_MAX_PIXELS says otherwise.

Decoding takes up to 12 bytes per pixel with 8 bits per color, and up to 32 with 16.
"""
MAX_PIXELS_VARIABLE = "MASKRCNN_MAX_PIXELS"
RAISE_THE_LIMIT = f"if you trust the file, set {MAX_PIXELS_VARIABLE} to its number of pixels"
"""What to do about a size above the limit, in any command."""
_HEADER = 512  # first bytes, by which Pillow's plug-ins know their formats
_SHORT = 32  # bytes of a text that may be an image which is cut off, such as b"BM"
MAX_BYTES = 256 << 20
"""Largest number of bytes read from a URL, a pipe, or a file object that cannot seek."""


class ImageError(ValueError):
    """An image cannot be read; the message names the image, the reason, and what to do.

    Args:
        reason: names the image, and says what is wrong with it.
        advice: what to do, as far as it holds for every caller. A caller with settings of its own
            for the case replaces it: see `advised`.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.advice = advice

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason

    def about(self, name: str) -> Self:
        """The same error with the name of the image, which then begins the reason."""
        if self.reason.startswith(name):
            return self
        named = copy.copy(self)
        named.reason = f"{name}: {self.reason}"
        return named

    def advised(self, advice: str) -> Self:
        """The same error with the advice of a caller."""
        other = copy.copy(self)
        other.advice = advice
        return other


class TooManyPixelsError(ImageError):
    """An image has more pixels than the limit."""

    def __init__(self, reason: str, advice: str = "", *, pixels: int = 0) -> None:
        super().__init__(reason, advice)
        self.pixels = pixels
        """How many it has."""


class UnusualValuesError(ImageError):
    """Values of an image are outside the range of their type, and no other range is given."""


class OtherFileError(ImageError):
    """A file is not an image."""

    def __init__(self, reason: str, advice: str = "", *, use: Use | None = None) -> None:
        super().__init__(reason, advice)
        self.use: Use | None = use
        """What this package reads such a file as."""

    @classmethod
    def of(cls, kind: FileKind) -> Self:
        """The error of a file of a known kind."""
        reason = f"cannot be read as an image: it is {kind.name}"
        return cls(reason, kind.advice, use=kind.use)


class BrokenImageError(ImageError):
    """A file begins like an image, and its header is broken or cut off."""

    @classmethod
    def of(cls, format: str) -> Self:
        """The error of a file that begins like one of a format."""
        reason = f"it begins like a file of type {format}, but is broken or truncated"
        return cls(f"cannot be read as an image: {reason}", "copy or download it again")


@runtime_checkable
class BinaryFile(Protocol):
    """A file object opened in binary mode."""

    def read(self, size: int = ..., /) -> bytes:
        """Reads up to `size` bytes."""
        ...


def pixel_limit(given: int | None) -> int:
    """Returns the given limit, else that of MASKRCNN_MAX_PIXELS, else `MAX_PIXELS`.

    Raises:
        ValueError: the limit is not a whole number above 0.
    """
    text = os.environ.get(MAX_PIXELS_VARIABLE) if given is None else given
    if text is None or text == "":
        return MAX_PIXELS
    try:
        limit = int(float(text))
    except (ValueError, OverflowError):
        limit = 0
    if limit < 1:
        name = MAX_PIXELS_VARIABLE if given is None else "max_pixels"
        raise ValueError(f"{name}: expected a number of pixels above 0, got {text!r}")
    return limit


def check_size(size: tuple[int, int], limit: int) -> None:
    """Checks (width, height) against the pixel limit.

    Raises:
        TooManyPixelsError: the image has more pixels.
    """
    width, height = size
    if width * height > limit:
        raise TooManyPixelsError(
            f"{width:,} x {height:,} pixels are more than the limit of {limit:,}",
            f"if you trust the file, set {MAX_PIXELS_VARIABLE}={width * height}",
            pixels=width * height,
        )


@contextmanager
def image_file(source: str | Path | bytes | BinaryFile, name: str) -> Generator[IO[bytes]]:
    """Yields a seekable binary file; every failure in the block becomes an `ImageError`.

    The error begins with the name. Pipes, and file objects that cannot seek, are read into memory.
    """
    try:
        if isinstance(source, str | Path):
            with _opened(Path(source)) as file:
                yield file
        elif isinstance(source, bytes):
            yield io.BytesIO(source)
        else:
            yield _seekable(source)

    except ImageError as error:
        raise error.about(name) from None
    except FileNotFoundError:
        reason = f"broken link to {os.readlink(name)}" if os.path.islink(name) else "file not found"
        raise ImageError(f"{name}: {reason}") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read this file") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode this image") from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: Pillow refuses its size; save it as PNG or TIFF") from error
    # Pillow's decoders raise whatever the broken bytes lead to: OSError, SyntaxError, struct.error,
    # zlib.error, IndexError, ...
    except Exception as error:
        reason = error or type(error).__name__
        raise ImageError(f"{name}: cannot be read as an image: {reason}") from error


@contextmanager
def open_image(path: str | Path, max_pixels: int | None = None) -> Generator[ImageFile.ImageFile]:
    """Yields the Pillow image of a file, not decoded yet.

    Raises:
        ImageError: the file cannot be opened or decoded, or has more pixels than the limit.
    """
    with image_file(path, str(path)) as file, open_pillow(file, pixel_limit(max_pixels)) as image:
        yield image


def open_pillow(file: IO[bytes], limit: int) -> ImageFile.ImageFile:
    """Opens an image of any format that Pillow decodes itself; reads only its header.

    Raises:
        ImageError: the format is unknown, the file is broken, or the image has more pixels than
            the limit.
    """
    file.seek(0)
    start = file.read(_HEADER)
    if not start:
        raise ImageError("cannot be read as an image: the file is empty")

    begun = ""
    for load_plugins in (Image.preinit, Image.init):
        load_plugins()
        for name in Image.ID:
            if name in NOT_IMAGES or not _accepts(name, start):
                continue
            file.seek(0)
            try:
                # without a name, Pillow does not map the file, which may shrink while it is read
                image = Image.OPEN[name][0](file, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                has_signature = Image.OPEN[name][1] is not None
                begun = begun or (name if has_signature else "")
                continue
            check_size(image.size, limit)
            return image

    file.seek(0)
    raise _not_opened(file.read(BYTES), begun)


def _not_opened(start: bytes, begun: str) -> ImageError:
    """The error of a file that no plug-in of Pillow opens.

    Args:
        start: its first bytes.
        begun: the first format that recognized them, and could not open the file; "" = none.
    """
    if format := begun_image(start):
        return BrokenImageError.of(format)
    kind = kind_of(start)
    if begun and (kind is None or (kind.is_text and len(start) < _SHORT)):
        return BrokenImageError.of(begun)
    if kind is not None:
        return OtherFileError.of(kind)
    return OtherFileError(
        "cannot be read as an image: unknown format", "convert it to PNG, JPEG or TIFF"
    )


def source_name(source: Any) -> str:
    """The name of an image in messages."""
    if isinstance(source, str | Path):
        return str(source)
    if isinstance(source, bytes):
        return "the given bytes"
    named = getattr(source, "name", None)
    return named if isinstance(named, str) else "the given file object"


def read_bounded(file: BinaryFile) -> bytes:
    """Reads a stream to its end.

    Raises:
        ImageError: it is longer than `MAX_BYTES`, or it is not binary.
    """
    data = bytearray()
    while chunk := file.read(1 << 20):
        if not isinstance(chunk, bytes):
            raise ImageError('expected a file opened in binary mode ("rb"), got one in text mode')
        data += chunk
        if len(data) > MAX_BYTES:
            raise ImageError(f"more than {MAX_BYTES >> 20} MB; save it to a file and pass its name")
    return bytes(data)


@contextmanager
def _opened(path: Path) -> Generator[IO[bytes]]:
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise ImageError("expected an image, got a folder")
    with path.open("rb") as file:
        yield file if stat.S_ISREG(mode) else io.BytesIO(read_bounded(file))


def _seekable(file: BinaryFile) -> IO[bytes]:
    try:
        can_seek = isinstance(file, io.IOBase) and file.seekable()
    except ValueError:
        raise ImageError("expected an open file, got a closed one") from None
    if can_seek and not isinstance(file, io.TextIOBase):
        return file  # ty: ignore[invalid-explicit-return]
    return io.BytesIO(read_bounded(file))


def _accepts(name: str, start: bytes) -> bool:
    """Whether a plug-in of Pillow takes a file with these first bytes for one of its own."""
    accept = Image.OPEN[name][1]
    if accept is None:
        return True
    try:
        result = accept(start)
    except (SyntaxError, IndexError, TypeError, struct.error):  # fewer bytes than it looks at
        return False
    return bool(result) and not isinstance(result, str)
