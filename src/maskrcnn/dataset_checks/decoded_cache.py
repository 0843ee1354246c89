"""What is known of images that were decoded before, so that a second check takes seconds.

In: files. Out: `Seen` for each that has the size and time of change that it had then. One SQLite file in the cache folder (MASKRCNN_HOME, or
~/.cache/maskrcnn); without a place to write, nothing is remembered.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ..images.similarity import LENGTH
from ..runtime.cache import cache_folder

_VERSION = 1  # of what is stored
_AT_ONCE = 500  # names in one query


@dataclass(frozen=True)
class Seen:
    """A decoded image in short."""

    error: str | None
    """Why it cannot be decoded."""
    digest: bytes
    """Of its pixels."""
    hash: Float32[np.ndarray, "D"]
    """As `similar.hashes` gives it; zeros for a broken one."""


def state_of(path: Path) -> tuple[int, int]:
    """Size and time of the last change (ns) of a file."""
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def recall(paths: Sequence[Path]) -> dict[Path, Seen]:
    """What is known of the files that have not changed since."""
    known: dict[Path, Seen] = {}
    with suppress(OSError, sqlite3.Error), closing(_open()) as store:
        for start in range(0, len(paths), _AT_ONCE):
            part = {str(p.resolve()): p for p in paths[start : start + _AT_ONCE]}
            marks = ", ".join("?" * len(part))
            rows = store.execute(
                f"SELECT path, size, changed, error, digest, hash FROM images WHERE path IN ({marks})",
                tuple(part),
            )
            for name, size, changed, error, digest, packed in rows:
                if (size, changed) == state_of(part[name]):
                    known[part[name]] = Seen(
                        error, digest, np.frombuffer(packed, np.float16).astype(np.float32)
                    )
    return known


def remember(seen: dict[Path, Seen]) -> None:
    """Keeps what was found out."""
    with suppress(OSError, sqlite3.Error), closing(_open()) as store, store:
        rows = [
            (str(p.resolve()), *state_of(p), s.error, s.digest, s.hash.astype(np.float16).tobytes())
            for p, s in seen.items()
        ]
        store.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?, ?)", rows)


def blank_hash() -> Float32[np.ndarray, "D"]:
    """The hash of an image of which nothing is known."""
    return np.zeros(LENGTH, np.float32)


def _open() -> sqlite3.Connection:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    store = sqlite3.connect(folder / f"images-{_VERSION}.sqlite", timeout=10)
    store.execute(
        "CREATE TABLE IF NOT EXISTS images (path TEXT PRIMARY KEY, size INT, changed INT, error TEXT, digest BLOB, hash BLOB)"
    )
    return store
