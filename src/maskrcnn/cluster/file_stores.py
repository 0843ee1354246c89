"""Files in an object store or in a local folder: reading them, listing them, writing results.

In:  a path, or a URL of fsspec such as s3://bucket/folder.
Out: bytes; names; an `OutputFolder`, in which files appear whole or not at all.

Keys and endpoints come from the store's own settings: variables such as AWS_PROFILE and
AWS_ENDPOINT_URL, and fsspec's configuration files.
"""

from __future__ import annotations

import os
import posixpath
import re
import socket
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ..images.open_image import MAX_BYTES, ImageError
from ..runtime.atomic_files import replacing
from ..runtime.optional_packages import optional_package

STORES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "hdfs": "pyarrow",
    "hf": "huggingface_hub",
    "memory": "fsspec",
}
"""Schemes of the stores, each with the package that reads it."""
_SHOWS_UNFINISHED = ("hdfs",)
"""Stores in which readers see a file that is still being written; the others show whole objects."""
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_ATTEMPTS = 3
_WAIT = 0.5  # seconds before the second attempt, four times as long before each further one
_PARTIAL = ".partial-"  # begins the name of a file that is being written
_ABANDONED = timedelta(hours=1)  # without a change, after which nobody writes such a file
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")
"""Where the stores say when an object was changed."""


class StoreError(OSError):
    """A store refuses or fails, in a way that says nothing about the image."""


def cluster_package(name: str) -> Any:
    """Imports a package of the extra `cluster`.

    Raises:
        ImportError: it is not installed; the message has the command.
    """
    return optional_package("prediction in parts", name, "cluster")


def is_damaged(error: Exception) -> bool:
    """Whether an error is that of a parquet file which cannot be parsed, not of a store or disk."""
    invalid = cluster_package("pyarrow").ArrowInvalid
    return isinstance(error, invalid) or (isinstance(error, OSError) and "thrift" in str(error))


def is_store(text: str | Path) -> bool:
    """Whether text is a URL of an object store. A `Path` never is."""
    match = _SCHEME.match(text) if isinstance(text, str) else None
    return match is not None and match[1].lower() in STORES


def opened_store(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it.

    Raises:
        ImportError: the package for this store is not installed.
        ValueError: the URL joins several with "::".
    """
    if "::" in url:
        raise ValueError(f'{url}: expected a URL of one store, got several joined by "::"')
    fsspec = cluster_package("fsspec")
    scheme = url.partition("://")[0].lower()
    try:
        return fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        package = STORES[scheme]
        raise ImportError(f"{url}: needs the package {package}: pip install {package}") from error


def read_object(url: str, most: int = MAX_BYTES) -> bytes:
    """Reads an object of at most `most` bytes with one request.

    Raises:
        ImageError: it does not exist, or is larger.
        StoreError: the store refuses or fails, also at the third attempt.
    """
    store, path = opened_store(url)
    for attempt in range(_ATTEMPTS):
        try:
            data = store.cat_file(path, start=0, end=most + 1)
            break
        except FileNotFoundError:
            raise ImageError(f"{url}: file not found") from None
        # each store has exceptions of its own, of which many are no OSError
        except Exception as error:
            if _is_empty(store, path):  # a part of nothing cannot be requested
                data = b""
                break
            if attempt == _ATTEMPTS - 1 or isinstance(error, PermissionError):
                reason = str(error) or type(error).__name__
                raise StoreError(f"{url}: cannot be read: {reason}") from error
            time.sleep(_WAIT * 4**attempt)

    if len(data) > most:
        raise ImageError(f"{url}: more than {most >> 20} MB")
    return data


def _is_empty(store: Any, path: str) -> bool:
    try:
        return store.info(path)["size"] == 0
    except Exception:  # the first error is the one to report
        return False


def joined(folder: str, name: str) -> str:
    """The location of a name relative to a folder or URL; an absolute name stays as it is."""
    if _SCHEME.match(name):
        return name
    if _SCHEME.match(folder):
        return f"{folder.rstrip('/')}/{posixpath.normpath(name)}"
    return os.path.join(folder, name)


def parent_of(location: str) -> str:
    """The folder of a file or URL."""
    if _SCHEME.match(location):
        return location.rstrip("/").rpartition("/")[0]
    return os.path.dirname(os.path.abspath(location))


class OutputFolder:
    """A folder of results, on this machine or in a store.

    Args:
        location: a path or a URL.

    Raises:
        ValueError: the location is a file, or has a scheme that is no store.
    """

    def __init__(self, location: str | Path) -> None:
        self.location = str(location)
        self._store: Any = None
        self._shows_unfinished = False

        self._root = self.location
        if is_store(self.location):
            self._store, self._root = opened_store(self.location)
            self._root = self._root.rstrip("/")
            self._shows_unfinished = self.location.partition("://")[0].lower() in _SHOWS_UNFINISHED
        elif match := _SCHEME.match(self.location):
            raise ValueError(
                f"{location}: expected a folder, or a URL with {', '.join(STORES)}, "
                f"got the scheme {match[1]}"
            )
        elif Path(location).exists() and not Path(location).is_dir():
            raise ValueError(f"{location}: expected a folder for the results, got a file")

    def __str__(self) -> str:
        return self.location

    @property
    def path(self) -> Path | None:
        """The local folder; None for a store."""
        return None if self._store else Path(self._root)

    def read(self, name: str) -> bytes | None:
        """The content of a file; None if it does not exist."""
        try:
            if self._store:
                return self._store.cat_file(f"{self._root}/{name}")
            return (Path(self._root) / name).read_bytes()
        except FileNotFoundError:
            return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a file, or replaces it, in one step. Several processes may write the same file.

        Raises:
            WriteError: the disk is full or fails.
        """
        if self._store:
            with self._put(name) as target:
                self._store.pipe_file(target, data)
            return
        path = Path(self._root) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, writer=_writer()) as partial:
            partial.write_bytes(data)

    @contextmanager
    def replacing(self, name: str) -> Generator[Path]:
        """Yields a local path to write to; its file becomes `name` if the block succeeds."""
        if not self._store:
            path = Path(self._root) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, writer=_writer()) as partial:
                yield partial
            return

        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / posixpath.basename(name)
            yield partial
            with self._put(name) as target:
                self._store.put_file(str(partial), target)

    @contextmanager
    def _put(self, name: str) -> Generator[str]:
        """Yields the path in the store to write to; it becomes `name` if the block succeeds."""
        target = f"{self._root}/{name}"
        if not self._shows_unfinished:
            yield target
            return

        folder, _, last = target.rpartition("/")
        partial = f"{folder}/{_PARTIAL}{_writer()}{last}"
        try:
            yield partial
            self._store.mv(partial, target)
        except BaseException:
            with suppress(FileNotFoundError):
                self._store.rm_file(partial)
            raise

    def open(self, name: str) -> Any:
        """A file, opened for reading.

        Raises:
            FileNotFoundError: it does not exist.
        """
        if self._store:
            return self._store.open(f"{self._root}/{name}", "rb")
        return (Path(self._root) / name).open("rb")

    def remove(self, name: str) -> None:
        """Removes a file if it exists."""
        with suppress(FileNotFoundError):
            if self._store:
                self._store.rm_file(f"{self._root}/{name}")
            else:
                (Path(self._root) / name).unlink()

    def exists(self) -> bool:
        """Whether the folder exists and, in a store, has anything in it."""
        if self._store:
            return self._store.exists(self._root)
        return Path(self._root).is_dir()

    def names(self, ending: str, deep: bool = False) -> Iterator[str]:
        """The names of the files with an ending, relative to the folder, sorted within each folder.

        Args:
            ending: of the names.
            deep: also list subfolders, except hidden ones.
        """
        walk = self._store.walk(self._root) if self._store else os.walk(self._root)
        for parent, folders, files in walk:
            below = posixpath.relpath(Path(parent).as_posix(), Path(self._root).as_posix())
            for name in sorted(files):
                if name.endswith(ending) and not name.startswith("."):
                    yield name if below == "." else f"{below}/{name}"
            if not deep:
                return
            if isinstance(folders, list):
                folders[:] = sorted(folder for folder in folders if not folder.startswith("."))

    def remove_abandoned(self, folders: Iterable[str]) -> list[str]:
        """Removes files that killed processes have left half-written.

        Args:
            folders: where to look, relative to this one, without their subfolders.

        Returns:
            The names of such files that are kept, because a process may still be writing them.
        """
        kept = []
        now = datetime.now(UTC)
        for folder in folders:
            for name, modified in self._partial_files(folder):
                if modified is None or now - modified < _ABANDONED:
                    kept.append(name)
                else:
                    self.remove(name)
        return sorted(kept)

    def _partial_files(self, folder: str) -> Iterator[tuple[str, datetime | None]]:
        """The partial files of a folder, each with the time of its last change."""
        if self._shows_unfinished:
            try:
                entries = self._store.ls(posixpath.join(self._root, folder), detail=True)
            except FileNotFoundError:
                return
            for entry in entries:
                name = posixpath.basename(entry["name"])
                if name.startswith(_PARTIAL):
                    yield posixpath.normpath(posixpath.join(folder, name)), modified_of(entry)
        if self._store:
            return

        for path in (Path(self._root) / folder).glob(f"{_PARTIAL}*"):
            with suppress(FileNotFoundError):  # it has just been finished
                modified = datetime.fromtimestamp(path.stat().st_mtime, UTC)
                yield posixpath.normpath(posixpath.join(folder, path.name)), modified


def modified_of(entry: Mapping[str, Any]) -> datetime | None:
    """When an object was last changed, from what fsspec says about it; None if it does not."""
    for name in _TIMES:
        value = entry.get(name)
        with suppress(ValueError, OverflowError):
            if isinstance(value, str):
                value = datetime.fromisoformat(value)
            elif isinstance(value, int | float):
                value = datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None


def _writer() -> str:
    """A name for this call, so that processes that write one file do not share a partial one."""
    return f"{socket.gethostname()[:32]}-{os.getpid()}-{uuid.uuid4().hex[:8]}-"
