"""Whether files have changed: their size and time when they were read, and now.

In:  a location, or what a store says about an object.
Out: a `FileState`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ..images.remote import is_url
from .file_stores import StoreError, is_store, modified_of, opened_store

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FileState:
    """The size of a file and the time of its last change."""

    size: int
    modified: datetime | None
    """In UTC; None: the store does not say."""

    def __str__(self) -> str:
        return f"{self.size} {self.modified.isoformat() if self.modified else ''}"

    @classmethod
    def parse(cls, text: str) -> FileState | None:
        """Reads what `str` gave; None for empty text."""
        size, _, modified = text.partition(" ")
        if not size:
            return None
        return cls(int(size), datetime.fromisoformat(modified) if modified else None)

    @classmethod
    def of_entry(cls, entry: Mapping[str, Any]) -> FileState | None:
        """The state of an object, from what fsspec says about it; None if it does not know."""
        size = entry.get("size")
        return cls(size, modified_of(entry)) if isinstance(size, int) else None

    @classmethod
    def of_file(cls, path: str) -> FileState | None:
        """The state of a file of this machine; None if it is not there."""
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            return None
        microseconds = status.st_mtime_ns // 1000
        return cls(status.st_size, _EPOCH + timedelta(microseconds=microseconds))

    @classmethod
    def of(cls, location: str) -> FileState | None:
        """The state of a file or an object, for which a store is asked; None if it is unknown."""
        if is_url(location):
            return None
        if not is_store(location):
            return cls.of_file(location)
        store, path = opened_store(location)
        try:
            return cls.of_entry(store.info(path))
        except Exception:  # reading the object reports what is wrong
            return None

    def differs_from(self, other: FileState) -> bool:
        """Whether the file has changed between the two states."""
        if self.size != other.size:
            return True
        is_known = self.modified is not None and other.modified is not None
        return is_known and self.modified != other.modified


class CurrentStates:
    """The present states of many files; those of one folder of a store are listed together.

    A store then gets one request for a thousand objects. The last folder and those around it are in
    memory, because sorted names return to a folder after each of its subfolders.
    """

    def __init__(self) -> None:
        self._listed: dict[str, dict[str, FileState | None]] = {}

    def of(self, location: str) -> FileState | None:
        """The state of a file or object; None if it is not there.

        Raises:
            StoreError: a folder of a store cannot be listed.
        """
        if not is_store(location):
            return FileState.of(location)
        folder, _, name = location.rpartition("/")
        if folder not in self._listed:
            around = {f: states for f, states in self._listed.items() if folder.startswith(f"{f}/")}
            self._listed = around | {folder: _states_in(folder)}
        return self._listed[folder].get(name)


def _states_in(folder: str) -> dict[str, FileState | None]:
    """The states of the objects of a folder, by name."""
    store, path = opened_store(folder)
    try:
        entries = store.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    # each store has exceptions of its own, of which many are no OSError
    except Exception as error:
        raise StoreError(
            f"{folder}: cannot be listed: {error or type(error).__name__}; to collect without "
            "comparing files, use changes=False (--no-changes)"
        ) from error
    return {entry["name"].rpartition("/")[2]: FileState.of_entry(entry) for entry in entries}
