"""Files are images by what they are: every ending that Pillow opens is listed, and anything else is named."""

from __future__ import annotations

import io
import os
import re
import threading

import numpy as np
import pytest
from image_samples import ENDINGS, every_ending, is_red, png16, red, tiff
from PIL import Image

import maskrcnn as mr
from maskrcnn.images.image_files import (
    NOT_IMAGES,
    ImageWarning,
    image_files,
    image_suffixes,
    list_images,
)
from maskrcnn.images.open_image import ImageError, OtherFileError
from maskrcnn.images.read import read_image
from maskrcnn.prediction.image_advice import advised_for_predict


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


KINDS = {
    "an HTML page": b"<!doctype html><html><body>404</body></html>",
    "HTML page": b"\xef\xbb\xbf  <HTML><head></head></HTML>",
    "a PDF document": b"%PDF-1.7\n",
    "a ZIP archive": b"PK\x03\x04" + bytes(40),
    "gzip-compressed data": b"\x1f\x8b\x08" + bytes(40),
    "an SVG drawing": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"></svg>',
    "XML": b'<?xml version="1.0"?><note/>',
    "JSON": b'{"images": []}',
    "an annotation file in XML; .* maskrcnn evaluate MODEL --data": b"<annotations><image/></annotations>",
    "an annotation file in COCO's format; pass the images": b'{"images": [{"file_name": "a.jpg"}]}',
    "an annotation file of VIA": b'{"a.jpg9": {"filename": "a.jpg", "regions": []}}',
    "VIA; ": b"filename,file_size,region_shape_attributes\na.jpg,9,{}\n",
    "an annotation file of LabelMe": b'{"shapes": [], "imagePath": "a.jpg"}',
    "a file of detections, .* maskrcnn evaluate FILE --data ANNOTATIONS": b'[{"image_id": 1, "score": 0.5}]',
    "a data.yaml": b"train: images\nnames: [a, b]\n",
    "a list of images; .*--shard 1/1": b"a.jpg\nfolder/B.PNG\n",
    "a Parquet table": b"PAR1" + bytes(40),
    "a file of weights; the model comes first": bytes(8) + b'{"__metadata__":{}}',
    "a file of PyTorch; the model comes first": b"PK\x03\x04" + bytes(26) + b"run/data.pkl",
    "a model of OpenVINO": b'<?xml version="1.0"?><net name="m"></net>',
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
    with pytest.raises(ImageError, match=r"a\.jpg: cannot be read as an image: ") as error:
        read_image(tmp_path / "a.jpg")
    assert re.search(kind, str(advised_for_predict(error.value)))
    # a command other than predict has none of its options, nor its other inputs
    assert not re.search("maskrcnn|--", str(error.value))


SIGNATURES = {
    "CUR": b"\0\0\2\0",
    "DCX": (0x3ADE68B1).to_bytes(4, "little"),
    "FITS": b"SIMPLE",
    "FLI": bytes(4) + b"\x11\xaf" + bytes(10),
    "FTEX": b"FTEX",
    "GBR": (20).to_bytes(4, "big") + (2).to_bytes(4, "big"),
    "MCIDAS": bytes(7) + b"\4",
    "PIXAR": b"\200\350\0\0",
    "PSD": b"8BPS",
    "SUN": b"\x59\xa6\x6a\x95",
    "XPM": b"/* XPM */",
    "XVTHUMB": b"P7 332",
}
"""First bytes of the formats that Pillow reads and does not write."""
WITHOUT_SIGNATURE = {"IM", "IMT", "PCD", "SPIDER", "TGA", "XBM"}  # XBM: text of a program


def test_every_image_that_is_cut_off_is_broken_and_of_a_known_format():
    Image.init()
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for name in sorted({*Image.ID} - NOT_IMAGES - WITHOUT_SIGNATURE):
        starts = [SIGNATURES.get(name, b"")]
        if name in Image.SAVE:
            mode = {"BLP": "P", "MSP": "1", "XBM": "1"}.get(name, "RGB")
            size = (32, 32) if name == "ICNS" else (48, 40)
            whole = io.BytesIO()
            Image.fromarray(noise).resize(size).convert(mode).save(whole, name)
            data = whole.getvalue()
            starts = [data[:end] for end in (16, 20, 40, 64, 100, 300) if end < len(data)]
        for start in starts:
            with pytest.raises(ImageError) as error:
                read_image(start)
            assert not isinstance(error.value, OtherFileError), (name, len(start), error.value)


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("GIF", b"GIF89a"),
        ("GIF", b"GIF89a" + bytes(7) + b"wrong block" * 9),
        ("PNG", b"\x89PNG\n\x1a\n" + bytes(60)),  # transferred as text
        ("JPEG", b"\xff\xd8"),
        ("WebP", b"RIFF\0\0\0\0WEBP"),
        ("AVIF", b"\0\0\0\x20ftypavif"),
        ("BMP", b"BM"),
        ("TIFF", b"II*\0"),
    ],
)
def test_a_broken_header_is_said_to_be_broken(name, start):
    with pytest.raises(ImageError, match=f"{name}.*(broken or truncated|no pages)"):
        read_image(start)


def test_text_that_begins_like_an_image_is_text():
    with pytest.raises(OtherFileError, match="it is text"):
        read_image(b"/* sizes of the images in pixels */ int sizes[] = {640, 480};\n")


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
