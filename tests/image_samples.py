"""Images of every kind for the tests, made without the readers: red ones, deep PNG and TIFF, bare headers."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ENDINGS = ("jpg", "jfif", "avif", "jp2", "webp", "mpo", "jpe", "JPG", "png")


RED = (200, 10, 10)


def red(path: Path, size: tuple[int, int] = (40, 30), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, RED).save(path, **options)  # ty: ignore[invalid-argument-type]
    return path


def is_red(pixels: np.ndarray) -> bool:
    return bool((abs(pixels.astype(int) - RED) <= 6).all())  # lossy formats


def every_ending(folder: Path) -> None:
    for ending in ENDINGS:
        red(folder / f"{ending}.{ending}", format="MPO" if ending == "mpo" else None)


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG: gray, gray and alpha, RGB or RGBA."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    rows = values.astype(">u2").reshape(height, -1)
    pixels = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    return png([*chunks, (b"IDAT", zlib.compress(pixels)), (b"IEND", b"")])


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for name, data in chunks:
        check = struct.pack(">I", zlib.crc32(name + data))
        parts.append(struct.pack(">I", len(data)) + name + data + check)
    return b"".join(parts)


def tiff(
    pages: list[np.ndarray],
    planar: bool = False,
    compression: int = 1,
    order: str = "<",
    predictor: int = 1,
    tags: dict[int, tuple[int, list[int] | bytes]] | None = None,
) -> bytes:
    """A TIFF of one strip per plane; a page is [H, W] or [H, W, C]."""
    content = bytearray(struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 0))
    pointer = 4
    for page in pages:
        channels = 1 if page.ndim == 2 else page.shape[2]
        values = page.reshape(*page.shape[:2], channels)
        planes = np.moveaxis(values, 2, 0) if planar else values[None]
        strips = []
        for plane in planes:
            if predictor == 2:
                plane = np.diff(plane, axis=1, prepend=np.zeros_like(plane[:, :1]))
            data = plane.astype(plane.dtype.newbyteorder(order)).tobytes()
            strips.append(zlib.compress(data) if compression == 8 else data)
        starts = []
        for strip in strips:
            starts.append(len(content))
            content += strip
        entries: dict[int, tuple[int, list[int] | bytes]] = {
            256: (4, [page.shape[1]]),
            257: (4, [page.shape[0]]),
            258: (3, [8 * page.itemsize] * channels),
            259: (3, [compression]),
            262: (3, [2 if channels >= 3 else 1]),
            273: (4, starts),
            277: (3, [channels]),
            278: (4, [page.shape[0]]),
            279: (4, [len(strip) for strip in strips]),
            284: (3, [2 if planar else 1]),
            317: (3, [predictor]),
            339: (3, [{"u": 1, "i": 2, "f": 3}[page.dtype.kind]] * channels),
            **(tags or {}),
        }
        packed = {}
        for tag, (kind, numbers) in entries.items():
            if isinstance(numbers, bytes):
                data = numbers
            else:
                data = struct.pack(f"{order}{len(numbers)}{'HI'[kind == 4]}", *numbers)
            if len(data) > 4:
                place = struct.pack(f"{order}I", len(content))
                content += data
                data = place
            packed[tag] = (kind, len(numbers), data.ljust(4, b"\0"))
        struct.pack_into(f"{order}I", content, pointer, len(content))
        content += struct.pack(f"{order}H", len(packed))
        for tag, (kind, count, data) in sorted(packed.items()):
            content += struct.pack(f"{order}HHI", tag, kind, count) + data
        pointer = len(content)
        content += bytes(4)
    return bytes(content)


def scaled(values: np.ndarray) -> np.ndarray:
    """12-bit values as 8-bit ones."""
    return np.clip(values * (255 / 4095) + 0.5, 0, 255).astype(np.uint8)


def stack_of(count: int) -> list[np.ndarray]:
    return [np.full((8, 9), 9, np.uint8)] * count


def header_only(width: int, height: int) -> bytes:
    """A PNG that promises many pixels."""
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return png([(b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])
