"""What a file that is not an image is, by its first bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

BYTES = 1 << 16
"""First bytes of a file that `kind_of` looks at."""

Use = Literal["annotations", "detections", "list of images", "model", "array"]


@dataclass(frozen=True)
class FileKind:
    """What a file is that is not an image."""

    name: str
    """Such as "a PDF document"."""
    advice: str = ""
    """What to do where an image is expected."""
    use: Use | None = None
    """What this package reads such a file as, in place of an image."""
    is_text: bool = False
    """Whether it is text of no particular kind."""


def _annotations(name: str) -> FileKind:
    return FileKind(name, use="annotations")


# (offset, bytes there, what the file is)
_SIGNATURES = (
    (0, b"version https://git-lfs", FileKind("a Git LFS pointer (run git lfs pull)")),
    (0, b"%PDF", FileKind("a PDF document")),
    (0, b"%!PS", FileKind("a PostScript program")),
    (0, b"\xc5\xd0\xd3\xc6", FileKind("a PostScript program")),
    (0, b"PAR1", FileKind("a Parquet table", use="list of images")),
    (8, b'{"__metadata__"', FileKind("a file of weights", use="model")),
    (0, b"PK\x03\x04", FileKind("a ZIP archive or an Office document")),
    (0, b"\x1f\x8b", FileKind("gzip-compressed data")),
    (0, b"Rar!", FileKind("a RAR archive")),
    (0, b"7z\xbc\xaf", FileKind("a 7-Zip archive")),
    (257, b"ustar", FileKind("a TAR archive")),
    (0, b"\x93NUMPY", FileKind("a NumPy array", "save it as a PNG or TIFF", "array")),
    (0, b"\x89HDF", FileKind("an HDF5 file")),
    (0, b"SQLite format 3", FileKind("an SQLite database")),
    (0, b"\x80\x02", FileKind("a Python pickle")),
    (0, b"v/1\x01", FileKind("an OpenEXR image", "save it as a TIFF")),
    (0, b"\xff\x0a", FileKind("a JPEG XL image", "save it as PNG or JPEG")),
    (0, b"\x00\x00\x00\x0cJXL ", FileKind("a JPEG XL image", "save it as PNG or JPEG")),
    (128, b"DICM", FileKind("a DICOM file", "save it as a PNG or TIFF")),
    (0, b"\x7fELF", FileKind("a program")),
    (0, b"MZ", FileKind("a Windows program")),
    (0, b"OggS", FileKind("a video or a sound")),
    (0, b"ID3", FileKind("a sound")),
    (0, b"\x1aE\xdf\xa3", FileKind("a video")),
    (0, b"\x00\x00\x01\xba", FileKind("a video")),
    (0, b"\x00\x00\x01\xb3", FileKind("a video")),
    (0, b"\xd7\xcd\xc6\x9a", FileKind("a Windows metafile", "save it as PNG")),
    (40, b" EMF", FileKind("a Windows metafile", "save it as PNG")),
    (0, b"GRIB", FileKind("a weather forecast (GRIB)")),
    (0, b"BUFR", FileKind("weather observations (BUFR)")),
)
# (offset, bytes there, format): as many bytes as no other file has there. Pillow asks for more of
# them, which are missing where a file is cut off, or was changed by a transfer as text.
_IMAGES = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PN", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (0, b"II*\x00", "TIFF"),
    (0, b"MM\x00*", "TIFF"),
    (8, b"WEBP", "WebP"),
)
_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")
_WEIGHTS = (b"data.pkl", b"/byteorder", b"models/model.json")  # members of PyTorch's archives
# (marks that all occur in the text, what the file is)
_JSON = (
    (
        ('"score"', '"image_id"'),
        FileKind("a file of detections, as predict writes them", use="detections"),
    ),
    (('"imagepath"',), _annotations("an annotation file of LabelMe")),
    (('"file_name"',), _annotations("an annotation file in COCO's format")),
    (('"annotations"',), _annotations("an annotation file")),
    (('"regions"',), _annotations("an annotation file of VIA")),
    (('"features"',), _annotations("an annotation file in GeoJSON")),
)
_XML = (
    (("<annotation",), _annotations("an annotation file in XML")),
    (("<net ",), FileKind("a model of OpenVINO", use="model")),
)
_RAW = FileKind("camera raw data", "develop it to a TIFF or JPEG")


def begun_image(start: bytes) -> str:
    """Returns the image format whose unmistakable first bytes a file has, or ""."""
    for offset, signature, format in _IMAGES:
        if start[offset : offset + len(signature)] == signature:
            return format
    return ""


def kind_of(start: bytes) -> FileKind | None:
    """Returns what a file is that is not an image; None if its first bytes do not tell."""
    for offset, signature, kind in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            is_archive = signature.startswith(b"PK")
            if is_archive and any(member in start for member in _WEIGHTS):
                return FileKind("a file of PyTorch", use="model")
            return kind

    if start[4:8] == b"ftyp":
        if start[8:12] in _HEIF:
            return FileKind("a HEIC image", "save it as JPEG or PNG")
        if start[8:12] in _AVIF:
            return None
        return _RAW if start[8:11] == b"crx" else FileKind("a video")
    if start[:4] == b"RIFF" and start[8:12] in (b"AVI ", b"WAVE"):
        return FileKind("a video or a sound")
    return _text_kind(start)


def _text_kind(start: bytes) -> FileKind | None:
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = start.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n").lower()
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return FileKind("an HTML page, perhaps the error message of a failed download")
    if "<svg" in text:
        return FileKind("an SVG drawing", "save it as PNG")
    if text.startswith(("<?xml", "<annotation")):
        return _first_of(_XML, text) or FileKind("XML")
    if text.startswith(("{", "[")):
        return _first_of(_JSON, text) or FileKind("JSON or other text")
    if text and encoding == "utf-8" and not any(byte < 9 or 13 < byte < 32 for byte in start):
        return _plain_text_kind(text)
    return None


def _first_of(kinds: Sequence[tuple[Sequence[str], FileKind]], text: str) -> FileKind | None:
    return next((kind for marks, kind in kinds if all(mark in text for mark in marks)), None)


def _plain_text_kind(text: str) -> FileKind:
    lines = text.splitlines()
    if any(line.startswith("names:") for line in lines):
        return _annotations("a data.yaml")
    if "region_shape_attributes" in lines[0]:
        return _annotations("an annotation file of VIA")
    if all(line.strip().endswith(_ENDINGS) for line in lines[:3]):
        return FileKind("a list of images", use="list of images")
    return FileKind("text", is_text=True)
