"""Images that people have: every ending, depth, layout and source gives its right value or one plain sentence."""

from __future__ import annotations

import http.server
import io
import json
import os
import socket
import struct
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from models import tiny_config
from PIL import Image

import maskrcnn as mr
from maskrcnn.cli import run
from maskrcnn.config import Category
from maskrcnn.formats.id_maps import read_ids
from maskrcnn.images import remote
from maskrcnn.images.image_files import ImageWarning, image_files, image_suffixes, list_images
from maskrcnn.images.open_image import MAX_PIXELS, ImageError
from maskrcnn.images.read import image_size, read_first_frame, read_header, read_image, read_values
from maskrcnn.images.remote import download
from maskrcnn.model.maskrcnn import MaskRCNN
from maskrcnn.prediction.image_input import read_input
from maskrcnn.prediction.model_engine import ModelEngine
from maskrcnn.prediction.predict_files import predict_files
from maskrcnn.prediction.predict_inputs import find_inputs
from maskrcnn.prediction.predictor import Predictor, predict
from maskrcnn.runtime import cache
from maskrcnn.structures import Detections

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


# --- endings ---


def test_a_folder_lists_all_that_pillow_opens_and_names_what_is_left_out(tmp_path):
    every_ending(tmp_path)
    (tmp_path / "notes.txt").touch()
    assert [path.name for path in image_files(tmp_path)] == sorted(f"{e}.{e}" for e in ENDINGS)
    assert all(is_red(read_image(path)) for path in image_files(tmp_path))
    (tmp_path / "phone.heic").write_bytes(b"x")
    (tmp_path / "none").symlink_to("absent.png")
    with pytest.warns(ImageWarning, match=r"2 files.*1 \.heic \(phone.heic\).*save them as JPEG"):
        image_files(tmp_path)
    assert [path.name for path in list_images(tmp_path).left_out] == [
        "none",
        "notes.txt",
        "phone.heic",
    ]


def test_formats_that_are_no_images_are_not_listed():
    suffixes = image_suffixes()
    assert not suffixes & {".eps", ".ps", ".pdf", ".mpg", ".mpeg", ".h5", ".wmf", ".grib", ".txt"}
    assert {".tif", ".gif", ".bmp", ".pfm", ".qoi", ".tga", ".j2k", ".apng"} <= suffixes


def test_a_plugin_of_pillow_adds_its_ending(monkeypatch):
    monkeypatch.setitem(Image.EXTENSION, ".heic", "PNG")
    assert ".heic" in image_suffixes()


def test_yolo_reads_every_ending_and_reports_the_files_left_out(tmp_path):
    every_ending(tmp_path / "images")
    (tmp_path / "images" / "raw.dng").write_bytes(b"x")
    (tmp_path / "labels").mkdir()
    for ending in ENDINGS:
        (tmp_path / "labels" / f"{ending}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [stone]\n")
    data = mr.load_dataset(tmp_path)
    assert len(data) == 9
    assert "left out 1 file not read as images: 1 .dng (raw.dng)" in data.describe_warnings()


def test_linked_folders_are_followed_once(tmp_path):
    red(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "photos")
    assert image_files(tmp_path / "photos") == [tmp_path / "photos" / "linked" / "a.png"]


# --- depth and layout ---


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


@pytest.fixture
def twelve_bits() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (13, 17, 3), dtype=np.uint16)


def scaled(values: np.ndarray) -> np.ndarray:
    """12-bit values as 8-bit ones."""
    return np.clip(values * (255 / 4095) + 0.5, 0, 255).astype(np.uint8)


def test_16_bit_color_png_obeys_the_intensity_range(twelve_bits):
    alpha = np.full((13, 17, 1), 65535, np.uint16)
    for values in (twelve_bits, np.dstack([twelve_bits, alpha])):
        pixels = read_image(png16(values), (0, 4095))
        assert (pixels == scaled(twelve_bits)).all()
        assert pixels.mean() == pytest.approx(127.5, abs=5)
    gray = twelve_bits[:, :, 0]
    with_alpha = np.dstack([gray, alpha])
    for values in (gray, with_alpha):
        assert (read_image(png16(values), (0, 4095))[:, :, 1] == scaled(gray)).all()


def test_the_cases_of_16_bit_color_have_the_mean_of_gray(shared):
    folder = shared / "cases" / "color16"
    if not folder.is_dir():
        pytest.skip("no cases")
    for name in ("chunky12.tif", "rgb12in16.png", "g12in16.png"):
        assert read_header(folder / name).deep
        assert read_image(folder / name, (0, 4095)).mean() == pytest.approx(127.5, abs=0.5)


@pytest.mark.parametrize("largest", [65535, 4095])
def test_16_bit_color_ppm_is_scaled_so_that_its_white_is_white(largest, twelve_bits):
    data = b"P6\n# made here\n17 13\n%d\n" % largest + twelve_bits.astype(">u2").tobytes()
    range = None if largest == 4095 else (0, 4095)
    assert abs(read_image(data, range).astype(int) - scaled(twelve_bits)).max() <= 1


def test_16_bit_color_jpeg_2000_is_refused_instead_of_losing_bits(tmp_path):
    stored = io.BytesIO()
    Image.new("RGB", (20, 20), RED).save(stored, "JPEG2000")
    data = bytearray(stored.getvalue())
    at = data.index(b"\xff\x4f\xff\x51") + 42
    data[at : at + 9 : 3] = b"\x0f\x0f\x0f"
    with pytest.raises(ImageError, match=r"JPEG2000 with more than 8 bits.*save it as PNG or TIFF"):
        read_image(bytes(data))


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize("order", ["<", ">"])
def test_planar_and_chunky_tiff_have_the_same_pixels(planar, compression, order, twelve_bits):
    for dtype in (np.uint16, np.int16, np.float32, np.uint8):
        values = twelve_bits.astype(dtype)
        for predictor in (1, 2) if dtype != np.float32 and compression == 8 else (1,):
            data = tiff([values], planar, compression, order, predictor)
            pixels = read_image(data, (0, 4095))
            assert (pixels == (values if dtype == np.uint8 else scaled(values))).all()


def test_deep_color_is_upright(twelve_bits, tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff([twelve_bits], tags={274: (3, [6])}))
    assert (read_values(tmp_path / "a.tif") == np.rot90(twelve_bits, -1)).all()
    assert image_size(tmp_path / "a.tif") == (17, 13)


def test_gray_tiff_of_every_depth_keeps_its_values(twelve_bits, tmp_path):
    gray = twelve_bits[:, :, 0]
    for dtype in (np.uint16, np.int16, np.uint32, np.float16, np.float64):
        for order in "<>":
            (tmp_path / "a.tif").write_bytes(tiff([gray.astype(dtype)], compression=8, order=order))
            assert np.array_equal(read_values(tmp_path / "a.tif"), gray.astype(dtype))
    white_is_zero = tiff([65535 - gray], tags={262: (3, [0])})
    assert (read_image(white_is_zero, (0, 4095))[:, :, 0] == scaled(gray)).all()


def test_a_tiff_of_five_channels_is_an_error_that_counts_them(twelve_bits):
    values = np.dstack([twelve_bits, twelve_bits])[:, :, :5]
    with pytest.raises(ImageError, match="expected 1 or 3 channels, got a TIFF with 5"):
        read_image(tiff([values], tags={262: (3, [1])}))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint32, np.int16, np.int8, np.uint64])
def test_integers_with_8_bit_values_are_those_values_and_others_an_error(dtype):
    values = np.arange(120, dtype=np.uint8).reshape(4, 10, 3)
    assert (read_image(values.astype(dtype)) == values).all()
    if np.iinfo(dtype).max > 300:
        with pytest.raises(ImageError, match=r"0\.\.255, got 0 to 300; pass intensity_range"):
            read_image(np.array([[0, 300]], dtype))
        assert read_image(np.array([[0, 300]], dtype), (0, 300))[0, :, 0].tolist() == [0, 255]


def test_uint16_is_never_taken_for_8_bits_nor_silently_black():
    assert read_image(np.array([[0, 65535]], np.uint16))[0, :, 0].tolist() == [0, 255]
    assert read_image(np.zeros((2, 2), np.uint16)).max() == 0
    with pytest.raises(ImageError, match=r"0 to 255 would be almost black.*astype\(numpy.uint8\)"):
        read_image(np.array([[0, 255]], np.uint16))
    assert read_image(np.array([[0, 255]], np.uint16), (0, 255))[0, 1, 0] == 255


def test_channels_first_and_batches_are_errors_that_say_what_to_pass():
    with pytest.raises(ImageError, match=r"array.transpose\(1, 2, 0\)"):
        read_image(np.zeros((3, 8, 9), np.uint8))
    with pytest.raises(ImageError, match=r"pass list\(array\)"):
        read_image(np.zeros((2, 8, 9, 3), np.uint8))


def test_label_maps_in_tiff_keep_their_ids(twelve_bits, tmp_path):
    ids = twelve_bits[:, :, 0]
    (tmp_path / "a.tif").write_bytes(tiff([ids], compression=8, order=">"))
    assert (read_ids(tmp_path / "a.tif") == ids).all()
    (tmp_path / "b.tif").write_bytes(tiff([(twelve_bits % 256).astype(np.uint8)], planar=True))
    r, g, b = np.moveaxis(twelve_bits.astype(np.int64) % 256, 2, 0)
    assert (read_ids(tmp_path / "b.tif") == r + 256 * g + 65536 * b).all()


# --- frames ---

OME = '<OME xmlns="x"><Pixels DimensionOrder="{}" SizeC="3" SizeZ="2" SizeT="1"/></OME>'


@pytest.mark.parametrize(
    ("description", "pages"),
    [
        ("ImageJ=1.11a\nimages=3\nchannels=3\nmode=grayscale\n", (0, 1, 2)),
        (OME.format("XYCZT"), (0, 1, 2)),
        (OME.format("XYZCT"), (0, 2, 4)),
        ('{"shape": [3, 13, 17], "axes": "CYX"}', (0, 1, 2)),
    ],
)
def test_pages_that_the_file_calls_channels_are_red_green_and_blue(description, pages):
    stack = np.random.default_rng(1).integers(0, 65536, (6, 13, 17), dtype=np.uint16)
    data = tiff(list(stack), tags={270: (2, description.encode())})
    pixels, frames = read_first_frame(data, (0, 65535))
    assert frames == 1
    for channel, page in enumerate(pages):
        assert abs(pixels[:, :, channel] - stack[page] / 257).max() <= 0.51


def stack_of(count: int) -> list[np.ndarray]:
    return [np.full((8, 9), 9, np.uint8)] * count


def test_other_frames_are_counted_and_the_first_is_used(tmp_path):
    assert read_first_frame(tiff(stack_of(3)))[1] == 3
    two_channels = tiff(stack_of(2), tags={270: (2, b"ImageJ=1\nimages=2\nchannels=2\n")})
    assert read_first_frame(two_channels)[1] == 2
    pyramid = bytearray(tiff([*stack_of(2)], tags={254: (4, [0])}))
    at = pyramid.rindex(struct.pack("<HHI", 254, 4, 1))
    pyramid[at + 8] = 1  # a smaller copy
    assert read_first_frame(bytes(pyramid))[1] == 1
    frames = [Image.new("RGB", (9, 8), (50 * n, 0, 0)) for n in range(3)]
    for suffix, expected in (("gif", 2), ("webp", 3), ("png", 3), ("mpo", 1)):
        path = tmp_path / f"a.{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:])
        assert read_header(path).frames == expected, suffix


def test_a_dataset_reports_images_with_several_frames(tmp_path):
    (tmp_path / "a.tif").write_bytes(tiff(stack_of(3)))
    content = {
        "images": [{"id": 1, "file_name": "a.tif", "height": 8, "width": 9}],
        "annotations": [],
        "categories": [{"id": 1, "name": "stone"}],
    }
    (problem,) = mr.CocoDataset(content, tmp_path).warnings
    assert (problem.kind, problem.detail) == ("image with several frames", "3 frames")


def test_the_preview_in_a_camera_raw_file_is_refused():
    raw = tiff(stack_of(1), tags={254: (4, [1]), 330: (4, [8])})
    with pytest.raises(ImageError, match="camera raw data with a preview; develop it"):
        read_image(raw)


# --- size ---


GIF_FRAME = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"


def header_only(width: int, height: int) -> bytes:
    """A PNG that promises many pixels."""
    size = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return png([(b"IHDR", size), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")])


def test_the_pixel_limit_is_stated_and_can_be_raised(tmp_path, monkeypatch):
    path = red(tmp_path / "a.png")
    with pytest.raises(
        ImageError, match=r"a\.png: 40 x 30 pixels are more than the limit of 1,000"
    ):
        read_image(path, max_pixels=1000)
    assert is_red(read_image(path, max_pixels=1200))
    monkeypatch.setenv("MASKRCNN_MAX_PIXELS", "1000")
    with pytest.raises(ImageError, match="max_pixels=1200, --max-pixels or MASKRCNN_MAX_PIXELS"):
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


# --- sources ---


@pytest.fixture(scope="module")
def model() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN.from_config(tiny_config((Category("stone", 1),))).eval()


@pytest.fixture
def predictor(model: MaskRCNN, monkeypatch: pytest.MonkeyPatch) -> Predictor:
    """Reads images as every Predictor does, and finds nothing in them, which is fast."""
    nothing = Detections(
        boxes=torch.zeros(1, 0, 4),
        scores=torch.zeros(1, 0),
        labels=torch.zeros(1, 0, dtype=torch.long),
        valid=torch.zeros(1, 0, dtype=torch.bool),
        masks=torch.zeros(1, 0, 28, 28),
    )
    monkeypatch.setattr(ModelEngine, "__call__", lambda self, batch: nothing)
    return Predictor(model)


class Web(http.server.BaseHTTPRequestHandler):
    """Serves good, endless, slow, huge, broken and moved images."""

    image = b""

    def do_GET(self) -> None:
        self.path = self.path.partition("?")[0]
        moved = {"/file": "file:///etc/hostname", "/ftp": "ftp://h/a.png", "/moved": "/a%20b.png"}
        if self.path in moved:
            self.send_response(302)
            self.send_header("Location", moved[self.path])
            self.end_headers()
        elif self.path == "/absent.png":
            self.send_error(404)
        else:
            self.send_response(200)
            if self.path in ("/a%20b.png", "/cut.png"):
                self.send_header("Content-Length", str(len(self.image)))
            if self.path == "/huge.png":
                self.send_header("Content-Length", str(10**12))
            self.end_headers()
            with suppress(OSError):
                self.send_body()

    def send_body(self) -> None:
        if self.path in ("/a%20b.png", "/unsized.png"):
            self.wfile.write(self.image)
        elif self.path == "/cut.png":
            self.wfile.write(self.image[:20])
        elif self.path == "/page.jpg":
            self.wfile.write(b"<!DOCTYPE html><html>sign in</html>")
        elif self.path == "/endless.png":
            for _ in range(1000):
                self.wfile.write(bytes(1 << 16))
        elif self.path == "/slow.png":
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    Web.image = red(tmp_path / "served.png").read_bytes()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_urls_are_read_and_named(web, predictor):
    for name in ("/a%20b.png", "/unsized.png", "/moved"):
        assert is_red(read_image(web + name))
    result = predictor(f"{web}/a%20b.png?size=large")
    assert (result.file_name, result.image_id) == ("a b.png", 1)
    assert is_red(result.image)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/absent.png", "the server returned 404"),
        ("/endless.png", "the file has more than 1 MB"),
        ("/huge.png", "are more than 1 MB"),
        ("/slow.png", r"not complete after 0\.5 seconds"),
        ("/cut.png", "closed after 20 of"),
        ("/file", "(redirected to|not allowed).*"),
        ("/ftp", "redirected to ftp://h/a.png; only http and https"),
    ],
)
def test_bad_servers_end_in_one_sentence_within_their_limits(web, name, reason):
    start = time.monotonic()
    with pytest.raises(ImageError, match=f"^{web}{name}: .*{reason}"):
        download(web + name, max_bytes=1 << 20, seconds=0.5)
    assert time.monotonic() - start < 3


def test_a_server_that_does_not_exist_and_a_page_are_named(web):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}/a.png"
        with pytest.raises(ImageError, match=r"download failed: .*refused"):
            read_image(address)
    with pytest.raises(ImageError, match="it is an HTML page, perhaps the error message"):
        read_image(f"{web}/page.jpg")


def test_a_path_and_other_schemes_are_never_fetched(monkeypatch):
    monkeypatch.setattr(remote, "_opener", lambda *_: pytest.fail("the network was used"))
    for source, advice in {
        Path("http://host/a.png"): "http:/host/a.png: expected a URL as text",
        "ftp://host/a.png": "ftp://host/a.png: expected a file name or a URL with http or https, "
        "got a URL with ftp; download it first",
        "S3://bucket/a*.png": "got a URL with s3; download it first, or pass its https address",
        "gs://bucket/a.png": "got a URL with gs; download it first, or pass its https address",
        "file:///etc/host%20name": "got a URL with file; pass /etc/host name",
        "data:image/png;base64," + 999 * "A": r"A\.\.\.: .* decode it and pass the bytes",
    }.items():
        with pytest.raises(ImageError, match=advice):
            read_image(source)
        with pytest.raises(ImageError, match=advice):
            mr.predict("absent.safetensors", source)
        with pytest.raises(ImageError, match=advice):
            find_inputs([source], Path("out"))


def test_a_file_named_like_a_url_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:").mkdir()
    red(tmp_path / "s3:" / "a.png")
    assert is_red(read_image("s3://a.png"))


def test_bytes_and_file_objects_are_read(tmp_path):
    path = red(tmp_path / "a.png")
    data = path.read_bytes()
    assert is_red(read_image(data))
    with path.open("rb") as file:
        file.seek(50)
        for source in (io.BytesIO(data), file):
            assert is_red(read_image(source))
            assert not source.closed
    receiver, sender = os.pipe()
    with os.fdopen(sender, "wb") as end:
        end.write(data)
    with os.fdopen(receiver, "rb") as pipe:
        assert is_red(read_image(pipe))
    with path.open(encoding="latin-1") as text, pytest.raises(ImageError, match=r'mode \("rb"\)'):
        read_image(text)  # ty: ignore[invalid-argument-type]
    with pytest.raises(ImageError, match="expected an open file, got a closed one"):
        read_image(file)
    with pytest.raises(ImageError, match=r"the given bytes: .*the file is empty"):
        read_image(b"")


def test_tensors_are_channels_first_and_their_range_is_checked():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for given in (tensor, tensor.float() / 255, tensor.double() / 255, tensor.int()):
        assert (read_input(given, None, 100)[0] == image).all()
    assert (read_input(tensor[:1], None, 100)[0] == image[:, :, :1]).all()
    for given, reason in (
        (tensor.permute(1, 2, 0), r"got shape \[5, 7, 3\]; for .* tensor.permute\(2, 0, 1\)"),
        (tensor[None], r"pass list\(tensor\)"),
        (tensor.float(), "values 0 to 1, got .*divide by 255"),
        (tensor.float() / 255 - 0.5, "before normalization"),
        (tensor.float() * torch.nan, "got nan to nan"),
        (tensor.long() * 9, "expected int64 values in 0..255"),
    ):
        with pytest.raises(ImageError, match=reason):
            read_input(given, None, 100)


def test_what_is_no_image_is_refused_by_its_index(model, predictor):
    image = np.zeros((8, 9, 3), np.uint8)
    for wrong, got in ((None, "None"), (7, "int"), ([image], "list"), ({}, "dict")):
        with pytest.raises(TypeError, match=rf"images\[1\]: expected a file name.*, got {got}"):
            list(predict(model, [image, wrong]))
    for wrong in (None, 7, {"a": 1}):
        with pytest.raises(TypeError, match="images: expected a file name"):
            predict(model, wrong)  # ty: ignore[no-matching-overload]
    with pytest.raises(TypeError, match=r"image: expected a file name.*, got None"):
        predictor(None)
    with pytest.raises(ImageError, match=r"images\[1\]: the given array: expected an array"):
        list(predict(model, [image, image[:, :, :2]]))


def test_a_file_of_several_frames_warns_once(predictor, tmp_path):
    for n in range(5):
        (tmp_path / f"{n}.tif").write_bytes(tiff(stack_of(3)))
    with pytest.warns(ImageWarning, match=r"0\.tif: several frames, the first is used"):
        predictor(tmp_path / "0.tif")
    with pytest.warns(ImageWarning) as caught:
        assert len(list(predictor.stream(image_files(tmp_path)))) == 5
    assert [str(w.message) for w in caught] == [
        "5 images have several frames, the first of each is used: 0.tif, 1.tif, 2.tif, ..."
    ]
    summary = predict_files(predictor, [tmp_path], tmp_path / "out", progress=False)
    assert len(summary.several_frames) == 5


def test_the_range_and_the_limit_are_settings_of_a_predictor(model, tmp_path, twelve_bits):
    (tmp_path / "a.tif").write_bytes(tiff([twelve_bits]))
    ranged = Predictor(model, intensity_range=(0, 4095))
    assert (ranged.prepare(tmp_path / "a.tif").image == scaled(twelve_bits)).all()
    with pytest.raises(ImageError, match="more than the limit of 100"):
        Predictor(model, max_pixels=100).prepare(tmp_path / "a.tif")
    for wrong in ({"intensity_range": (9, 1)}, {"max_pixels": 0}):
        with pytest.raises(ValueError, match="expected"):
            Predictor(model, **wrong)


def names_of(predictor: Predictor, inputs: list[str | Path], out: Path) -> list[str]:
    """The overlays of a job."""
    predict_files(predictor, inputs, out, progress=False)
    paths = (path for path in out.rglob("*") if path.is_file() and path.name != "results.json")
    return sorted(path.relative_to(out).as_posix() for path in paths)


def test_patterns_are_expanded_and_files_of_that_name_win(predictor, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("p/a.png", "p/b.jpg", "p/deep/er/c.png", "p/[1].jpg", "p/1.jpg", "q[1]/d.png"):
        red(tmp_path / name)
    (tmp_path / "p" / "notes.txt").touch()
    for number, (pattern, expected) in enumerate(
        {
            "p/*.jpg": ["1.jpg", "[1].jpg", "b.jpg"],
            "p/**/*.png": ["a.png", "deep/er/c.png"],
            "p/[1].jpg": ["[1].jpg"],
            "p/[ab].*": ["a.png", "b.jpg"],
            "q[1]/*": ["d.png"],
        }.items()
    ):
        assert names_of(predictor, [pattern], tmp_path / f"out{number}") == expected, pattern
    summary = predict_files(predictor, ["p/*"], tmp_path / "all", progress=False)
    assert (summary.images, summary.left_out) == (5, [Path("p/notes.txt")])
    assert [path.name for path in image_files("p/*.png")] == ["a.png"]
    with pytest.raises(FileNotFoundError, match=r"x\*: nothing matches this pattern"):
        predict_files(predictor, ["x*"], tmp_path / "none", progress=False)
    with pytest.raises(ValueError, match=r'is a pattern.*mr.image_files\("p/\*.png"\)'):
        predictor("p/*.png")


def test_urls_and_standard_input_are_predicted_among_files(web, predictor, tmp_path, monkeypatch):
    red(tmp_path / "in" / "a b.png")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Web.image)))
    inputs = [tmp_path / "in", f"{web}/a%20b.png", f"{web}/unsized.png", "-"]
    out = tmp_path / "out"
    assert names_of(predictor, inputs, out) == [
        "127.0.0.1/a b.png",
        "a b.png",
        "stdin.png",
        "unsized.png",
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(ImageError, match="-: expected an image on standard input, got nothing"):
        predict_files(predictor, ["-"], out, progress=False)
    with pytest.raises(ValueError, match=r"unsized.png: annotations need image files"):
        predict_files(predictor, [f"{web}/unsized.png"], out, annotations="coco", progress=False)


@pytest.mark.parametrize(
    "name",
    ["with spaces.png", "Prüfung-画像.png", "two\nlines.png", "%41.png", "-.png", "'q\".png"],
)
def test_unusual_names_are_names(name, predictor, tmp_path):
    red(tmp_path / "in" / name)
    assert names_of(predictor, [tmp_path / "in"], tmp_path / "out") == [name]
    assert names_of(predictor, [tmp_path / "in" / name], tmp_path / "out") == [name]


def test_names_that_are_too_long_or_no_text_get_an_overlay(predictor, tmp_path):
    folder = tmp_path / "in"
    long = "n" * 251
    red(folder / f"{long}.png")
    red(folder / f"{long}.jpg")
    red(folder / f"{long}.gif")
    raw = os.fsdecode(b"\xff\xfe.png")
    red(folder / raw)
    (folder / os.fsdecode(b"\xfd.png")).write_bytes(b"broken")
    summary = predict_files(predictor, [folder], tmp_path / "out")  # with progress: it prints
    assert (summary.images, len(summary.failed)) == (4, 1)
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert len(made) == 5
    assert raw in made
    assert f"{long}.jpg" in made


# --- files that are no images ---

KINDS = {
    "an HTML page": b"<!doctype html><html><body>404</body></html>",
    "HTML page": b"\xef\xbb\xbf  <HTML><head></head></HTML>",
    "a PDF document": b"%PDF-1.7\n",
    "a ZIP archive": b"PK\x03\x04" + bytes(40),
    "gzip-compressed data": b"\x1f\x8b\x08" + bytes(40),
    "an SVG drawing": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "XML": b'<?xml version="1.0"?><annotation/>',
    "JSON": b'{"images": []}',
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 2\n",
    "a HEIC image": b"\0\0\0\x18ftypheic" + bytes(40),
    "a video": b"\0\0\0\x18ftypmp42" + bytes(40),
    "a NumPy array": b"\x93NUMPY\x01\x00" + bytes(40),
    "a PostScript program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a DICOM file": bytes(128) + b"DICM" + bytes(40),
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(40),
    "text": b"hello\n",
    "the file is empty": b"",
    "unknown format": b"\x01\x02\x03\x04" * 30,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_ending_is_answered_with_what_the_file_is(kind, tmp_path):
    (tmp_path / "a.jpg").write_bytes(KINDS[kind])
    with pytest.raises(ImageError, match=rf"a\.jpg: cannot be read as an image: .*{kind}"):
        read_image(tmp_path / "a.jpg")


def test_links_folders_and_pipes_with_the_name_of_an_image(tmp_path):
    (tmp_path / "link.jpg").symlink_to("absent.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    image = red(tmp_path / "a.png").read_bytes()
    with pytest.raises(ImageError, match=r"link.jpg: broken link to absent.jpg"):
        read_image(tmp_path / "link.jpg")
    with pytest.raises(ImageError, match=r"folder.jpg: expected an image, got a folder"):
        read_image(tmp_path / "folder.jpg")
    threading.Thread(target=(tmp_path / "pipe.jpg").write_bytes, args=(image,), daemon=True).start()
    assert is_red(read_image(tmp_path / "pipe.jpg"))
    listing = list_images(tmp_path)
    assert [path.name for path in listing.images] == ["a.png"]
    assert [path.name for path in listing.left_out] == ["link.jpg", "pipe.jpg"]


def test_a_file_that_is_still_written_is_truncated(tmp_path, twelve_bits):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for suffix in ("png", "jpg", "tif", "webp", "gif", "bmp"):
        noise.save(tmp_path / f"whole.{suffix}")
        data = (tmp_path / f"whole.{suffix}").read_bytes()
        (tmp_path / f"a.{suffix}").write_bytes(data[: len(data) * 2 // 3])
        with pytest.raises(ImageError, match=rf"a\.{suffix}: "):
            read_image(tmp_path / f"a.{suffix}")
    for deep in (tiff([twelve_bits]), png16(twelve_bits)):
        for end in range(20, len(deep) - 40, 101):
            with pytest.raises(ImageError):
                read_image(deep[:end])


def test_nothing_readable_ends_without_results_in_one_sentence(model, predictor, tmp_path, capsys):
    mr.save(model, tmp_path / "m.safetensors")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(KINDS["HTML page"])
    (tmp_path / "in" / "b.png").touch()
    (tmp_path / "in" / "c.heic").touch()
    out = tmp_path / "out"
    words = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "in"), "--out", str(out)]
    assert run(words) == 2
    printed = capsys.readouterr()
    assert "No image could be read (2 files); nothing was written." in printed.err
    assert "left out 1 file not read as images: 1 .heic" in printed.err.replace("Left", "left")
    assert "overlays" not in printed.out
    assert list(out.iterdir()) == []


def test_a_dash_on_the_command_line_is_standard_input(
    model, predictor, tmp_path, monkeypatch, capsys
):
    mr.save(model, tmp_path / "m.safetensors")
    data = red(tmp_path / "a.png").read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    words = ["predict", str(tmp_path / "m.safetensors"), "-", "--out", str(tmp_path / "out")]
    assert run(words) == 0
    assert (tmp_path / "out" / "stdin.png").is_file()


# --- hostile files ---


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


# --- the cache folder ---


def test_a_read_only_home_gives_a_temporary_cache_and_one_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "file" / "cache"))
    cache._temporary_folder.cache_clear()
    with pytest.warns(cache.CacheWarning, match="not writable.*set MASKRCNN_HOME") as caught:
        first = cache.writable_cache_folder()
    assert len(caught) == 1
    assert cache.writable_cache_folder() == first
    assert first.is_dir()
    monkeypatch.setenv("MASKRCNN_HOME", str(tmp_path / "mine"))
    assert cache.writable_cache_folder() == tmp_path / "mine"


def test_the_results_of_a_job_name_their_images(predictor, tmp_path):
    red(tmp_path / "a.jfif")
    predict_files(predictor, [tmp_path / "a.jfif"], tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == []
    assert (tmp_path / "out" / "a.jpg").is_file()
