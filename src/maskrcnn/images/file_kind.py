"""What a file that is not an image is, by its first bytes."""

from __future__ import annotations

from collections.abc import Sequence

BYTES = 1 << 16
"""First bytes of a file that `kind_of` looks at."""

_IMAGES = "pass the images or their folder"
_EVALUATE = f"{_IMAGES}, or measure AP with maskrcnn evaluate MODEL --data FILE"
_DETECTED = f"{_IMAGES}, or measure AP with maskrcnn evaluate FILE --data ANNOTATIONS"
_LISTED = f"{_IMAGES}; maskrcnn predict reads such a file with --shard 1/1"
_MODEL_FIRST = "the model comes first: maskrcnn predict MODEL IMAGES"

# (offset, bytes there, what the file is)
_SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer (run git lfs pull)"),
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript program"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript program"),
    (0, b"PAR1", f"a Parquet table; {_LISTED}"),
    (8, b'{"__metadata__"', f"a file of weights; {_MODEL_FIRST}"),
    (0, b"PK\x03\x04", "a ZIP archive or an Office document"),
    (0, b"\x1f\x8b", "gzip-compressed data"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"7z\xbc\xaf", "a 7-Zip archive"),
    (257, b"ustar", "a TAR archive"),
    (0, b"\x93NUMPY", "a NumPy array; pass numpy.load(file)"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"SQLite format 3", "an SQLite database"),
    (0, b"\x80\x02", "a Python pickle"),
    (0, b"v/1\x01", "an OpenEXR image; save it as a TIFF"),
    (0, b"\xff\x0a", "a JPEG XL image; save it as PNG or JPEG"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image; save it as PNG or JPEG"),
    (128, b"DICM", "a DICOM file; save it as a PNG or TIFF"),
    (0, b"\x7fELF", "a program"),
    (0, b"MZ", "a Windows program"),
    (0, b"OggS", "a video or a sound"),
    (0, b"ID3", "a sound"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (0, b"\x00\x00\x01\xba", "a video"),
    (0, b"\x00\x00\x01\xb3", "a video"),
)
_ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
_HEIF = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_WEIGHTS = (b"data.pkl", b"/byteorder", b"models/model.json")  # members of PyTorch's archives
# (marks that all occur in the text, what the file is)
_JSON = (
    (
        ('"score"', '"image_id"'),
        f"a file of detections, as predict writes them; {_DETECTED}",
    ),
    (('"imagepath"',), f"an annotation file of LabelMe; {_EVALUATE}"),
    (('"file_name"',), f"an annotation file in COCO's format; {_EVALUATE}"),
    (('"annotations"',), f"an annotation file; {_EVALUATE}"),
    (('"regions"',), f"an annotation file of VIA; {_EVALUATE}"),
    (('"features"',), f"an annotation file in GeoJSON; {_EVALUATE}"),
)
_XML = (
    (("<annotation",), f"an annotation file in XML; {_EVALUATE}"),
    (("<net ",), f"a model of OpenVINO; {_MODEL_FIRST}"),
)
_RAW = "camera raw data; develop it to a TIFF or JPEG"


def kind_of(start: bytes) -> str | None:
    """Returns what a file is, such as "XML"; None if its first bytes do not tell.

    After a semicolon follows what to do where an image is expected.
    """
    for offset, signature, kind in _SIGNATURES:
        if start[offset : offset + len(signature)] == signature:
            is_archive = signature.startswith(b"PK")
            if is_archive and any(member in start for member in _WEIGHTS):
                return f"a file of PyTorch; {_MODEL_FIRST}"
            return kind
    if start[4:8] == b"ftyp":
        if start[8:12] in _HEIF:
            return "a HEIC image; save it as JPEG or PNG"
        return _RAW if start[8:11] == b"crx" else "a video"
    if start[:4] == b"RIFF" and start[8:12] in (b"AVI ", b"WAVE"):
        return "a video or a sound"
    return _text_kind(start)


def _text_kind(start: bytes) -> str | None:
    encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = start.decode(encoding, errors="ignore").lstrip("\ufeff \t\r\n").lower()
    if text.startswith(("<!doctype html", "<html", "<head", "<body")):
        return "an HTML page, perhaps the error message of a failed download"
    if "<svg" in text:
        return "an SVG drawing; save it as PNG"
    if text.startswith(("<?xml", "<annotation")):
        return _first_of(_XML, text) or "XML"
    if text.startswith(("{", "[")):
        return _first_of(_JSON, text) or "JSON or other text"
    if text and encoding == "utf-8" and not any(byte < 9 or 13 < byte < 32 for byte in start):
        return _plain_text_kind(text)
    return None


def _first_of(kinds: Sequence[tuple[Sequence[str], str]], text: str) -> str | None:
    return next((kind for marks, kind in kinds if all(mark in text for mark in marks)), None)


def _plain_text_kind(text: str) -> str:
    lines = text.splitlines()
    if any(line.startswith("names:") for line in lines):
        return f"a data.yaml; {_EVALUATE}"
    if "region_shape_attributes" in lines[0]:
        return f"an annotation file of VIA; {_EVALUATE}"
    if all(line.strip().endswith(_ENDINGS) for line in lines[:3]):
        return f"a list of images; {_LISTED}"
    return "text"
