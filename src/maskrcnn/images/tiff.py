"""TIFF files beyond Pillow: deep colors, planes one after the other, pages that are channels.

In:  a TIFF or BigTIFF file.
Out: its pages, and the samples of one page, [H, W, C], as they are stored.

Pillow keeps the upper 8 bits of a 16-bit color, and refuses floating-point colors. A compressed
strip, however, holds plain bytes. They are read by presenting the strips to Pillow as a gray 8-bit
TIFF that is as wide as a row has bytes; the samples are then a view of these bytes.

Source: TIFF 6.0, Adobe Photoshop TIFF technical notes (predictor 3), BigTIFF.
"""

from __future__ import annotations

import io
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from jaxtyping import Shaped, UInt8

from .open_image import ImageError, check_size

MAX_PAGES = 100_000
"""Pages counted in one file."""
_MAX_VALUES = 1 << 24  # of one tag
_BYTES_PER_PIXEL = 8  # of the pixel limit

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _DESCRIPTION, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS = 266, 270, 273, 274, 277, 278
_STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 279, 284, 317, 322, 323
_TILES, _TILE_BYTES, _SUB_PAGES, _EXTRA, _FORMAT = 324, 325, 330, 338, 339

_TYPES = {1: "B", 2: "s", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
_REDUCED = 1  # bit of _SUBFILE: a smaller copy of another page
_TRANSPARENCY = 4  # bit of _SUBFILE: a mask of another page
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits"}
_COMPRESSIONS |= {34925: "LZMA", 50000: "Zstandard"}
_KINDS = {1: "u", 2: "i", 3: "f"}


@dataclass(frozen=True)
class TiffPage:
    """One image of a TIFF file."""

    tags: Mapping[int, Any]
    """Values by tag: a tuple of integers, or bytes."""
    big_endian: bool
    """Byte order of the file."""
    is_big_endian_bigtiff: bool
    """Whether the file has 64-bit offsets in that order, which Pillow does not know."""

    def first(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        values = self.tags.get(tag)
        return int(values[0]) if values else default

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) as stored."""
        return self.first(_HEIGHT, 0), self.first(_WIDTH, 0)

    @property
    def orientation(self) -> int:
        """EXIF orientation, 1 to 8."""
        return self.first(_ORIENTATION, 1)

    @property
    def samples(self) -> int:
        """Values per pixel."""
        return self.first(_SAMPLES, 1)

    @property
    def bits(self) -> int:
        """Bits per value."""
        return max(self.tags.get(_BITS) or (1,))

    @property
    def is_planar(self) -> bool:
        """Whether the channels are stored one after the other."""
        return self.samples > 1 and self.first(_PLANAR, 1) == 2

    @property
    def is_beyond_pillow(self) -> bool:
        """Whether Pillow would lose bits of this page, misread it or refuse it.

        Pillow keeps the upper 8 bits of colors, and swaps the bytes of compressed big-endian gray
        values once too often.
        """
        photometric = self.first(_PHOTOMETRIC, 1)
        is_unsigned = self.first(_FORMAT, 1) == 1
        if photometric not in (0, 1, 2) or self.bits not in (8, 16, 32, 64):
            return False  # palettes, masks, inks, YCbCr; 1, 4 and 12 bits
        if self.bits > 8 or not is_unsigned:
            return photometric > 0 or is_unsigned
        if self.first(_COMPRESSION, 1) not in _COMPRESSIONS:
            return False  # JPEG, WebP
        has_gray_channels = photometric < 2 and self.samples > 1
        return self.is_planar or self.is_big_endian_bigtiff or has_gray_channels


@dataclass(frozen=True)
class TiffFile:
    """The pages of a TIFF file."""

    first: TiffPage
    """The first page."""
    channels: tuple[TiffPage, ...] | None
    """The pages of red, green and blue, where the file says that its pages are channels."""
    count: int
    """Number of pages, without smaller copies and masks of other pages."""


def read_tiff(file: IO[bytes]) -> TiffFile | None:
    """Reads the pages of a TIFF file; None if the file is not a TIFF.

    Raises:
        ImageError: a tag is broken, or the file holds only the preview of a camera's raw data.
    """
    file.seek(0)
    start = file.read(16)
    if start[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    reader = _Reader(file, start)
    if not reader.next:
        raise ImageError("this TIFF file has no pages")

    seen = {reader.next}
    first = reader.page()
    if first.first(_SUBFILE, 0) & _REDUCED and _SUB_PAGES in first.tags:
        raise ImageError("this is camera raw data with a preview; develop it to a TIFF or JPEG")

    # of the further pages, only those that are channels are read completely
    step = _channel_step(_text(first)) if first.samples == 1 else 0
    wanted = (step, 2 * step) if step else ()
    channels = [first]
    count = 1
    while reader.next and reader.next not in seen and len(seen) < MAX_PAGES:
        seen.add(reader.next)
        page = reader.page(None if count in wanted else _SUBFILE)
        if not page.first(_SUBFILE, 0) & (_REDUCED | _TRANSPARENCY):
            if count in wanted and page.size == first.size:
                channels.append(page)
            count += 1

    is_color = len(channels) == 3
    stored = re.search(r"^images=(\d{1,9})$", _text(first), re.MULTILINE)
    count = max(count, int(stored[1]) if stored else 1)
    return TiffFile(first, tuple(channels) if is_color else None, count)


def read_samples(file: IO[bytes], page: TiffPage, limit: int) -> Shaped[np.ndarray, "H W C"]:
    """Reads the channels of a page: gray (C = 1), or red, green and blue.

    Raises:
        ImageError: more pixels than the limit, a compression or layout that is not supported, or
            broken data.
    """
    _check_layout(page, limit)
    if page.is_planar:
        planes = [_read_plane(file, page, k) for k in range(page.samples)]
        values = np.concatenate(planes, axis=2)
    else:
        values = _read_plane(file, page, 0)
    values = values[:, :, : 3 if page.samples >= 3 else 1]
    return ~values if page.first(_PHOTOMETRIC, 1) == 0 else values  # 0 is white


def _check_layout(page: TiffPage, limit: int) -> None:
    height, width = page.size
    check_size((width, height), limit)
    size = height * width * page.samples * page.bits // 8
    if size > limit * _BYTES_PER_PIXEL:
        check_size((width, -(-size // (_BYTES_PER_PIXEL * max(width, 1)))), limit)

    has_alpha = len(page.tags.get(_EXTRA) or ()) == page.samples - 1
    is_color = page.first(_PHOTOMETRIC, 1) == 2 and page.samples >= 3
    if not (is_color or page.samples in (1, 3) or (page.samples == 2 and has_alpha)):
        raise ImageError(
            f"expected 1 or 3 channels, got a TIFF with {page.samples}; "
            "save the channels to use as RGB"
        )
    compression = page.first(_COMPRESSION, 1)
    if compression not in _COMPRESSIONS or page.first(_FILL_ORDER, 1) != 1:
        raise ImageError(
            f"a TIFF with {page.bits} bits per value and compression {compression}; "
            "save it without compression, or with LZW or Deflate"
        )
    if page.first(_FORMAT, 1) not in _KINDS or len(set(page.tags.get(_BITS) or ())) > 1:
        raise ImageError("a TIFF whose channels have different or unknown types; save it as RGB")


def _read_plane(file: IO[bytes], page: TiffPage, plane: int) -> np.ndarray:
    """The values of one plane, or of all channels where they are not planar: [H, W, C]."""
    height, width = page.size
    channels = 1 if page.is_planar else page.samples
    item = page.bits // 8
    is_tiled = _TILE_WIDTH in page.tags
    if min(height, width) < 1:
        raise ImageError(f"expected a size above 0, got {width} x {height}")

    # a row of the data, and the columns that were compressed together
    if is_tiled:
        segment = page.first(_TILE_WIDTH, 0)
        rows = page.first(_TILE_HEIGHT, 0)
    else:
        segment = width
        rows = min(page.first(_ROWS, height), height)
    if segment < 1 or rows < 1:
        raise ImageError("broken TIFF: strips or tiles without size")
    padded = -(-width // segment) * segment
    full_height = -(-height // rows) * rows if is_tiled else height
    if padded * full_height > 4 * max(width * height, 1 << 20):
        raise ImageError("broken TIFF: tiles much larger than the image")

    count = -(-width // segment) * -(-height // rows)
    blocks = _blocks(file, page, plane * count, count)
    row = padded * channels * item
    compression = page.first(_COMPRESSION, 1)
    if compression == 1 and not is_tiled and sum(map(len, blocks)) == height * row:
        data = np.frombuffer(b"".join(blocks), np.uint8).reshape(height, row)
    else:
        tile = (segment * channels * item, rows) if is_tiled else (0, rows)
        content = _gray_tiff(blocks, (row, full_height), tile, compression)
        blocks.clear()  # a large image is in memory often enough
        data = _decoded(content)
    return _values(data, page, segment, channels)[:height, :width]


def _blocks(file: IO[bytes], page: TiffPage, first: int, count: int) -> list[bytes]:
    """The bytes of some strips or tiles."""
    is_tiled = _TILE_WIDTH in page.tags
    offsets = page.tags.get(_TILES if is_tiled else _STRIPS) or ()
    sizes = page.tags.get(_TILE_BYTES if is_tiled else _STRIP_BYTES) or ()
    if min(len(offsets), len(sizes)) < first + count:
        raise ImageError(
            f"broken TIFF: number of strips or tiles: expected {first + count}, got {len(sizes)}"
        )
    sizes = sizes[first : first + count]
    length = file.seek(0, 2)
    if sum(sizes) > length:
        raise ImageError("broken TIFF: the strips or tiles are longer than the file")

    blocks = []
    for offset, size in zip(offsets[first : first + count], sizes, strict=True):
        file.seek(min(offset, length))
        block = file.read(size)
        if len(block) < size:
            raise ImageError("the image file is truncated")
        blocks.append(block)
    return blocks


def _gray_tiff(
    blocks: list[bytes], size: tuple[int, int], block: tuple[int, int], compression: int
) -> bytes:
    """A gray 8-bit TIFF file made of these compressed strips or tiles."""
    layout = {_WIDTH: [size[0]], _HEIGHT: [size[1]], _BITS: [8], _COMPRESSION: [compression]}
    layout |= {_PHOTOMETRIC: [1], _SAMPLES: [1]}
    sizes = [len(data) for data in blocks]
    starts = (8 + np.cumsum([0, *sizes[:-1]])).tolist()
    if block[0]:
        layout |= {_TILE_WIDTH: [block[0]], _TILE_HEIGHT: [block[1]]}
        layout |= {_TILES: starts, _TILE_BYTES: sizes}
    else:
        layout |= {_STRIPS: starts, _ROWS: [block[1]], _STRIP_BYTES: sizes}

    directory = 8 + sum(sizes)
    values_at = directory + 2 + 12 * len(layout) + 4
    if values_at > 0xFFFFFFFF:
        raise ImageError("the strips of this TIFF file have more than 4 GB")
    entries = b""
    values = b""
    for tag, numbers in sorted(layout.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        where = packed
        if len(numbers) > 1:
            where = struct.pack("<I", values_at + len(values))
            values += packed
        entries += struct.pack("<HHI", tag, 4, len(numbers)) + where

    header = b"II*\0" + struct.pack("<I", directory)
    end = struct.pack("<H", len(layout)) + entries + bytes(4) + values
    return b"".join([header, *blocks, end])


def _decoded(content: bytes) -> UInt8[np.ndarray, "H W"]:
    from PIL.TiffImagePlugin import TiffImageFile

    with TiffImageFile(io.BytesIO(content), "") as image:
        return np.array(image)


def _values(
    data: UInt8[np.ndarray, "H B"], page: TiffPage, segment: int, channels: int
) -> np.ndarray:
    """Bytes as values, with the predictor undone: [H, W, C]."""
    item = page.bits // 8
    kind = _KINDS[page.first(_FORMAT, 1)]
    order = ">" if page.big_endian else "<"
    predictor = page.first(_PREDICTOR, 1)
    height = len(data)
    rows = data.reshape(height, -1, segment * channels * item)

    if predictor == 3:
        sums = rows.reshape(height, rows.shape[1], -1, channels)
        sums = np.cumsum(sums, axis=2, dtype=np.uint8)
        # the most significant bytes of all values of a row come first
        planes = sums.reshape(height, rows.shape[1], item, segment * channels)
        rows = np.ascontiguousarray(planes.swapaxes(2, 3))
        order = ">"
    values = rows.reshape(-1).view(f"{order}{kind}{item}")
    values = values.astype(values.dtype.newbyteorder("="), copy=False)

    if predictor == 2:
        whole = values.view(f"u{item}").reshape(height, -1, segment, channels)
        values = np.cumsum(whole, axis=2, dtype=whole.dtype).view(values.dtype)
    elif predictor not in (1, 3):
        raise ImageError(f"broken TIFF: expected predictor 1, 2 or 3, got {predictor}")
    return values.reshape(height, -1, channels)


class _Reader:
    """Reads the directories of a file; every length is checked against that of the file."""

    def __init__(self, file: IO[bytes], start: bytes) -> None:
        self.file = file
        self.order = "<" if start[:2] == b"II" else ">"
        self.big = b"+" in start[2:4]
        self.length = file.seek(0, 2)
        self.walked = 0  # bytes of all directories so far
        self.next = 0
        if len(start) >= (16 if self.big else 8):
            form, at = ("Q", 8) if self.big else ("I", 4)
            self.next = struct.unpack_from(self.order + form, start, at)[0]

    def page(self, only: int | None = None) -> TiffPage:
        """Reads the tags at `next`, or one of them, and moves on to the next directory."""
        size = 20 if self.big else 12
        self.file.seek(min(self.next, self.length))
        (count,) = self._unpack("Q" if self.big else "H")
        self.walked += count * size
        if self.walked > self.length:
            raise ImageError("broken TIFF: its directories are longer than the file")
        entries = self._read(count * size)

        # some writers leave out the position of the next directory
        following = self.file.read(8 if self.big else 4)
        whole = len(following) == (8 if self.big else 4)
        form = self.order + ("Q" if self.big else "I")
        self.next = struct.unpack(form, following)[0] if whole else 0

        tags: dict[int, Any] = {}
        for at in range(0, len(entries), size):
            (tag,) = struct.unpack_from(self.order + "H", entries, at)
            if tag == only or (only is None and tag in _USED):
                tags[tag] = self._value(entries[at : at + size])
        is_big_endian = self.order == ">"
        return TiffPage(tags, is_big_endian, is_big_endian and self.big)

    def _value(self, entry: bytes) -> Any:
        form = self.order + ("HHQ" if self.big else "HHI")
        tag, kind, count = struct.unpack_from(form, entry)
        code = _TYPES.get(kind)
        if code is None:
            return ()
        size = count * struct.calcsize("<" + code)
        if count > _MAX_VALUES or size > self.length:
            raise ImageError(f"broken TIFF: tag {tag} has {count:,} values")

        inline = entry[12:] if self.big else entry[8:]
        if size <= len(inline):
            data = inline[:size]
        else:
            offset = struct.unpack(self.order + ("Q" if self.big else "I"), inline)[0]
            self.file.seek(min(offset, self.length))
            data = self._read(size)
        return data if code == "s" else struct.unpack(f"{self.order}{count}{code}", data)

    def _read(self, size: int) -> bytes:
        data = self.file.read(size)
        if len(data) < size:
            raise ImageError("the image file is truncated")
        return data

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(self.order + form, self._read(struct.calcsize("<" + form)))


_USED = frozenset(
    {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _DESCRIPTION}
    | {_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR, _TILE_WIDTH}
    | {_TILE_HEIGHT, _TILES, _TILE_BYTES, _SUB_PAGES, _EXTRA, _FORMAT}
)


def _text(page: TiffPage) -> str:
    return bytes(page.tags.get(_DESCRIPTION) or b"").decode("utf-8", errors="replace").rstrip("\0")


def _channel_step(description: str) -> int:
    """The distance in pages between three channels; 0 where the file does not have three channels.

    ImageJ, OME and tifffile say so in the description. No XML is parsed.
    """
    if description.startswith("ImageJ="):
        return int(re.search(r"^channels=3$", description, re.MULTILINE) is not None)
    if "<OME" in description:
        return _ome_step(description)
    if description.startswith("{"):
        return _tifffile_step(description)
    return 0


def _ome_step(description: str) -> int:
    sizes = dict(re.findall(r'\bSize([ZCT])="(\d{1,9})"', description))
    order = re.search(r'\bDimensionOrder="XY([ZCT]{3})"', description)
    if sizes.get("C") != "3" or order is None:
        return 0
    step = 1
    for axis in order[1].split("C")[0]:
        step *= int(sizes.get(axis, "1"))
    return step


def _tifffile_step(description: str) -> int:
    try:
        content = json.loads(description)
        shape = content["shape"]
        axes = content["axes"]
        return int(axes[-3:] == "CYX" and shape[-3] == 3)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return 0
