"""Reads a JSON file that somebody else made: `read_json(path)`.

Every failure is a `DataError` of one sentence with file, line, column and a suggestion. The
size, the nesting and the length of numbers are bounded, so that a file cannot exhaust memory or the
stack, here or later.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from .coco_types import Json
from .notes import Note
from .problems import DataError

MIB = 2**20
MOST_BYTES = 4096 * MIB  # COCO's largest file has 450 MiB, LVIS's 1,100
MOST_NESTED = 100
"""Lists and objects inside each other that are read; COCO has 5."""

_CHUNK = 2**18  # brackets and quotes whose depth is computed at a time
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_STARTS = (
    (b"\x1f\x8b", "the file is compressed (gzip); unpack it first"),
    (b"PK\x03\x04", "the file is a ZIP archive; unpack it first"),
    (b"version https://git-lfs", "the file is a pointer of Git LFS; run git lfs pull"),
    (b"<", "the file is XML or HTML; was a web page saved instead of the file?"),
)


def read_json(path: Path) -> Json:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    NaN and Infinity are read as such numbers, though JSON does not have them.

    Raises:
        DataError: the file is missing, is not valid JSON, or exceeds a bound.
    """
    return parse_json(read_bounded(path, MOST_BYTES, "JSON"), path.name)


def encoding_notes(path: Path) -> tuple[Note, ...]:
    """A note on a JSON file that was read and is not plain UTF-8, which written files are."""
    with path.open("rb") as file:
        encoding = json.detect_encoding(file.read(4))
    if encoding == "utf-8":
        return ()
    if encoding == "utf-8-sig":
        return (Note("byte order marks", 1, "skipped", (path.name,), is_rewritten=True),)
    handled = f"read as {encoding.upper()}"
    return (Note("files in another encoding than UTF-8", 1, handled, (path.name,), True),)


def read_bounded(path: Path, most: int, kind: str) -> bytes:
    """The content of an annotation file of at most `most` bytes; `kind` names it in messages.

    Raises:
        DataError: the file is missing, cannot be read, or is larger.
    """
    try:
        size = path.stat().st_size
        if size > most:
            raise DataError(
                f"{path.name}: has {size / MIB:,.0f} MiB; {kind} files of at most "
                f"{most / MIB:,.0f} MiB are read; split it"
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: annotation file not found") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


def parse_json(data: bytes, name: str) -> Json:
    """The content of JSON; `name` is that of its file in messages.

    Raises:
        DataError: not valid JSON, or a bound is exceeded.
    """
    text = _decoded(data, name)
    if _is_too_deep(text):
        raise DataError(
            f"{name}: lists and objects are nested more than {MOST_NESTED} deep; "
            "export it again from the tool"
        )

    def unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            raise DataError(
                f'{name}: not valid JSON: the key "{twice[:60]}" occurs twice in one object; '
                "remove one"
            )
        return content

    try:
        return json.loads(text, object_pairs_hook=unique)
    except DataError:
        raise
    except json.JSONDecodeError as error:
        reason, suggestion = _explained(text, error)
        raise DataError(
            f"{name}, line {error.lineno}, column {error.colno}: not valid JSON: {reason}; "
            f"{suggestion}"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits
        raise DataError(f"{name}: not valid JSON: {error}; export it again from the tool") from None


def _decoded(data: bytes, name: str) -> str:
    """The text of JSON in any encoding that JSON may have."""
    reason = next((reason for start, reason in _STARTS if data.lstrip().startswith(start)), None)
    if not data.strip():
        reason = "the file is empty; was it copied in full?"
    if reason is not None:
        raise DataError(f"{name}: not valid JSON: {reason}")

    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise DataError(
            f"{name}, line {line}, column {column}: not valid JSON: "
            f"byte {data[error.start]:#04x} is not {encoding}; save the file as UTF-8"
        ) from None


def _is_too_deep(text: str) -> bool:
    """Whether lists and objects are nested beyond the bound; brackets in strings do not count."""
    data = text.encode("utf-8", "replace").replace(b"\\\\", b"").replace(b'\\"', b"")
    marks = np.frombuffer(data.translate(None, _NO_BRACKETS), np.uint8)
    step = np.zeros(256, np.int8)
    step[list(b"[{")] = 1
    step[list(b"]}")] = -1

    depth = 0
    quotes = 0
    for start in range(0, len(marks), _CHUNK):
        chunk = marks[start : start + _CHUNK]
        num_quotes = quotes + np.cumsum(chunk == ord('"'), dtype=np.int64)
        depths = depth + np.cumsum(np.where(num_quotes % 2, 0, step[chunk]), dtype=np.int64)
        if depths.max() > MOST_NESTED:
            return True
        depth = int(depths[-1])
        quotes = int(num_quotes[-1])
    return False


def _explained(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """What is wrong at an error of the parser, and what to do."""
    before = text[max(error.pos - 200, 0) : error.pos].rstrip()
    after = text[error.pos : error.pos + 200].lstrip()
    if after.startswith(("//", "/*", "#")):
        return "it has a comment, which JSON does not know", "remove the comment"
    closing = after.removeprefix(",").lstrip()  # Python 3.13 points at the comma
    if closing[:1] in ("]", "}") and (before.endswith(",") or after[:1] == ","):
        return f"there is a comma before {closing[0]}", "remove the comma"
    if not after:
        return "the file ends too early", "was it copied or downloaded in full?"

    if error.msg == "Extra data":
        return "a second value follows the first", "keep one object in the file"
    if after.startswith("'") or re.match(r"(None|True|False)\b", after):
        return f"{after[:12]!r} is Python, not JSON", "write the file with Python's json.dump"
    if error.msg.startswith("Invalid control character"):
        return "a line break or tab is inside a string", r"write it as \n or \t"
    if error.msg.startswith("Invalid \\escape"):
        return "a single backslash is inside a string", "write two, or a slash"
    return f"{error.msg}, found {after[:20]!r}", "export it again from the tool"
