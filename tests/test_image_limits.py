"""Images beyond the stated limits, and files that expand, are refused before they take time or memory."""

from __future__ import annotations

import struct
import time
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from image_samples import header_only, is_red, png, red, stack_of, tiff
from PIL import Image

import maskrcnn as mr
from maskrcnn.images.open_image import MAX_PIXELS, ImageError
from maskrcnn.images.read import read_first_frame, read_header, read_image

GIF_FRAME = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"


def test_the_pixel_limit_is_stated_and_can_be_raised(tmp_path, monkeypatch):
    path = red(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=r"a\.png: 40 x 30 pixels are more than the limit of 1,000"
    ):
        read_image(path, max_pixels=1000)
    assert is_red(read_image(path, max_pixels=1200))
    monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "1000")
    with pytest.raises(ImageError, match=r"; if you trust the file, set MASKRCNN_MAX_PIXELS=1200$"):
        read_image(path)
    assert is_red(read_image(path, max_pixels=2000))
    monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "lots")
    with pytest.raises(ValueError, match="MASKRCNN_MAX_PIXELS: expected a number of pixels"):
        read_image(path)


def test_bombs_are_refused_by_their_header(tmp_path):
    bombs = {
        "a.png": header_only(60_000, 60_000),
        "b.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + GIF_FRAME + b";",
        "c.tif": tiff(
            [np.zeros((8, 9, 3), np.uint16)], tags={256: (4, [80_000]), 257: (4, [80_000])}
        ),
        "d.bmp": b"BM"
        + struct.pack("<IHHIIiiHHI", 54, 0, 0, 54, 40, 90000, 90000, 1, 24, 0).ljust(60, b"\0"),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(
            ImageError, match=f"{name}: .* pixels are more than the limit of 500,000"
        ):
            read_image(tmp_path / name)
    assert MAX_PIXELS == 500_000_000


def test_pillows_own_limit_neither_warns_nor_applies(tmp_path):
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(header_only(20_000, 20_000))
    assert read_header(tmp_path / "a.png").size == (20_000, 20_000)
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_dataset_suggests_to_raise_the_limit(tmp_path, monkeypatch):
    red(tmp_path / "a.png")
    monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "1000")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}],
        "annotations": [],
        "categories": [{"id": 1, "name": "stone"}],
    }
    with pytest.raises(mr.DataError, match="if you trust the file, set MASKRCNN_MAX_PIXELS"):
        mr.CocoDataset(content, tmp_path)


def within(seconds: float, read: Callable[[], object]) -> None:
    """Refuses in one sentence, in time; decoders may warn."""
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError) as caught:
            read()
    assert time.monotonic() - start < seconds
    assert len(str(caught.value)) < 400


def test_compressed_texts_and_profiles_that_expand_are_refused():
    size = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
    expanding = zlib.compress(bytes(8 << 20), 9)
    for name, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        chunks = [(b"IHDR", size), (name, head + expanding)]
        data = png([*chunks, (b"IDAT", zlib.compress(bytes(9) * 8)), (b"IEND", b"")])
        within(5, lambda data=data: read_image(data))


def test_absurd_tiff_directories_are_refused(twelve_bits):
    good = tiff([twelve_bits])
    count_at = good.rindex(struct.pack("<HHI", 273, 4, 1))
    for count in (0xFFFFFFFF, 1 << 20):
        data = bytearray(good)
        struct.pack_into("<I", data, count_at + 4, count)
        within(2, lambda data=data: read_image(bytes(data)))
    loop = bytearray(tiff(stack_of(2)))
    struct.pack_into("<I", loop, len(loop) - 4, struct.unpack_from("<I", loop, 4)[0])
    assert read_first_frame(bytes(loop))[1] == 2
    for tags in ({278: (4, [0])}, {279: (4, [0xFFFFFFF0])}, {273: (4, [0xFFFFFFF0])}):
        within(2, lambda tags=tags: read_image(tiff([twelve_bits], tags=tags)))
    for tags in ({322: (4, [1 << 30]), 323: (4, [16])}, {277: (3, [60_000])}, {317: (3, [9])}):
        within(2, lambda tags=tags: read_image(tiff([twelve_bits], tags=tags)))
    within(2, lambda: read_image(b"II*\0" + struct.pack("<I", 0)))


def test_a_gif_of_a_million_frames_is_opened_in_a_moment():
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    data = head + GIF_FRAME * 1_000_000 + b";"
    start = time.monotonic()
    assert read_first_frame(data)[1] == 2
    assert time.monotonic() - start < 2


def test_a_description_nested_without_end_is_no_channels():
    nested = b"{" + b'"a":[' * 100_000
    assert read_first_frame(tiff(stack_of(3), tags={270: (2, nested)}))[1] == 3
