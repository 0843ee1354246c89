"""The results of decoding image files, kept on disk so that a second check takes seconds.

In: files. Out: a `DecodeResult` for each file whose size and modification time have not changed.
The cache is one SQLite file in the cache folder (MASKRCNN_HOME, or ~/.cache/maskrcnn). Without a
writable folder nothing is cached.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from ..images.similarity import LENGTH, THUMBNAIL
from ..runtime.cache import cache_folder

_VERSION = 2  # of the stored table
_AT_ONCE = 500  # file names per query


@dataclass(frozen=True)
class DecodeResult:
    """What decoding a file showed."""

    error: str | None
    """Why the file cannot be decoded."""
    digest: bytes
    """Hash of the pixels: equal for equal images."""
    hash: Float32[np.ndarray, "D"]
    """Perceptual hash (see images/similarity.py); zeros for a broken file."""
    thumbnail: UInt8[np.ndarray, "P"]
    """Small gray image (see images/similarity.py); zeros for a broken file."""


def load_cached(paths: Sequence[Path]) -> dict[Path, DecodeResult]:
    """Returns the cached results of the files that have not changed since."""
    known: dict[Path, DecodeResult] = {}
    with suppress(OSError, sqlite3.Error), closing(_open()) as store:
        for start in range(0, len(paths), _AT_ONCE):
            part = {str(p.resolve()): p for p in paths[start : start + _AT_ONCE]}
            marks = ", ".join("?" * len(part))
            rows = store.execute(
                "SELECT path, size, changed, error, digest, hash, thumbnail FROM images "
                f"WHERE path IN ({marks})",
                tuple(part),
            )

            for name, size, changed, error, digest, packed, small in rows:
                if (size, changed) == _file_state(part[name]):
                    hashed = np.frombuffer(packed, np.float16).astype(np.float32)
                    pixels = np.frombuffer(small, np.uint8)
                    known[part[name]] = DecodeResult(error, digest, hashed, pixels)
    return known


def store_results(results: dict[Path, DecodeResult]) -> None:
    """Adds results to the cache."""
    with suppress(OSError, sqlite3.Error), closing(_open()) as store, store:
        rows = [
            (
                str(path.resolve()),
                *_file_state(path),
                result.error,
                result.digest,
                result.hash.astype(np.float16).tobytes(),
                result.thumbnail.tobytes(),
            )
            for path, result in results.items()
        ]
        store.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?, ?)", rows)


def not_decoded(error: str) -> DecodeResult:
    """The result for a file that cannot be decoded."""
    return DecodeResult(error, b"", np.zeros(LENGTH, np.float32), np.zeros(THUMBNAIL**2, np.uint8))


def _file_state(path: Path) -> tuple[int, int]:
    """Size and modification time (ns) of a file."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _open() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    store = sqlite3.connect(folder / f"images-{_VERSION}.sqlite", timeout=10)
    store.execute(
        "CREATE TABLE IF NOT EXISTS images "
        "(path TEXT PRIMARY KEY, size INT, changed INT, error TEXT, digest BLOB, hash BLOB, "
        "thumbnail BLOB)"
    )
    return store
